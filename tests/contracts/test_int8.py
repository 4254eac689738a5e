"""Every registered layer class in int8: refused by name before any training, or whole and right in both runtimes."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError
from kpipe.export import FORMATS, inspect
from kpipe.export.verify import predict
from kpipe.graph import sites
from kpipe.layers import RULES, quantization_of
from tests.contracts.test_layer_rules import CASES, keras_rules, seeded
from tests.models import samples

CLASSES = sorted((cls for cls in keras_rules() if RULES[cls].quantization is not None), key=lambda cls: cls.__name__)
WITHOUT_FACT = sorted(keras_rules() - set(CLASSES), key=lambda cls: cls.__name__)
VARIANTS = {L.Softmax: L.Softmax, L.UpSampling2D: lambda: L.UpSampling2D(2)}
"""Arguments with which a class can be rounded, where those of its channel contract are refused."""
REFUSED = {
    *(L.ELU, L.Conv1D, L.DepthwiseConv1D, L.SeparableConv1D, L.Conv3D, L.SpatialDropout3D),
    *(L.MaxPooling3D, L.AveragePooling3D, L.GlobalMaxPooling3D, L.GlobalAveragePooling3D),
    *(L.ZeroPadding3D, L.Cropping3D, L.UpSampling3D),
}


def model_around(cls) -> keras.Model:
    """Give the model of the channel contract; of sequences and volumes one whose other layers can be rounded."""
    model = CASES[cls]()
    if len(model.inputs[0].shape) == 4 and cls not in VARIANTS:
        return model
    found: Any = next((layer for layer in model.layers if layer.name == "layer"), None)
    found = found or next(layer for layer in model.layers if type(layer) is cls)
    layer = VARIANTS[cls]() if cls in VARIANTS else cls.from_config(found.get_config())
    x = keras.Input(found.input.shape[1:], name="x")
    if cls in REFUSED:
        return keras.Model(x, layer(x))
    y = layer(L.Dense(x.shape[-1], activation="relu", name="before")(x))
    return keras.Model(x, L.Dense(3, name="logits")(L.Flatten(name="flat")(y)))


def hold(model: keras.Model, folder: Path) -> None:
    """Fail unless a model becomes a close quantized one, and that whole int8 files of every format."""
    x = samples(model, 64, seed=1)
    x = x if len(x) > 1 else x[0]
    quantized = kpipe.quantize(model, calibration=x)
    for a, b in zip(predict(quantized, samples(model, 64)), predict(model, samples(model, 64)), strict=True):
        assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()
    for name in FORMATS:
        file = kpipe.export(quantized, folder / f"model{FORMATS[name].suffix}")
        assert file.agreement is not None and file.agreement.max_steps is not None
        assert file.agreement.max_steps < 2.01
        found = inspect(file.path)
        assert (found.precision, found.faults) == ("int8", ())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_layer_is_refused_by_name_or_whole_in_both_runtimes(cls, tmp_path):
    model = seeded(lambda: model_around(cls))
    if cls not in REFUSED:
        hold(model, tmp_path)
        return
    with pytest.raises(KpipeError, match=rf"^Layer '\w+' \(keras.*{cls.__name__}\) cannot be quantized: \w.*\.$"):
        kpipe.quantize(model, calibration=samples(model, 4))


@pytest.mark.parametrize("cls", WITHOUT_FACT, ids=lambda cls: cls.__name__)
def test_a_class_of_which_nothing_is_said_is_refused_by_name(cls):
    model = CASES[cls]()
    unknown = [site.operation for site in sites(model).sites if quantization_of(site.operation) is None]
    names = {type(one).__name__ for one in unknown} | {"InputLayer"}  # tokens cannot be rounded either
    with pytest.raises(KpipeError, match=rf"({'|'.join(names)})\) cannot be quantized: \w.*\.$"):
        kpipe.quantize(model, calibration=samples(model, 4))


@pytest.mark.parametrize("cls", [L.LeakyReLU, L.Rescaling, L.Multiply, L.GlobalAveragePooling2D])
def test_a_wrong_fact_is_caught(cls, monkeypatch, tmp_path):
    monkeypatch.setitem(RULES, cls, dataclasses.replace(RULES[cls], quantization="same"))
    with pytest.raises((KpipeError, AssertionError)):
        hold(seeded(lambda: model_around(cls)), tmp_path)
