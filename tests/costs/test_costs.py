"""Bytes of int8 files and milliseconds in LiteRT: the real files, and plans that aim at them."""

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.costs import int8_bytes, latency, litert_ms
from kpipe.costs.file_size import MARGIN, estimate_int8_bytes
from kpipe.errors import ExportError, KpipeError
from kpipe.export import inspect
from kpipe.graph import trace
from kpipe.structured import plan_filters, prune_filters
from kpipe.structured.channels import remove_channels
from kpipe.structured.ranking import keep_of
from tests.models import build, samples


def keep_all_but(traced, first, every):
    return keep_of(traced, [np.arange(first, len(group), every) for group in traced.groups])


def whole(traced):
    return np.ones(traced.class_count, bool)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["conv_bn", "se_block", "siamese"])
def test_the_size_is_that_of_the_exported_file(name, tmp_path):
    model = build(name)
    data = samples(model, 16)
    quantized = kpipe.quantize(model, calibration=data if len(data) > 1 else data[0])
    assert abs(int8_bytes(model) - kpipe.export(quantized, tmp_path / "model.tflite").bytes) <= MARGIN


@pytest.mark.slow
@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["conv_bn", "residual", "grouped"])
def test_the_estimate_misses_the_size_by_a_constant(name):
    model = build(name)
    traced = trace(model)
    estimate, keep = estimate_int8_bytes(model, traced), keep_all_but(traced, 0, 2)
    saved = int8_bytes(model) - int8_bytes(remove_channels(model, traced, keep))
    assert saved > 1000
    assert abs(saved - (estimate(whole(traced)) - estimate(keep))) < 32  # files are padded here and there


@pytest.mark.sweep(1)
@pytest.mark.parametrize("amount", [30_000, 0.5])
def test_bytes_are_met_on_the_exported_file(tmp_path, amount):
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(64, 3, activation="relu"), L.Conv2D(96, 3, activation="relu"), L.Flatten(), L.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    before = int8_bytes(model)
    budget = amount * before if amount < 1 else amount
    plan = kpipe.plan_filters(model, target={"bytes": amount})
    small = prune_filters(model, plan)
    data = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
    file = kpipe.export(kpipe.quantize(small, calibration=data), tmp_path / "small.tflite")
    assert 0.98 * budget - 2 * MARGIN <= file.bytes <= budget
    assert abs(file.bytes - plan.after["bytes"]) <= MARGIN
    assert plan.before["bytes"] == before


def open_sized():
    x = keras.Input((None, None, 3), name="x")
    return keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x))))


@pytest.mark.slow
def test_what_the_file_holds_in_float_is_named_once_and_counts(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    model = keras.Model(tokens, L.Dense(2)(L.LSTM(24, name="lstm")(L.Embedding(9, 16)(tokens))))
    with pytest.warns(UserWarning, match="computes in float in 'lstm'") as said:
        plan = plan_filters(model, target={"bytes": 0.8})
    assert len(said) == 1
    assert plan.after["bytes"] <= 0.8 * plan.before["bytes"] - MARGIN
    with pytest.warns(UserWarning, match="computes in float in 'lstm'"):
        quantized = kpipe.quantize(prune_filters(model, plan), calibration=np.arange(40).reshape(8, 5) % 9)
    assert abs(kpipe.export(quantized, tmp_path / "small.tflite").bytes - plan.after["bytes"]) <= MARGIN


def test_a_model_that_no_file_can_hold_says_so():
    x = keras.Input((2, 6, 6), name="x")
    conv = L.Conv2D(8, 3, padding="same", data_format="channels_first", name="conv")
    model = keras.Model(x, L.Dense(2)(L.Flatten()(conv(x))))
    with pytest.raises(KpipeError, match=r"'bytes'.*means those of the int8 file, and there can be none: Layer 'conv'"):
        plan_filters(model, target={"bytes": 0.5})
    with pytest.raises(ExportError, match="open size"):
        plan_filters(open_sized(), target={"latency_ms": 1.0})


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["conv_bn", "se_block", "siamese"])
def test_what_is_timed_is_what_would_be_exported(name, tmp_path):
    model = build(name)
    (tmp_path / "timed.tflite").write_bytes(latency.write(model))
    kpipe.export(model, tmp_path / "file.tflite")

    def operations(file):
        return sorted((one.name, one.inputs, one.count) for one in inspect(tmp_path / file).operations)

    assert operations("timed.tflite") == operations("file.tflite")


