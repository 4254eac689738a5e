"""Poolings of volumes, which LiteRT's converter refuses, as poolings of images."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.export import load_runtime
from kpipe.export.litert.pooling import VolumePooling, without_volumes

SHAPE = (7, 6, 5, 2)


def pooled(x, function, size, steps, padding):
    """Pool (batch, d, h, w, c) window by window; what lies in the padding counts for nothing."""
    ends, size, steps = (np.array(each) for each in (x.shape[1:4], size, steps))
    if padding == "valid":
        counts, before = (ends - size) // steps + 1, 0
    else:
        counts = -(-ends // steps)
        before = np.maximum(0, (counts - 1) * steps + size - ends) // 2
    y = np.empty((len(x), *counts, x.shape[-1]), "float32")
    for place in itertools.product(*map(range, counts)):
        first = np.array(place) * steps - before
        window = map(slice, np.maximum(0, first), np.minimum(first + size, ends))
        y[:, *place] = function(x[:, *window], axis=(1, 2, 3))
    return y


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("cls", "function"), [(L.MaxPooling3D, np.max), (L.AveragePooling3D, np.mean)])
@pytest.mark.parametrize(("size", "steps"), [((2, 2, 2), (2, 2, 2)), ((3, 2, 1), (2, 1, 2)), ((3, 3, 3), (2, 2, 2))])
def test_windows_are_those_of_the_volume(cls, function, size, steps, padding):
    model = keras.Sequential([keras.Input(SHAPE), cls(size, steps, padding, name="pool")])
    x = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")
    flat = without_volumes(model)
    assert isinstance(flat.layers[-1], VolumePooling) and flat.layers[-1].name == "pool"
    np.testing.assert_allclose(flat(x), pooled(x, function, size, steps, padding), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 4, 4), (None, 4, 4, 2)], ids=["channels first", "open size"])
def test_what_cannot_be_written_so_stays(shape):
    layout = "channels_last" if None in shape else "channels_first"
    model = keras.Sequential([keras.Input(shape), L.MaxPooling3D(2, data_format=layout)])
    assert not any(isinstance(layer, VolumePooling) for layer in without_volumes(model).layers)
    plain = keras.Sequential([keras.Input((4, 4, 2)), L.MaxPooling2D(2)])
    assert without_volumes(plain) is plain


@pytest.mark.parametrize("batch", [1, None])
def test_a_network_on_volumes_is_written_and_its_layers_stay_as_they_are(batch, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input(SHAPE)
    y = L.AveragePooling3D(3, 2, "same")(L.MaxPooling3D(2)(L.Conv3D(4, 3, padding="same", activation="relu")(x)))
    model = keras.Model(x, L.Dense(2, name="out")(L.GlobalAveragePooling3D()(y)))
    data = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    file = kpipe.export(model, tmp_path / "m.tflite", data=data, batch=batch)
    with load_runtime(file) as runtime:
        np.testing.assert_allclose(runtime.run([data])[0], model(data), atol=1e-5)
    assert [type(layer).__name__ for layer in model.layers[2:4]] == ["MaxPooling3D", "AveragePooling3D"]
