"""Regularisers: what pulls whole channels towards zero while a model trains, before they go."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.layers import KERNEL_ROLES
from kpipe.registry import Registry

REGULARIZERS: Registry[type["Regularizer"]] = Registry("regularizer")
"""Name -> class of a regulariser."""


@dataclass(frozen=True)
class Channels:
    """Hold what a regulariser may look at, of one group of channels.

    Args:
        norms: The L2 norm of all the weights of each channel that the regulariser judges, shape (channels,); 0 for a
            channel that has gone.
        sizes: The number of those weights, shape (channels,).
        step: The number of optimizer updates done so far, a scalar.
        ratio: The fraction of the channels that go in the end.
    """

    norms: tf.Tensor
    sizes: np.ndarray
    step: tf.Tensor
    ratio: float


class Regularizer(ABC):
    """Pull channels towards zero: to the gradient of each of its weights, a factor of the channel times it is added.

    One of one's own is a frozen dataclass with a method `factors`, under `@REGULARIZERS("name")` if it is to have one.

    Example:
        >>> @dataclass(frozen=True)
        ... class Decay(Regularizer):
        ...     "Plain L2 on the kernels of channels."
        ...     roles = KERNEL_ROLES
        ...     strength: float = 1e-4
        ...     def factors(self, channels):
        ...         return self.strength * tf.ones_like(channels.norms)
        >>> regularizer_of(Decay(0.5)).strength
        0.5
    """

    roles: ClassVar[tuple[str, ...]] = (*KERNEL_ROLES, "gamma")
    """What a weight has to be; the others are not pulled."""
    layers: ClassVar[type | None] = None
    """Class of the layers whose weights are pulled; None for all."""
    alone: ClassVar[bool] = False
    """Whether each weight is a group of its own: the norms are of that weight alone."""

    @abstractmethod
    def factors(self, channels: Channels) -> tf.Tensor:
        """Give each channel's factor, shape (channels,); it runs inside the compiled train step."""

    def judges(self, layer: Any, role: str) -> bool:
        """Tell whether a weight of this role of a layer is pulled."""
        return role in self.roles and (self.layers is None or isinstance(layer, self.layers))


@REGULARIZERS("group_lasso")
@dataclass(frozen=True)
class GroupLasso(Regularizer):
    """Add strength * sqrt(size) * the L2 norm of each channel to the loss: its weights go to zero together.

    The factor is strength * sqrt(size) / norm, and 0 for a channel that has gone.

    Args:
        strength: Of the penalty.

    Example:
        >>> channels = Channels(tf.constant([2.0, 0.0]), np.array([4.0, 4.0]), tf.constant(0), 0.5)
        >>> GroupLasso(0.1).factors(channels).numpy()
        array([0.1, 0. ], dtype=float32)

    References:
        Yuan and Lin, Model selection and estimation in regression with grouped variables (2006); for filters Wen et
        al., Learning structured sparsity in deep neural networks (2016), https://arxiv.org/abs/1608.03665
    """

    strength: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what is no strength."""
        _check_positive(self, "strength")

    def factors(self, channels: Channels) -> tf.Tensor:
        """Give strength * sqrt(size) / norm."""
        return tf.math.divide_no_nan(self.strength * np.sqrt(channels.sizes).astype("float32"), channels.norms)


@REGULARIZERS("depgraph")
@dataclass(frozen=True)
class DepGraph(Regularizer):
    """Pull each channel the more the smaller it is in its group: DepGraph's sparse learning.

    The factor is strength * 2 ** (alpha * (largest - norm) / (largest - smallest)), over the channels that are left.

    Args:
        strength: The factor of the largest channel.
        alpha: The smallest channel has 2 ** alpha times as much.

    Example:
        >>> channels = Channels(tf.constant([3.0, 1.0, 2.0]), np.ones(3), tf.constant(0), 0.5)
        >>> DepGraph(0.5).factors(channels).numpy()
        array([0.5, 8. , 2. ], dtype=float32)

    References:
        Fang et al., DepGraph: Towards any structural pruning (2023), https://arxiv.org/abs/2301.12900
    """

    strength: float = 1e-4
    alpha: float = 4.0

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit."""
        _check_positive(self, "strength", "alpha")

    def factors(self, channels: Channels) -> tf.Tensor:
        """Give strength * 2 ** (alpha * share)."""
        largest = tf.reduce_max(channels.norms)
        smallest = tf.reduce_min(tf.where(channels.norms > 0, channels.norms, largest))
        share = tf.math.divide_no_nan(largest - channels.norms, largest - smallest)
        return self.strength * tf.pow(2.0, self.alpha * tf.minimum(share, 1.0))


