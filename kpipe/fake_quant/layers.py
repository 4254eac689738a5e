"""Layers that compute with the rounding of an 8-bit runtime and still train."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.fake_quant.affine import HALF, SMALLEST_RANGE, channel_axes, nearest_level, through_zero, widen
from kpipe.fake_quant.masking import without_masks
from kpipe.layers import KERNEL_ROLES, Weight, weights


@keras.saving.register_keras_serializable(package="kpipe")
class FakeQuant(keras.layers.Layer):
    """Round a tensor to the levels of its range, as the runtime will; the gradient passes straight through.

    Tokens pass as they are: of whole numbers Keras says in many layers, as in those that merge, that they will be
    floats, so that only the call shows what there is to round.

    In training the range follows the batches by a moving average, low ← low + w · (min(batch) - low); in inference it
    is fixed. It always holds 0, and values are rounded with the range stretched so that 0 is one of its levels. A range
    that was set by calibration is the start of the average, and w = 1 - momentum: it comes from more samples than a
    batch has, and to correct the average for its start, as Adam does, would throw it away after the first batch. A
    range that nothing was told of must not count: there w = (1 - momentum) / (1 - momentumⁿ) at the nth batch, by which
    the average is that of the batches alone.

    Args:
        bits: Width of a level's number.
        momentum: Weight of the range so far, in [0, 1]; 1 keeps the calibrated range.
        fixed: The range, (low, high), when neither data nor training may change it.
        written: Whether to round by TensorFlow's own operation outside of training too: converters look for it.
        **kwargs: What a Keras layer takes.

    Example:
        >>> layer = FakeQuant()
        >>> layer.set_range(-1.0, 1.55)
        >>> layer(np.array([[0.004, 0.006, 9.0]], "float32")).numpy().round(4)
        array([[0.  , 0.01, 1.55]], dtype=float32)
    """

    def __init__(
        self,
        bits: int = 8,
        momentum: float = 0.99,
        fixed: tuple[float, float] | None = None,
        written: bool = False,
        **kwargs: Any,
    ):
        if not 2 <= bits <= 8:
            raise KpipeError(f"FakeQuant: bits is {bits}; expected 2 to 8.")
        if not 0.0 <= momentum <= 1.0:
            raise KpipeError(f"FakeQuant: momentum is {momentum}; expected a number in [0, 1].")
        super().__init__(**kwargs)
        self.bits, self.momentum, self.written, self.supports_masking = bits, momentum, written, True
        self.fixed = None if fixed is None else (float(fixed[0]), float(fixed[1]))
        low, high = widen(*(self.fixed or (0.0, 1.0)))
        self.low, self.high = self._state("low", low), self._state("high", high)
        self.unseen = self._state("unseen", 1.0)  # share of a start that means nothing in the average: momentum ** n
        self.left = self._state("left", np.inf)  # how many more batches the range follows

    def _state(self, name: str, value: float) -> keras.Variable:
        return self.add_weight(name=name, shape=(), initializer=keras.initializers.Constant(value), trainable=False)

    def build(self, input_shape: Any) -> None:
        """Do nothing: the range has no shape."""

    def set_range(self, low: float, high: float) -> None:
        """Fix the range; it is widened to hold 0."""
        low, high = widen(low, high)
        self.low.assign(low)
        self.high.assign(high)
        self.unseen.assign(0.0)

    def freeze(self, after: int = 0) -> None:
        """Let the range follow so many more batches of a training and no more; it counts them inside the train step."""
        self.left.assign(float(after))

    @property
    def follows(self) -> bool:
        """Whether training may move the range."""
        return self.fixed is None and self.momentum < 1.0

    def ends(self) -> tuple[Any, Any]:
        """Give the least and the greatest level as tensors; constants where the range is fixed."""
        if self.fixed is None:
            return through_zero(self.low.value, self.high.value, self.bits)
        with tf.init_scope():
            low, high = (np.asarray(end) for end in through_zero(*widen(*self.fixed), self.bits))
        return tf.constant(low), tf.constant(high)

    def range(self) -> tuple[float, float]:
        """Give the range, (low, high), as it was set or followed."""
        low, high = (float(np.asarray(end)) for end in (self.low, self.high))
        return low, high

    def grid(self) -> tuple[float, float]:
        """Give the least and the greatest level to which it rounds."""
        low, high = (float(np.asarray(end)) for end in self.ends())
        return low, high

    def call(self, x: Any, training: bool | None = None, observe: bool = True) -> Any:
        """Round `x`, shape (batch, ...); with `observe` off the range does not follow it."""
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
            return x
        if training and observe and self.follows:
            seen = tf.stop_gradient(x)
            least = tf.minimum(tf.reduce_min(seen), 0.0)
            # A batch of zeros only must not shrink the range to nothing.
            greatest = tf.maximum(tf.maximum(tf.reduce_max(seen), 0.0), least + SMALLEST_RANGE)
            weight = self._weight_of_batch()
            for variable, end in ((self.low, least), (self.high, greatest)):
                variable.assign(variable + weight * (end - variable))
        low, high = (tf.stop_gradient(end) for end in self.ends())
        if training or self.written:  # TensorFlow's operation is faster
            return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=self.bits)
        return nearest_level(x, low, high, self.bits)

    def _weight_of_batch(self) -> Any:
        """Count a batch, and give its weight in the average: 0 where the range is frozen."""
        following = tf.cast(self.left > 0, tf.float32)
        self.left.assign(self.left - following)
        self.unseen.assign(self.unseen * (1.0 + following * (self.momentum - 1.0)))
        return following * (1.0 - self.momentum) / (1.0 - following * self.unseen)

    def load_own_variables(self, store: Any) -> None:
        """Load the state; a file of an earlier version holds the range alone, which was calibrated."""
        if "2" in store:
            super().load_own_variables(store)
        else:
            self.set_range(*(float(np.asarray(store[place])) for place in ("0", "1")))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Keep the shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        own = {"bits": self.bits, "momentum": self.momentum, "fixed": self.fixed, "written": self.written}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="kpipe")
class QuantizedWeights(keras.layers.Wrapper):
    """Call a layer with its kernels rounded to per-channel levels; gradients reach the float kernels unchanged.

    The kernels are symmetric and narrow (-127 to 127 at 8 bits), with s = max|w| / 127 for each output channel. Each
    has a saved `mask` of zeros and ones; while it trains, zeros of the mask hold the kernel at exactly 0.

    Args:
        layer: A layer with a kernel: a convolution, a depthwise one, or dense.
        bits: Width of a level's number; 16 rounds to floats of half the size.
        **kwargs: What a Keras layer takes.

    Example:
        >>> inner = keras.layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(0.3))
        >>> float(QuantizedWeights(inner)(np.ones((1, 1), "float32"))[0, 0])
        0.30000001192092896
    """

    def __init__(self, layer: keras.Layer, bits: int = 8, **kwargs: Any):
        if not (2 <= bits <= 8 or bits == HALF):
            raise KpipeError(f"QuantizedWeights of {layer.name!r}: bits is {bits}; expected 2 to 8, or 16 for floats.")
        super().__init__(layer, **kwargs)
        self.bits, self.supports_masking = bits, True
        self.masks: list[keras.Variable] = []

    def build(self, input_shape: Any = None) -> None:
        """Build the layer, and a mask of ones for each of its kernels."""
        super().build(input_shape)
        kernels = self.kernels()
        if not kernels:
            raise KpipeError(f"Layer {self.layer.name!r} ({type(self.layer).__name__}) has no kernel to quantize.")
        for kernel in kernels:
            name = "mask" if len(kernels) == 1 else f"{kernel.name}_mask"
            mask = self.add_weight(
                name=name, shape=kernel.variable.shape, dtype="uint8", initializer="ones", trainable=False
            )
            self.masks.append(mask)
            kernel.variable.constraint = _Masked(mask, kernel.variable.constraint)

    def kernels(self) -> tuple[Weight, ...]:
        """List the layer's kernels."""
        return tuple(weight for weight in weights(self.layer) if weight.role in KERNEL_ROLES)

    def hold_zeros(self) -> None:
        """Take the kernels' zeros as they are now into the masks."""
        for kernel, mask in zip(self.kernels(), self.masks, strict=True):
            mask.assign((np.asarray(kernel.variable) != 0).astype(np.uint8))

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Call the layer on `x` with rounded kernels."""
        kernels = {id(kernel.variable): kernel for kernel in self.kernels()}
        mapping = []
        for variable in self.layer.variables:
            kernel = kernels.get(id(variable))
            mapping.append((variable, variable.value if kernel is None else self.rounded(kernel)))
        with keras.StatelessScope(state_mapping=mapping), without_masks(*([] if self.layer.supports_masking else [x])):
            return self.layer(x)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Hand a mask on where the wrapped layer does."""
        return previous_mask if self.layer.supports_masking else None

    def rounded(self, kernel: Weight) -> Any:
        """Give a kernel on its grid; the gradient passes to all entries, the greatest ones too."""
        if self.bits == HALF:
            halves = tf.grad_pass_through(lambda value: tf.cast(tf.cast(value, tf.float16), value.dtype))
            return halves(tf.convert_to_tensor(kernel.variable.value))
        axes, order = _channels_last(kernel)

        def on_grid(value: Any) -> Any:
            # (..., out, in) -> (..., in, out); (..., in, multiplier) -> (..., in * multiplier): the operation knows one
            # channel axis, the last.
            turned = tf.transpose(value, order)
            flat = tf.reshape(turned, [*turned.shape[: -len(axes)], int(np.prod([value.shape[axis] for axis in axes]))])
            largest = tf.reduce_max(tf.abs(flat), axis=list(range(len(flat.shape) - 1)))
            end = tf.where(largest > 0, largest, tf.ones_like(largest))
            rounded = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                flat, -end, end, num_bits=self.bits, narrow_range=True
            )
            return tf.transpose(tf.reshape(rounded, turned.shape), np.argsort(order))

        return tf.grad_pass_through(on_grid)(tf.convert_to_tensor(kernel.variable.value))

    def greatest(self, kernel: Weight) -> Any:
        """Give the greatest magnitude of each channel of a kernel, shaped like the layer's bias."""
        axes, order = _channels_last(kernel)
        turned = tf.transpose(tf.abs(tf.convert_to_tensor(kernel.variable.value)), order)
        largest = tf.reduce_max(turned, axis=list(range(len(order) - len(axes))))
        bias = getattr(self.layer, "bias", None)
        return tf.reshape(largest, [-1] if bias is None or len(bias.shape) == 1 else largest.shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Give the wrapped layer's output shape."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Carry all arguments."""
        return {**super().get_config(), "bits": self.bits}


def _channels_last(kernel: Weight) -> tuple[tuple[int, ...], list[int]]:
    """Give the channel axes of a kernel, and the order of all axes in which they come last."""
    rank = len(kernel.variable.shape)
    axes = channel_axes(kernel.layout, rank)
    return axes, [axis for axis in range(rank) if axis not in axes] + list(axes)


class _Masked:
    """Project a kernel onto its mask, after the user's own constraint."""

    def __init__(self, mask: keras.Variable, before: Any):
        self.mask, self.before = mask, before

    def __call__(self, kernel: Any) -> Any:
        kernel = tf.convert_to_tensor(kernel if self.before is None else self.before(kernel))
        return tf.where(tf.cast(self.mask.value, tf.bool), kernel, tf.zeros_like(kernel))
