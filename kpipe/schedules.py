"""Sparsity over the steps of training: step -> (update now, sparsity)."""

import math
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras

from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.registry import Registry, nearest

SCHEDULES: Registry[type["Schedule"]] = Registry("schedule")
"""Name -> schedule class."""


class Schedule(ABC):
    """Say at every step whether to update the masks, and to which sparsity.

    A step is the number of optimizer updates done so far. The schedule is asked once before the first batch and then
    after each, so that a run of exactly `end_step` updates ends at the final sparsity.

    Example:
        >>> @dataclass(frozen=True)
        ... class Linear(Schedule):
        ...     "Go up evenly to 0.5."
        ...     begin_step: int = 0
        ...     end_step: int = 10
        ...     frequency: int = 5
        ...     def sparsity(self, step):
        ...         return 0.5 * min(1.0, step / self.end_step)
        >>> [Linear()(step) for step in (4, 5, 10)]
        [(False, 0.2), (True, 0.25), (True, 0.5)]
    """

    begin_step: int
    end_step: int
    frequency: int

    @abstractmethod
    def sparsity(self, step: int) -> float:
        """Give the fraction of zeros asked for at `step`, in [0, 1)."""

    def __call__(self, step: int) -> tuple[bool, float]:
        """Give whether an update is due at `step`, and the fraction of zeros asked for there.

        An update is due every `frequency` steps counted from `begin_step`, and always at `end_step` itself, whatever
        the frequency. A negative `end_step` stands for no end.
        """
        step = int(step)
        inside = self.begin_step <= step and (self.end_step < 0 or step <= self.end_step)
        on_turn = (step - self.begin_step) % self.frequency == 0 or step == self.end_step
        return inside and on_turn, self.sparsity(step)

    def get_config(self) -> dict[str, Any]:
        """Give all the arguments, as plain numbers."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Make the schedule from what `get_config` gave."""
        return cls(**config)