class Clock:
    """A processor whose time is what the calls say."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, *seconds):
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_calls_take_turns_on_the_processor(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency.time, "thread_time", clock)
    steady, busy = clock.takes(0.5), clock.takes(*[0.9] * 14, 0.25)
    seconds = latency._take_turns([steady, busy], 20)
    assert seconds.shape == (2, 20) and np.allclose(seconds[0], 0.5)
    assert np.allclose(seconds[1], [0.9] * 12 + [0.25] * 8)  # two went to find out how long it takes
    short = clock.takes(1e-6)
    assert np.allclose(latency._take_turns([short], 3), 1e-6)  # several calls in one timing


def test_a_candidate_is_measured_beside_the_original(monkeypatch):
    asked, speed = [], iter([1.0, 2.0, 3.0])  # a machine that gets slower and slower
    costs = {b"original": 8.0, b"small": 2.0}

    def time_files(contents, windows, runs):
        asked.append(list(contents))
        now = next(speed)
        return [now * costs[content] for content in contents]

    monkeypatch.setattr(latency, "time_files", time_files)
    monkeypatch.setattr(latency, "write", lambda model: model)
    measure = latency.measure_in_turns(b"original")
    assert measure(b"original") == 8.0
    assert measure(b"small") == 2.0 and measure(b"small") == 2.0
    assert asked == [[b"original"], [b"original", b"small"], [b"original", b"small"]]


def test_layers_are_timed_alone_and_only_once(monkeypatch):
    monkeypatch.setattr(latency, "LAYER_MS", {})
    timed = []

    def time_files(contents, windows, runs):
        timed.append(len(contents))
        return [float(len(content)) for content in contents]

    monkeypatch.setattr(latency, "time_files", time_files)
    model = build("siamese")
    found = latency.time_layers(model)
    assert set(found) == {"tower/conv", "tower/fc", "shared", "first", "second"}
    assert timed == [5] and all(ms > 0 for ms in found.values())
    assert latency.time_layers(build("siamese", seed=1)) == found and timed == [5]  # alike, with other weights
    assert found["shared"] % 2 == 0  # it is called twice


def test_the_model_by_layers_is_exact_where_it_was_timed_and_straight_between(monkeypatch):
    model = build("residual")
    traced = trace(model)

    def time_layers(net):
        return {name: 0.1 + 1e-5 * net.get_layer(name).count_params() for name in ("a", "b", "c")}

    monkeypatch.setattr(latency, "time_layers", time_layers)
    estimate = latency.estimate_ms(model, traced)
    every, half = whole(traced), keep_all_but(traced, 1, 2)
    for keep, net in ((every, model), (half, remove_channels(model, traced, half))):
        assert estimate(keep) == pytest.approx(sum(time_layers(net).values()))
    assert estimate(half) < estimate(keep_all_but(traced, 1, 4)) < estimate(every)


@pytest.mark.slow
def test_a_real_plan_for_milliseconds():
    keras.utils.set_random_seed(0)
    layers = [L.Conv2D(64, 3, activation="relu"), L.Conv2D(96, 3, activation="relu"), L.Conv2D(96, 3), L.Flatten()]
    model = keras.Sequential([keras.Input((24, 24, 3)), *layers, L.Dense(10)])
    before = litert_ms(model)
    plan = kpipe.plan_filters(model, target={"latency_ms": before / 2}, round_to=4)
    assert plan.after["latency_ms"] <= before / 2
    small = prune_filters(model, plan)
    assert small.count_params() == plan.after["params"] < 0.8 * plan.before["params"]
    assert 0 < litert_ms(small) < before
