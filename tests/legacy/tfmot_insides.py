"""TFMOT's insides as its tests name them, each answered by what does that work in kpipe; for `tfmot_upstream.py`.

What has no like in kpipe is not here: the cases that ask for it are skipped there, each with its reason.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.patterns import Block
from kpipe.unstructured.prunable import prunability
from kpipe.unstructured.pruning_step import ask
from kpipe.unstructured.wrapper import PruneLowMagnitude, pattern_for

LAYERS = [
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Dense, keras.layers.Embedding),
    *(keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
]


class PruneRegistry:
    """What TFMOT knows of layers: what kpipe knows of them, and how it lists the weights that it masks."""

    _LAYERS_WEIGHTS_MAP: ClassVar = {cls: ["kernel"] for cls in LAYERS}
    _RNN_LAYERS: ClassVar = {keras.layers.RNN, keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU}

    @staticmethod
    def supports(layer: keras.Layer) -> bool:
        """Tell whether kpipe knows what the weights of a layer do."""
        return not prunability(layer).unknown

    @staticmethod
    def make_prunable(layer: keras.Layer) -> None:
        """Wrap a layer; it lists what the wrapper masks when it is asked, built by then."""
        wrapper = PruneLowMagnitude(layer)

        def masked() -> list[keras.Variable]:
            object.__delattr__(layer, "get_prunable_weights")  # no method of the layer's own: kpipe would follow it
            wrapper.build()
            return [weight for weight, *_ in wrapper.pruning_vars]

        object.__setattr__(layer, "get_prunable_weights", masked)


class One(keras.layers.Layer):
    """Hold one weight, which is pruned."""

    def __init__(self, value: Any):
        super().__init__()
        value = np.asarray(value)
        value = value if value.dtype.kind == "f" else value.astype("float32")
        self.one = self.add_weight(shape=value.shape, dtype=value.dtype.name, initializer="zeros")
        self.one.assign(value)
        self.built = True

    def get_prunable_weights(self) -> list[keras.Variable]:
        """List it."""
        return [self.one]


class Pruning:
    """What computes TFMOT's masks: wrappers of kpipe, each round one of the weights."""

    def __init__(
        self,
        pruning_vars: Any,
        training_step_fn: Callable[[], Any],
        pruning_schedule: Callable[[Any], tuple[Any, Any]],
        block_size: tuple[int, int],
        block_pooling_type: str | None,
        sparsity_m_by_n: Any = None,
    ):
        self.training_step, self.schedule = training_step_fn, pruning_schedule
        self.pattern = {"block_size": block_size, "block_pooling_type": block_pooling_type or "AVG"}
        self.pattern["sparsity_m_by_n"] = sparsity_m_by_n or None
        several = [] if callable(pruning_vars) else pruning_vars
        self.held = [(weight, mask, self.wrap(weight)) for weight, mask, _ in several]

    def wrap(self, value: Any) -> PruneLowMagnitude:
        """Wrap a weight."""
        wrapper = PruneLowMagnitude(One(value), **self.pattern)
        wrapper.build()
        return wrapper

    def asked(self) -> tuple[bool, float]:
        """Ask the schedule."""
        return ask(self.schedule, int(self.training_step()) if self.training_step else 0)

    def conditional_mask_update(self) -> None:
        """Bring the masks to the sparsity, if the schedule says so."""
        due, sparsity = self.asked()
        for _, mask, wrapper in self.held:
            if due:
                wrapper.drop(sparsity)
            [(_, found, _)] = wrapper.pruning_vars
            mask.assign(tf.cast(found, mask.dtype))

    def weight_mask_op(self) -> None:
        """Set to zero what the masks drop."""
        for weight, _, wrapper in self.held:
            wrapper.project()
            weight.assign(wrapper.layer.one)

    def _update_mask(self, weights: Any) -> tuple[tf.Tensor, tf.Tensor]:
        wrapper = self.wrap(weights)
        if wrapper.left_dense:
            raise ValueError(wrapper.left_dense)
        wrapper.drop(self.asked()[1])
        [(_, mask, threshold)] = wrapper.pruning_vars
        return tf.convert_to_tensor(threshold), tf.cast(mask, "float32")

    _maybe_update_block_mask = _update_mask


def factorized_pool(
    weights: tf.Variable, window_shape: list[int], pooling_type: str, strides: list[int], padding: str
) -> tf.Tensor:
    """Give the scores of blocks."""
    return tf.constant(Block(*window_shape, pooling_type.lower()).pool(weights.numpy()))


def expand_tensor(tensor: tf.Tensor, block_dim: list[int]) -> tf.Tensor:
    """Repeat the answer for each block over its entries."""
    shape = tuple(np.multiply(tensor.shape, block_dim))
    return tf.constant(Block(*block_dim).spread(tensor.numpy(), shape))


def kronecker_product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Multiply as NumPy does: what `expand_tensor` is compared with."""
    return tf.constant(np.kron(left, right))


def generate_m_by_n_mask(weights: Any, m_by_n: tuple[int, int]) -> np.ndarray:
    """Give the mask of weights that lie (outputs, inputs), as 0 and 1; TFMOT has another class of error."""
    try:
        pattern = pattern_for((1, 1), "AVG", m_by_n)
    except KpipeError as error:
        raise tf.errors.InvalidArgumentError(None, None, str(error)) from error
    return pattern(np.abs(weights).T, pattern.limit).T.astype(int)


def is_pruned_m_by_n(weights: Any, m_by_n: tuple[int, int] = (2, 4), last_channel: str = "C_OUT") -> bool:
    """Count the zeros of each whole or ragged group along the inputs: no work of kpipe, but the judge of it."""
    zeros, size = m_by_n
    kernel = weights.numpy() if last_channel == "C_IN" else np.moveaxis(weights.numpy(), -2, -1)
    groups = [kernel[..., first : first + size] for first in range(0, kernel.shape[-1], size)]
    return all((np.count_nonzero(group, axis=-1) <= size - zeros).all() for group in groups)


MODULES: dict[str, dict[str, Any]] = {
    "prune_registry": {"PruneRegistry": PruneRegistry},
    "pruning_impl": {"Pruning": Pruning},
    "pruning_utils": {
        function.__name__: function
        for function in (factorized_pool, expand_tensor, kronecker_product, generate_m_by_n_mask, is_pruned_m_by_n)
    },
}
"""Module of TFMOT, by its last name -> the names in it."""
