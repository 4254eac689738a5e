"""Every layer class with a rule in int8: in whole numbers or an island, right in both runtimes, or refused by name."""

import dataclasses
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import ExportError, KpipeError
from kpipe.export import FORMATS, inspect
from kpipe.export.verify import predict
from kpipe.fake_quant import float_layers
from kpipe.layers import RULES
from tests.contracts.test_layer_rules import CASES, keras_rules, seeded
from tests.models import samples

IN_FLOAT = {
    *(L.LayerNormalization, L.RMSNormalization, L.GroupNormalization, L.UnitNormalization, L.SpectralNormalization),
    *(L.ELU, L.CenterCrop, L.Masking, L.Dot, L.Attention, L.AdditiveAttention, L.Softmax, L.ReversibleEmbedding),
    *(L.AdaptiveMaxPooling1D, L.AdaptiveMaxPooling2D, L.AdaptiveMaxPooling3D),
    *(L.AdaptiveAveragePooling1D, L.AdaptiveAveragePooling2D, L.AdaptiveAveragePooling3D),
    *(L.Conv3D, L.Conv3DTranspose, L.SpatialDropout3D, L.MaxPooling3D, L.AveragePooling3D),
    *(L.GlobalMaxPooling3D, L.GlobalAveragePooling3D, L.ZeroPadding3D, L.Cropping3D, L.UpSampling3D),
    *(L.SimpleRNNCell, L.LSTMCell, L.GRUCell, L.StackedRNNCells, L.RNN, L.SimpleRNN, L.LSTM, L.GRU, L.Bidirectional),
    *(L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D, L.TimeDistributed),
    *(cls for cls in keras_rules() if cls.__name__ in ("ConvLSTMCell", "LayerScale", "StochasticDepth")),
    *(cls for cls in keras_rules() if cls.__name__ in ("CustomScaleLayer", "Functional", "Sequential")),
}
"""What the runtimes compute in float, in the case of the channel contract; all others compute in whole numbers."""
NOT_IN_LITERT = {L.AdaptiveMaxPooling3D, L.AdaptiveAveragePooling3D}
"""The converter has nothing for these, in float neither."""
QUICK = {
    *(
        L.Dense,
        L.Conv1D,
        L.Conv2D,
        L.Conv3D,
        L.DepthwiseConv1D,
        L.DepthwiseConv2D,
        L.SeparableConv1D,
        L.SeparableConv2D,
    ),
    *(L.Conv1DTranspose, L.Conv2DTranspose, L.EinsumDense, L.Embedding, L.MultiHeadAttention, L.GroupQueryAttention),
    *(L.BatchNormalization, L.LayerNormalization, L.RMSNormalization, L.PReLU, L.ELU, L.LeakyReLU, L.Activation),
    *(L.Rescaling, L.Normalization, L.Resizing, L.UpSampling2D, L.AveragePooling1D, L.AveragePooling2D),
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum),
    *(L.Concatenate, L.Masking, L.GRU, L.MaxPooling3D, L.AdaptiveMaxPooling3D, L.Permute, L.RepeatVector),
}
"""What the fast suite looks at; the heavy sweeps look at all."""
LAYERS = sorted((cls for cls in keras_rules() if issubclass(cls, keras.Layer)), key=lambda cls: cls.__name__)


def quantized(model: keras.Model) -> keras.Model:
    x = samples(model, 64, seed=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* computes in float in ")
        return kpipe.quantize(model, calibration=x if len(x) > 1 else x[0])


def hold(model: keras.Model, folder: Path, formats=tuple(FORMATS)) -> keras.Model:
    """Fail unless a model becomes a close quantized one, and that int8 files of these formats."""
    made = quantized(model)
    for a, b in zip(predict(made, samples(model, 64)), predict(model, samples(model, 64)), strict=True):
        assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()
    for name in formats:
        file = kpipe.export(made, folder / f"model{FORMATS[name].suffix}")
        assert file.agreement is not None and file.agreement.max_steps is not None
        assert file.agreement.max_steps < 3.01
        found = inspect(file.path)
        assert (found.precision, found.faults) == ("int8", ())
        assert not found.floats or float_layers(made)
    return made


def each():
    return [pytest.param(c, id=c.__name__, marks=[] if c in QUICK else pytest.mark.slow) for c in LAYERS]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("cls", each())
def test_a_layer_is_rounded_or_an_island_and_right_in_both_runtimes(cls, tmp_path):
    model = seeded(CASES[cls])
    formats = [name for name in FORMATS if name != "tflite" or cls not in NOT_IN_LITERT]
    made = hold(model, tmp_path, formats)
    if cls is not L.InputLayer:
        assert bool(float_layers(made)) == (cls in IN_FLOAT)
    if cls in NOT_IN_LITERT:
        with pytest.raises(ExportError, match="LiteRT's converter refuses model"):
            kpipe.export(made, tmp_path / "model.tflite")


@pytest.mark.sweep(1)
@pytest.mark.parametrize("cls", [L.LeakyReLU, L.Rescaling, L.Multiply, L.GlobalAveragePooling2D])
def test_a_wrong_fact_is_caught(cls, monkeypatch, tmp_path):
    monkeypatch.setitem(RULES, cls, dataclasses.replace(RULES[cls], quantization="same"))
    with pytest.raises((KpipeError, AssertionError)):
        hold(seeded(CASES[cls]), tmp_path)


def test_an_island_that_nobody_declared_is_caught(monkeypatch, tmp_path):
    made = quantized(seeded(CASES[L.ELU]))
    monkeypatch.setattr(sys.modules["kpipe.export.write"], "float_layers", lambda model: {})
    with pytest.raises(ExportError, match=r"ELU computes in float \(.*layer"):
        kpipe.export(made, tmp_path / "model.tflite")
