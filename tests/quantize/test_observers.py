"""Observers against naive NumPy on the raw values, and ranges that are calibrated, follow and freeze."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

import kpipe
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.fake_quant import FakeQuant
from kpipe.quantize.freeze import freeze_ranges
from kpipe.quantize.observers import OBSERVERS, observer_of
from kpipe.quantize.seen import Seen

WIDTH = 2.0**-7
"""Of a bin of the histogram, in relation to its values."""


def drawn(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "normal":
        return rng.normal(size=20_000).astype("float32")
    if kind == "heavy tails":
        return rng.standard_t(2, size=20_000).astype("float32") * np.float32(1e-3)
    return np.maximum(rng.laplace(size=20_000), 0).astype("float32")  # behind a ReLU


KINDS = ("normal", "heavy tails", "relu")


def observed(values: np.ndarray, spec: Any, bits: int = 8) -> tuple[float, float]:
    return observer_of(spec).range(Seen.of(*np.split(values, 8)), bits, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_minmax(kind):
    values = drawn(kind)
    assert observed(values, "minmax") == (values.min(), values.max())


def quantiles(values: np.ndarray, fraction: float) -> list[float]:
    """Give the ends that so much of the values is above, and below."""
    return [sign * float(np.quantile(sign * values, fraction, method="inverted_cdf")) for sign in (-1, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.9, 0.999, 1.0])
def test_percentile(kind, fraction):
    values = drawn(kind)
    expected = quantiles(values, fraction)
    np.testing.assert_allclose(
        observed(values, {"percentile": {"fraction": fraction}}), expected, rtol=WIDTH, atol=1e-30
    )


def naive_error(values: np.ndarray, low: float, high: float, bits: int) -> float:
    """Round as TensorFlow's operation does, and square."""
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    levels = np.clip(np.round(values.astype("float64") / step) + zero, 0, 2**bits - 1)
    return float(np.mean((values - (levels - zero) * step) ** 2))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_near_the_least_error_of_all_pairs_of_ends(kind, bits):
    values = drawn(kind)
    found = naive_error(values, *observed(values, "mse", bits), bits)
    shares = np.linspace(0.05, 1, 39)
    lows = shares * values.min() if values.min() < 0 else [0.0]
    best = min(naive_error(values, low, high, bits) for low in lows for high in shares * values.max())
    assert found < 1.01 * best
    if (kind, bits) == ("relu", 4):
        assert found < 0.5 * naive_error(values, float(values.min()), float(values.max()), bits)


def test_moving_average_is_adams_debiased_one():
    values = drawn("normal")
    average, momentum = np.zeros(2), 0.8
    for batch in np.split(values, 8):
        average = momentum * average + (1 - momentum) * np.array([batch.min(), batch.max()])
    expected = average / (1 - momentum**8)
    np.testing.assert_allclose(observed(values, {"moving_average": {"momentum": momentum}}), expected, rtol=1e-6)


def test_memory_does_not_grow_with_the_values():
    seen = Seen.of(*[drawn(kind) for kind in KINDS] * 4)
    assert seen.counts is not None and seen.counts.nbytes == 2**16 * 8
    assert seen.counts.sum() == 12 * 20_000


@pytest.mark.parametrize("name", list(OBSERVERS))
def test_a_constant_tensor_has_a_range(name):
    for value in (0.0, 3.0, -2.5):
        low, high = observed(np.full(64, value, "float32"), name)
        assert min(low, 0) <= value <= max(high, 0) or abs(value - high) < WIDTH * abs(value)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("percentil", r"Unknown observer 'percentil'.*Did you mean 'percentile'"),
        ({"percentile": {"share": 0.9}}, r"'percentile' received .*'share'.*expected fraction"),
        ({"minmax": {"fraction": 0.9}}, r"'minmax' received .*expected none"),
        ({"percentile": {"fraction": 0.2}}, r"fraction is 0.2"),
        ({"moving_average": {"momentum": 1.0}}, r"momentum is 1.0"),
        ({"minmax": {}, "mse": {}}, r"observer is .*expected one of minmax"),
        (3, r"observer is 3; expected one of minmax"),
        (lambda seen, bits: (1.0, -1.0), r"gives \(1, -1\) for 'x_range', which saw values from -1 to 1"),
        (lambda seen, bits: (0.0, float("nan")), r"gives \(0, nan\)"),
    ],
    ids=["unknown", "argument", "no argument", "fraction", "momentum", "two", "number", "turned", "nan"],
)
def test_bad_observers(spec, why):
    model = keras.Sequential([keras.Input((3,), name="x"), L.ReLU()])
    x = np.linspace(-1, 1, 30, dtype="float32").reshape(10, 3)
    with pytest.raises(KpipeError, match=why):
        kpipe.quantize(model, calibration=x, observer=spec)


