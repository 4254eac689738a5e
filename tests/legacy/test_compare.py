"""A converted model that is wrong anywhere is refused, and where it is wrong is said."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from kpipe.errors import KpipeError
from kpipe.legacy.compare import _Truth
from kpipe.legacy.load import converted
from kpipe.legacy.precision import HALF, tolerances
from kpipe.legacy.rebuild import rebuild
from kpipe.legacy.translate import TRANSLATIONS
from tests.legacy import old_layers
from tests.legacy.old_files import OWN, answers, assert_equal, truth


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "layer",
    [
        ("convolutions.h5", "stem/conv"),
        ("convolutions.h5", "conv3d_transpose"),
        ("nested.h5", "shared"),
        ("recurrent.h5", "lstm_1"),
        ("attention.keras", "multi_head_attention"),
        ("pruned.h5", "separable"),
        ("stateful.h5", "gru"),
    ],
    ids=lambda layer: layer[1],
)
def test_one_wrong_weight_is_found_and_its_layer_named(readings, layer):
    name, layer = layer
    with pytest.raises(KpipeError, match=f"first at layer '{layer}"):
        converted(spoilt(readings[name], layer, 0.5))


def spoilt(reading, layer, by):
    """Add to the first entry of the first weight of a layer."""
    entries = [one for one in reading.layers.values() if one["name"].startswith(layer) and one.get("weights")]
    key = entries[0]["weights"][0][1]
    array = reading.arrays[key].copy()
    array.reshape(-1)[0] += by
    return replace(reading, arrays={**reading.arrays, key: array})


def test_a_wrong_layer_of_tiny_outputs_is_found():
    expected, name = np.asarray([1e-9, 3e-9], np.float32), "call:0:0"
    truth = _Truth({name: expected})
    truth.check_layer("'gate' (Activation)", name, expected, noise=0.0, tolerance=1e-5)
    rounding = 1e-6  # of a difference of values round 1
    truth.check_layer("'gate' (Activation)", name, expected * 2, noise=rounding, tolerance=1e-5)
    with pytest.raises(KpipeError, match="first at layer 'gate'"):
        truth.check_layer("'gate' (Activation)", name, expected * 2, noise=0.0, tolerance=1e-5)


def test_what_grows_on_its_way_is_told_by_where_it_began():
    ones = np.ones(3, np.float32)
    truth = _Truth({"call:0:0": ones, "call:1:0": ones, "output:0": ones})
    truth.check_layer("'early' (Dense)", "call:0:0", ones + np.float32(5e-5), noise=0.0, tolerance=1e-5)
    with pytest.raises(KpipeError, match="first at layer 'early'"):
        truth.check_layer("'late' (Dense)", "call:1:0", ones + np.float32(5e-4), noise=0.0, tolerance=1e-5)
    with pytest.raises(KpipeError, match="first at layer 'early'"):
        truth.check_output(0, ones + np.float32(2e-5), tolerance=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "change"),
    [
        ("convolutions.h5", "LeakyReLU", {"negative_slope": 0.25}),
        ("convolutions.h5", "BatchNormalization", {"epsilon": 0.01}),
        ("recurrent.h5", "GRU", {"go_backwards": False}),
        ("recurrent.h5", "LSTMCell", {"activation": "relu"}),
        ("dense.keras", "Dense", {"activation": "hard_sigmoid"}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_translation_is_found(readings, monkeypatch, name, kind, change):
    right = TRANSLATIONS[kind] if kind in TRANSLATIONS else lambda config: (kind, config)

    def wrong(config):
        other, config = right(dict(config))
        return other, {**config, **{key: value for key, value in change.items() if key in config}}

    monkeypatch.setitem(TRANSLATIONS._objects, kind, wrong)
    with pytest.raises(KpipeError, match="differs from the old one, first at layer"):
        converted(readings[name])


def test_inputs_that_change_places_are_found(readings):
    reading = readings["nested.h5"]
    tower = next(entry for entry in reading.layers.values() if entry["name"] == "tower")
    graph = {**tower["graph"], "inputs": tower["graph"]["inputs"][::-1]}
    layers = {key: {**entry, "graph": graph} if entry is tower else entry for key, entry in reading.layers.items()}
    with pytest.raises(KpipeError, match=r"first at layer '(shared|dense)"):
        converted(replace(reading, layers=layers))


def test_a_class_that_computes_something_else_is_named(readings, monkeypatch):
    monkeypatch.setattr(old_layers.Shift, "by", 1.001)
    with keras.saving.custom_object_scope(OWN), pytest.raises(KpipeError, match="first at layer 'shift'"):
        converted(readings["own_classes.h5"])


def test_half_precision_is_held_to_its_own_measure(old, readings):
    model, _ = converted(readings["half_precision.h5"])
    inputs, (after, beside, cast) = truth(old, "half_precision")
    got = answers(model, inputs)
    assert_equal([got[0], got[2]], [after, cast], tolerance=HALF["float16"])
    assert_equal(got[1:2], [beside])


def test_more_is_allowed_only_of_what_half_precision_has_a_part_in(readings):
    reading = readings["half_precision.h5"]
    names = [reading.layers[call["layer"]]["name"] for call in reading.graph["calls"]]
    allowed, of_outputs = tolerances(rebuild(reading)[1], 1e-5)
    half, found = HALF["float16"], {name: allowed.get(str(place)) for place, name in enumerate(names)}
    assert (found["before"], found["beside"], found["after"]) == (1e-5, 1e-5, half)
    assert [name for name in names if found[name] is None] == ["inner"]  # its layers are told apart
    assert allowed[f"{names.index('inner')}.0"] == half
    assert of_outputs == [half, 1e-5, half]


@pytest.mark.parametrize("layer", ["before", "beside"])
def test_a_wrong_layer_in_full_precision_is_found_beside_others_in_half(readings, layer):
    reading = readings["half_precision.h5"]
    converted(spoilt(reading, "half", 1e-4))  # as little as rounding may do
    with pytest.raises(KpipeError, match=f"first at layer '{layer}'"):
        converted(spoilt(reading, layer, 2e-3))