@REGULARIZERS("growing")
@dataclass(frozen=True)
class Growing(Regularizer):
    """Pull the channels that are to go, the smallest of each group, by a factor that grows and grows.

    The factor is min(ceiling, strength * ((step - begin_step) // every)) for as many channels of a group as go in the
    end, 0 for the others. Let the schedule take the channels when the factor has come to its ceiling.

    Args:
        strength: How much the factor grows at a time.
        every: Optimizer updates between.
        ceiling: The most that it grows to.
        begin_step: Number of optimizer updates at which it begins to grow.

    Example:
        >>> channels = Channels(tf.constant([3.0, 1.0, 2.0, 4.0]), np.ones(4), tf.constant(25), 0.5)
        >>> Growing(0.25).factors(channels).numpy()
        array([0. , 0.5, 0.5, 0. ], dtype=float32)

    References:
        Wang, Qin, Zhang and Fu, Neural pruning via growing regularization (2021), https://arxiv.org/abs/2012.09243
    """

    strength: float = 1e-4
    every: int = 10
    ceiling: float = 1.0
    begin_step: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit."""
        _check_positive(self, "strength", "every", "ceiling")

    def factors(self, channels: Channels) -> tf.Tensor:
        """Give the grown factor where a channel is to go."""
        count = len(channels.sizes)
        doomed = min(math.floor(channels.ratio * count + 0.5), count - 1)
        if doomed < 1:
            return tf.zeros_like(channels.norms)
        times = tf.cast(tf.maximum(channels.step - self.begin_step, 0) // self.every, tf.float32)
        bound = tf.sort(channels.norms)[doomed - 1]
        return tf.where(channels.norms <= bound, tf.minimum(self.ceiling, self.strength * times), 0.0)


@REGULARIZERS("slimming")
@dataclass(frozen=True)
class Slimming(Regularizer):
    """Add strength * the sum of |gamma| over the batch norms to the loss: network slimming. Rank by "bn_scale" then.

    Args:
        strength: Of the penalty.

    Example:
        >>> Slimming(0.5).factors(Channels(tf.constant([2.0, 0.0]), np.ones(2), tf.constant(0), 0.5)).numpy()
        array([0.25, 0.  ], dtype=float32)

    References:
        Liu et al., Learning efficient convolutional networks through network slimming (2017),
        https://arxiv.org/abs/1708.06519
    """

    roles: ClassVar[tuple[str, ...]] = ("gamma",)
    layers: ClassVar[type | None] = keras.layers.BatchNormalization
    alone: ClassVar[bool] = True
    strength: float = 1e-4

    def __post_init__(self) -> None:
        """Refuse what is no strength."""
        _check_positive(self, "strength")

    def factors(self, channels: Channels) -> tf.Tensor:
        """Give strength / |gamma|, which makes strength * sign(gamma)."""
        return tf.math.divide_no_nan(tf.fill(channels.norms.shape, self.strength), channels.norms)


def _check_positive(one: Regularizer, *names: str) -> None:
    for name in names:
        value = getattr(one, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise KpipeError(f"{type(one).__name__}: {name} is {value!r}; expected a number above 0.")


def regularizer_of(spec: Any) -> Regularizer | None:
    """Make a regulariser from its name, from {name: {argument: value}}, or take one as it is; None stays None.

    Raises:
        KpipeError: When the name or an argument is not known, or does not fit.

    Example:
        >>> regularizer_of({"depgraph": {"strength": 5e-4}})
        DepGraph(strength=0.0005, alpha=4.0)
        >>> regularizer_of("slimming")
        Slimming(strength=0.0001)
    """
    if spec is None or isinstance(spec, Regularizer):
        return spec
    named = {spec: {}} if isinstance(spec, str) else spec
    if not isinstance(named, Mapping) or len(named) != 1 or not isinstance(next(iter(named.values())), Mapping):
        raise KpipeError(f"regularizer is {spec!r}; expected a name, or {{name: {{argument: value}}}}.")
    ((name, arguments),) = named.items()
    kind = REGULARIZERS[name]
    try:
        return kind(**arguments)
    except TypeError as fault:
        raise KpipeError(f"The regularizer {name!r} does not take {dict(arguments)!r}: {fault}.") from fault