def net() -> Any:
    return keras.Sequential([keras.Input((3,), name="x"), L.Dense(4, "softmax", name="fc")])


def test_quantize_takes_an_observer_and_leaves_fixed_ranges():
    x = drawn("heavy tails")[:3000].reshape(-1, 3)
    made = kpipe.quantize(net(), calibration=x, observer={"percentile": {"fraction": 0.99}}, calibration_samples=None)
    np.testing.assert_allclose(made.get_layer("x_range").range(), quantiles(x, 0.99), rtol=WIDTH)
    assert made.get_layer("fc_range").range() == (0.0, 255 / 256)
    mine = kpipe.quantize(net(), calibration=x, observer=lambda seen, bits: (-0.5, seen.high))
    assert mine.get_layer("x_range").range() == (-0.5, pytest.approx(x[:512].max()))


def test_observers_that_clip_keep_their_ranges_in_training_unless_told_otherwise():
    x = drawn("normal")[:300].reshape(-1, 3)
    for spec, momentum, moves in (
        ("minmax", None, True),
        ("moving_average", None, True),
        ("mse", None, False),
        ("percentile", None, False),
        ("percentile", 0.5, True),
    ):
        made: Any = kpipe.quantize(net(), calibration=x, observer=spec, momentum=momentum)
        layer = made.get_layer("x_range")
        before = layer.range()
        made(3 * x, training=True)
        assert (layer.range() != before) == moves, spec


def test_a_range_that_nothing_was_told_of_is_the_debiased_average_of_the_batches():
    layer, momentum, average = FakeQuant(momentum=0.9), 0.9, np.zeros(2)
    for batch in np.split(drawn("normal"), 5):
        layer(batch, training=True)
        average = momentum * average + (1 - momentum) * np.array([batch.min(), batch.max()])
    np.testing.assert_allclose(layer.range(), average / (1 - momentum**5), rtol=1e-5)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("jit", "at_once"), [(False, 1), (True, 4)])
def test_ranges_freeze_after_just_so_many_batches_of_a_plain_fit(jit, at_once, tmp_path):
    x = drawn("normal")[:600].reshape(-1, 3)
    made: Any = kpipe.quantize(net(), calibration=x / 4, momentum=0.5)
    layer = made.get_layer("x_range")
    average = np.array(layer.range())
    for batch in np.split(x, 20)[:6]:
        average = 0.5 * average + 0.5 * np.array([batch.min(), batch.max()])
    loss = "sparse_categorical_crossentropy"
    made.compile("sgd", loss, jit_compile=jit, steps_per_execution=at_once)
    labels = np.zeros(len(x), int)
    freeze: Any = kpipe.callbacks.FreezeRanges(after=6)
    made.fit(x, labels, batch_size=10, epochs=1, shuffle=False, verbose=0, callbacks=[freeze])
    np.testing.assert_allclose(layer.range(), average, rtol=1e-5)
    made.save(tmp_path / "frozen.keras")
    again: Any = keras.models.load_model(tmp_path / "frozen.keras")
    again.compile("sgd", loss)
    again.fit(3 * x, labels, epochs=1, verbose=0)
    np.testing.assert_allclose(again.get_layer("x_range").range(), average, rtol=1e-5)
    freeze_ranges(again, after=1)(3 * x, training=True)
    assert again.get_layer("x_range").range()[1] > 1.2 * average[1]


def test_what_cannot_freeze_is_said():
    x = drawn("normal")[:30].reshape(-1, 3)
    with pytest.raises(KpipeError, match="after is -1"):
        kpipe.callbacks.FreezeRanges(after=-1)
    with pytest.raises(KpipeError, match="not quantized"):
        freeze_ranges(net())
    with pytest.warns(NoEffectWarning, match="No range"):
        freeze_ranges(kpipe.quantize(net(), calibration=x, observer="mse"))


def test_a_file_that_holds_ranges_alone_still_loads(tmp_path):
    layer = FakeQuant()
    layer.load_own_variables({"0": np.float32(-1), "1": np.float32(2)})
    assert layer.range() == (-1.0, 2.0) and float(layer.unseen) == 0.0
