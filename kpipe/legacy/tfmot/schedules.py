"""TFMOT's schedules by their names and arguments: kpipe's, answering with tensors."""

from abc import ABC, abstractmethod
from typing import Any, Self

import keras
import tensorflow as tf

from kpipe import schedules
from kpipe.schedules.checks import check_fraction, check_frequency, check_way


class PruningSchedule(ABC):
    """Say at each training step whether to update the masks, and to which sparsity; derive your own from it.

    A schedule of one's own has `__call__(step) -> (bool, float)`, which may answer with tensors, and `get_config() ->
    {"class_name": ..., "config": {...}}`. The methods with an underscore are those that TFMOT lends to such schedules.

    Example:
        >>> class Always(PruningSchedule):
        ...     "Ask for 0.3 at every step from the second on."
        ...     def __call__(self, step):
        ...         return self._should_prune_in_step(step, 2, -1, 1), 0.3
        ...     def get_config(self):
        ...         return {"class_name": "Always", "config": {}}
        >>> bool(Always()(1)[0]), bool(Always()(2)[0])
        (False, True)
    """

    @abstractmethod
    def __call__(self, step: Any) -> tuple[Any, Any]:
        """Give whether to update at a training step, from 1 on, and the fraction of zeros asked for, in [0, 1)."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Give the class name and all the arguments."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make the schedule from its arguments, or from what `get_config` gave."""
        return cls(**(config["config"] if set(config) == {"class_name", "config"} else config))

    def _should_prune_in_step(self, step: Any, begin_step: int, end_step: int, frequency: int) -> tf.Tensor:
        step = tf.cast(step, tf.int64)
        inside = tf.logical_and(step >= begin_step, tf.logical_or(step <= end_step, end_step < 0))
        return tf.logical_and(inside, tf.equal((step - begin_step) % frequency, 0))

    def _validate_step(self, begin_step: int, end_step: int, frequency: int, allow_negative_1: bool) -> None:
        check_way(begin_step, end_step, endless=allow_negative_1)
        check_frequency(frequency)

    def _validate_sparsity(self, sparsity: float, variable_name: str) -> None:
        check_fraction(variable_name, sparsity)


class _Kpipe(PruningSchedule):
    """Ask a schedule of kpipe; a class says by `__init__` which."""

    @abstractmethod
    def __init__(self, schedule: schedules.Schedule):
        self.__dict__.update(schedule.get_config())  # TFMOT's attributes are its arguments
        self._schedule = schedule

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        due, sparsity = self._schedule(step)
        return tf.constant(due), tf.constant(sparsity, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Give the class name and all the arguments."""
        return {"class_name": type(self).__name__, "config": self._schedule.get_config()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kpipe) and self._schedule == other._schedule

    def __hash__(self) -> int:
        return hash(self._schedule)

    def __repr__(self) -> str:
        return repr(self._schedule)


@keras.saving.register_keras_serializable(package="kpipe", name="TFMOTConstantSparsity")
class ConstantSparsity(_Kpipe):
    """Ask for the same sparsity from `begin_step` on: `kpipe.schedules.ConstantSparsity`.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: First step of an update; steps are counted from 1.
        end_step: Last step of an update; -1 for no end.
        frequency: Steps between two updates.

    Example:
        >>> due, sparsity = ConstantSparsity(0.5, begin_step=2, frequency=10)(12)
        >>> bool(due), float(sparsity)
        (True, 0.5)
    """

    def __init__(self, target_sparsity: float, begin_step: int, end_step: int = -1, frequency: int = 100):
        super().__init__(schedules.ConstantSparsity(target_sparsity, begin_step, end_step, frequency))


@keras.saving.register_keras_serializable(package="kpipe", name="TFMOTPolynomialDecay")
class PolynomialDecay(_Kpipe):
    """Go from an initial to a final sparsity, fast at first and ever slower: `kpipe.schedules.PolynomialDecay`.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: First step of an update; steps are counted from 1.
        end_step: Step at which the final sparsity is reached, whatever the frequency.
        power: Exponent of the decay, above 0.
        frequency: Steps between two updates.

    Example:
        >>> decay = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, frequency=30)
        >>> [step for step in range(1, 200) if bool(decay(step)[0])]
        [30, 60, 90, 100]
    """

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        begin_step: int,
        end_step: int,
        power: float = 3,
        frequency: int = 100,
    ):
        super().__init__(
            schedules.PolynomialDecay(initial_sparsity, final_sparsity, begin_step, end_step, power, frequency)
        )
