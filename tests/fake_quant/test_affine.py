"""The arithmetic of 8-bit grids against TensorFlow's own operations and against naive loops."""

import numpy as np
import pytest
import tensorflow as tf

from kpipe.fake_quant.affine import channel_axes, channel_scales, nearest_level, on_grid, through_zero, to_levels, widen
from kpipe.layers import DEPTHWISE, NATURAL


@pytest.mark.parametrize("seen", [(0.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (1e-9, 2e-9)])
def test_widened_range_holds_zero_and_has_a_width(seen):
    low, high = widen(*seen)
    assert low <= 0.0 <= high
    assert low <= seen[0] or seen[0] > 0
    assert high - low > 1e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_a_range_is_stretched_until_zero_is_a_level(bits):
    rng = np.random.default_rng(0)
    for low, high in [(-1.0, 1.0), (0.0, 3.0), (-2.0, 0.0), *(rng.uniform(0, 5, (50, 2)) * (-1, 1))]:
        begin, end = (float(each) for each in through_zero(low, high, bits))
        step = (end - begin) / (2**bits - 1)
        level = -begin / step
        assert abs(level - round(level)) < 1e-4
        assert begin <= low + 1e-6 and end >= high - 1e-6
        feasible = [max(-low / k, high / (2**bits - 1 - k)) for k in range(1, 2**bits - 1)]
        feasible += [high / (2**bits - 1)] * int(low == 0) + [-low / (2**bits - 1)] * int(high == 0)
        assert step == pytest.approx(min(feasible), rel=1e-5)


def test_pixels_do_not_lie_between_two_levels():
    pixels = (np.arange(256) / 127.5 - 1).astype("float32")

    def between(low, high):
        """Give the fraction of pixels that lie in the middle between two levels, of which 0 is one."""
        return np.mean(np.abs(pixels * 255 / (high - low) % 1 - 0.5) < 1e-3)

    assert between(-1.0, 1.0) == 1.0
    assert between(*(float(end) for end in through_zero(-1.0, 1.0))) < 0.02


@pytest.mark.parametrize(("layout", "shape"), [(NATURAL, (3, 3, 4, 5)), (NATURAL, (7, 5)), (DEPTHWISE, (3, 3, 4, 2))])
def test_kernels_lie_on_their_grid_as_the_operation_puts_them(layout, shape):
    w = np.random.default_rng(1).normal(size=shape).astype("float32")
    axes = channel_axes(layout, len(shape))
    flat = w.reshape(*shape[: axes[0]], -1)
    end = np.abs(flat).reshape(-1, flat.shape[-1]).max(0)
    expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(flat, -end, end, narrow_range=True).numpy()
    np.testing.assert_allclose(on_grid(w, axes), expected.reshape(shape), atol=2e-7)


def test_levels_by_a_naive_loop():
    w = np.random.default_rng(2).normal(size=(6, 3))
    w[:, 1] = 0.0
    levels = to_levels(w, channel_scales(w, (1,)))
    for channel in (0, 2):
        largest = max(abs(value) for value in w[:, channel])
        assert levels[:, channel].tolist() == [round(value / (largest / 127)) for value in w[:, channel]]
    assert not levels[:, 1].any()
    assert np.abs(levels).max() == 127


def test_putting_a_kernel_on_its_grid_twice_changes_nothing_and_keeps_zeros():
    w = np.random.default_rng(3).normal(size=(3, 3, 4, 8)).astype("float32")
    w[np.random.default_rng(4).random(w.shape) < 0.5] = 0.0
    once = on_grid(w, (3,))
    np.testing.assert_allclose(on_grid(once, (3,)), once, rtol=1e-6)
    assert (once[w == 0] == 0).all()
    assert not np.array_equal(once, w)


def test_values_next_to_the_middle_of_two_levels_are_rounded_as_integer_kernels_do():
    step, zero = np.float32(0.023), 117
    low, high = -zero * step, (255 - zero) * step
    middles = (np.arange(-120, 140) + 0.5).astype("float32") * step
    x = np.concatenate([np.nextafter(middles, end, dtype="float32") for end in (-np.inf, np.inf)] + [middles])
    expected = np.clip(np.round(x / step), -zero, 255 - zero) * step
    np.testing.assert_allclose(nearest_level(tf.constant(x), low, high), expected, atol=1e-6)
    other = np.asarray(tf.quantization.fake_quant_with_min_max_vars(x, low, high)) - expected
    assert np.abs(other).max() > 0.9 * step  # the control


def test_gradients_reach_what_lies_inside_a_range():
    x = tf.constant([-3.0, -0.4, 0.3, 1.2, 9.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = nearest_level(x, -1.0, 1.55)
    np.testing.assert_allclose(tape.gradient(y, x), [0, 1, 1, 1, 0], rtol=1e-6)