@SCHEDULES("constant")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """Ask for the same sparsity from `begin_step` on.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Last step of an update; -1 for no end.
        frequency: Steps between two updates.

    Example:
        >>> ConstantSparsity(0.5, begin_step=0)(0)
        (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_fraction("target_sparsity", self.target_sparsity)
        _check_steps(self.begin_step, self.end_step, self.frequency, endless=True)

    def sparsity(self, step: int) -> float:
        """Give the target sparsity."""
        return float(self.target_sparsity)


@SCHEDULES("polynomial_decay")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Go from the initial to the final sparsity, fast at first and ever slower.

    s(t) = final + (initial - final) * (1 - p)^power, p = clip((t - begin) / (end - begin), 0, 1).
    With begin_step == end_step it is the final sparsity from that step on.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first mask.
        end_step: Step at which the final sparsity is reached.
        power: Exponent of the decay, above 0.
        frequency: Steps between two updates.

    Example:
        >>> decay = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=100, frequency=30)
        >>> [step for step in range(200) if decay(step)[0]]
        [0, 30, 60, 90, 100]
        >>> decay(100)
        (True, 0.8)

    References:
        Zhu and Gupta, To prune, or not to prune (2017), https://arxiv.org/abs/1710.01878
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_fraction("initial_sparsity", self.initial_sparsity)
        _check_fraction("final_sparsity", self.final_sparsity)
        _check_steps(self.begin_step, self.end_step, self.frequency, endless=False)
        if not _is_number(self.power) or not 0 < self.power < math.inf:
            raise KpipeError(f"power is {self.power!r}; expected a number above 0. TFMOT's default is 3.")

    def sparsity(self, step: int) -> float:
        """Evaluate the formula at `step`."""
        if step >= self.end_step:
            return float(self.final_sparsity)
        if step <= self.begin_step:
            return float(self.initial_sparsity)
        progress = (step - self.begin_step) / (self.end_step - self.begin_step)
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1.0 - progress) ** self.power


def schedule(spec: Any, steps: int | None = None) -> Schedule:
    """Turn a name with arguments into a schedule; a schedule is given back as it is.

    Args:
        spec: A `Schedule`, or a mapping of one name to its arguments, such as
            `{"polynomial_decay": {"final_sparsity": 0.8, ...}}`.
        steps: Optimizer updates of the run. Given, it fills what the mapping leaves out: the sparsity starts at 0 at
            step 0, ends after three quarters of the run, so that a quarter is left to recover in, and is updated about
            fifty times on the way.

    Raises:
        KpipeError: For an unknown name or unknown, missing or wrong arguments.

    Example:
        >>> schedule({"polynomial_decay": {"final_sparsity": 0.8}}, steps=400)
        PolynomialDecay(initial_sparsity=0.0, final_sparsity=0.8, begin_step=0, end_step=300, power=3, frequency=6)
    """
    if isinstance(spec, Schedule):
        return spec
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise KpipeError(f"The schedule is {spec!r}; expected a Schedule or one name with its arguments, as a mapping.")
    ((name, given),) = spec.items()
    made = SCHEDULES[name]
    fields = made.__dataclass_fields__  # type: ignore[attr-defined]
    takes = f"It takes {', '.join(fields)}."
    if not isinstance(given, Mapping):
        raise KpipeError(f"The schedule {name!r} has the arguments {given!r}; expected a mapping. {takes}")
    for key in given:
        if key not in fields:
            raise KpipeError(f"The schedule {name!r} has no {key!r}. {takes}{nearest(key, fields)}")
    arguments = {**_fill(fields, given, steps), **given}
    try:
        return made(**arguments)
    except TypeError as error:
        raise KpipeError(f"The schedule {name!r} cannot be made from {dict(given)}: {error}.") from error


def last_due(ask: Schedule, first: int, last: int) -> float | None:
    """Ask the schedule for every step from `first` to `last`; give the sparsity of the last due update, if any is.

    Several optimizer updates may pass between two questions (`steps_per_execution`); a due one must not be lost.

    Example:
        >>> last_due(ConstantSparsity(0.5, begin_step=0, frequency=10), 8, 12)
        0.5
        >>> last_due(ConstantSparsity(0.5, begin_step=0, frequency=10), 11, 12) is None
        True
    """
    for step in range(last, first - 1, -1):
        due, sparsity = ask(step)
        if due:
            return sparsity
    return None


def warn_of_shortfall(what: str, ask: Schedule, begun: int, ended: int, changed: bool) -> None:
    """Warn when a training did less than its schedule asks for; say which step numbers did not meet.

    Args:
        what: Who pruned, for the text.
        ask: The schedule.
        begun: Optimizer updates done when the training began.
        ended: Optimizer updates done when it ended.
        changed: Whether anything is pruned by now.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_shortfall("WeightPruning", ConstantSparsity(0.5, begin_step=100), 0, 40, changed=False)
        >>> print(caught[0].message)
        WeightPruning pruned nothing: training ended at step 40, before begin_step=100. Train longer, or begin earlier.
    """
    if not changed and ended < ask.begin_step:
        text = f"training ended at step {ended}, before begin_step={ask.begin_step}. Train longer, or begin earlier."
    elif not changed and 0 <= ask.end_step < begun:
        text = (
            f"the schedule ended at step {ask.end_step} and this training began at step {begun}; the optimizer counts "
            "its steps over all fits. Compile the model anew, or give a schedule that ends later."
        )
    elif not changed and ended < ask.end_step:
        text = f"training ended at step {ended}, long before end_step={ask.end_step}. Train longer, or lower end_step."
    elif not changed:
        text = f"between steps {begun} and {ended} {ask} asked for less than one entry of each."
    elif ended < ask.end_step:
        warnings.warn(
            f"{what} ended at step {ended}, before end_step={ask.end_step} of its schedule: the last sparsity asked "
            f"for was below {ask.sparsity(ask.end_step)}. Train longer, or set end_step to at most {ended}.",
            UserWarning,
            stacklevel=3,
        )
        return
    else:
        return
    warnings.warn(f"{what} pruned nothing: {text}", NoEffectWarning, stacklevel=3)


def _fill(fields: Mapping[str, Any], given: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    if steps is None:
        return {}
    for name in ("begin_step", "end_step"):
        if name in given:
            _check_whole(name, given[name])
    begin = given.get("begin_step", 0)
    end = given.get("end_step", max(begin, begin + 3 * (steps - begin) // 4))
    filled = {"initial_sparsity": 0.0, "begin_step": begin, "end_step": end, "frequency": max(1, (end - begin) // 50)}
    if "target_sparsity" in fields:  # constant: no end of its own
        filled.update(end_step=-1, frequency=100)
    return {key: value for key, value in filled.items() if key in fields}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fraction(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value < 1:
        raise KpipeError(f"{name} is {value!r}; expected a fraction of zeros in [0, 1), such as 0.8.")


def _check_whole(name: str, value: Any) -> None:
    try:
        operator.index(value)
    except TypeError:
        raise KpipeError(f"{name} is {value!r}; expected a whole number of steps.") from None


def _check_steps(begin: Any, end: Any, frequency: Any, endless: bool) -> None:
    for name, value in (("begin_step", begin), ("end_step", end), ("frequency", frequency)):
        _check_whole(name, value)
    if begin < 0:
        raise KpipeError(f"begin_step is {begin}; expected 0 or more. Use 0 to begin before the first batch.")
    if end < begin and not (endless and end == -1):
        rest = ", or -1 for no end" if endless else ""
        raise KpipeError(f"end_step is {end} and begin_step {begin}; expected end_step >= begin_step{rest}.")
    if frequency < 1:
        raise KpipeError(f"frequency is {frequency}; expected 1 or more steps between two updates.")
