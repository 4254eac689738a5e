"""The arithmetic of 8-bit grids against TensorFlow's own operations and against naive loops."""

import numpy as np
import pytest
import tensorflow as tf

from kpipe.fake_quant.affine import channel_axes, channel_scales, on_grid, to_levels, widen
from kpipe.layers import DEPTHWISE, NATURAL


@pytest.mark.parametrize("seen", [(0.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (1e-9, 2e-9)])
def test_widened_range_holds_zero_and_has_a_width(seen):
    low, high = widen(*seen)
    assert low <= 0.0 <= high
    assert low <= seen[0] or seen[0] > 0
    assert high - low > 1e-6


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
