"""Sparsity that goes up in stages, with training between them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import keras

from kpipe.errors import KpipeError
from kpipe.schedules.checks import check_fraction, check_way, check_whole
from kpipe.schedules.schedule import SCHEDULES, Schedule, Way


@SCHEDULES("stepped")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class SteppedSparsity(Schedule):
    """Ask for given sparsities at given steps, and for no update between.

    Args:
        sparsities: Fractions of zeros, in [0, 1), one a step.
        steps: Optimizer updates before each, ever more.

    Example:
        >>> stages = SteppedSparsity((0.5, 0.75), steps=(100, 300))
        >>> [stages(step) for step in (99, 100, 299, 300)]
        [(False, 0.0), (True, 0.5), (False, 0.5), (True, 0.75)]
    """

    EPOCHS: ClassVar[Mapping[str, str]] = {"epochs": "steps"}

    sparsities: tuple[float, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("sparsities", "steps"):
            given = getattr(self, name)
            if not isinstance(given, tuple | list) or not given:
                raise KpipeError(f"{name} is {given!r}; expected several, such as {_SUCH[name]}.")
            object.__setattr__(self, name, tuple(given))
        for sparsity in self.sparsities:
            check_fraction("sparsities", sparsity)
        for step in self.steps:
            check_whole("steps", step)
        if len(self.sparsities) != len(self.steps):
            raise KpipeError(
                f"received {len(self.sparsities)} sparsities and {len(self.steps)} steps; expected one sparsity a step."
            )
        if self.steps[0] < 0 or any(first >= second for first, second in zip(self.steps, self.steps[1:], strict=False)):
            raise KpipeError(
                f"steps is {list(self.steps)}; expected ever higher steps from 0 on, such as {_SUCH['steps']}."
            )

    @classmethod
    def laid_over(cls, steps: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Lay the steps evenly over three quarters of a training where they were not given."""
        count = len(given["sparsities"]) if isinstance(given.get("sparsities"), tuple | list) else 0
        return {} if "steps" in given or not count else {"steps": tuple(_evenly(3 * steps // 4, count))}

    @property
    def begin_step(self) -> int:  # type: ignore[override]
        """The first of the steps."""
        return self.steps[0]

    @property
    def end_step(self) -> int:  # type: ignore[override]
        """The last of the steps."""
        return self.steps[-1]

    def due(self, step: int) -> bool:
        """Tell whether `step` is one of the given steps."""
        return step in self.steps

    def sparsity(self, step: int) -> float:
        """Give the sparsity of the last given step up to this one, 0 before the first."""
        past = [sparsity for at, sparsity in zip(self.steps, self.sparsities, strict=True) if at <= step]
        return float(past[-1]) if past else 0.0

    def updates(self) -> Iterator[tuple[int, float]]:
        """Give each of the steps with its sparsity."""
        return zip(self.steps, map(float, self.sparsities), strict=True)


def _evenly(length: int, count: int) -> list[int]:
    return [length * (number + 1) // count for number in range(count)]


_SUCH = {"sparsities": "[0.5, 0.75]", "steps": "[100, 200]"}


@SCHEDULES("iterative")
@keras.saving.register_keras_serializable(package="kpipe")
@dataclass(frozen=True)
class IterativeSparsity(Way):
    """Go from the initial to the final sparsity in equal stages: each removes the same fraction of what remains.

    s(t) = 1 - (1 - initial) * ((1 - final) / (1 - initial))^(k / stages), where k = floor(stages * p) stages have been
    passed and p = clip((t - begin) / (end - begin), 0, 1). Updates are due at `begin_step` and where a stage is passed,
    the last at `end_step`. Iterative magnitude pruning takes 20 % of the remaining weights a stage.

    Args:
        initial_sparsity: Fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: Fraction of zeros at `end_step`, in [0, 1).
        begin_step: Optimizer updates before the first stage begins.
        end_step: Step at which the last stage is passed.
        stages: Number of times that weights are removed.

    Example:
        >>> stages = IterativeSparsity(0.0, 0.488, begin_step=0, end_step=300, stages=3)
        >>> [(step, round(stages.sparsity(step), 3)) for step in range(301) if stages.due(step)]
        [(0, 0.0), (100, 0.2), (200, 0.36), (300, 0.488)]

    References:
        Han et al., Learning both weights and connections (2015), https://arxiv.org/abs/1506.02626
        Frankle and Carbin, The lottery ticket hypothesis (2019), https://arxiv.org/abs/1803.03635
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    stages: int = 5

    def __post_init__(self) -> None:
        check_fraction("initial_sparsity", self.initial_sparsity)
        check_fraction("final_sparsity", self.final_sparsity)
        check_way(self.begin_step, self.end_step)
        check_whole("stages", self.stages, "stages")
        if self.stages < 1:
            raise KpipeError(f"stages is {self.stages}; expected 1 or more.")

    def due(self, step: int) -> bool:
        """Tell whether `step` is the first one, or the one at which a stage is passed."""
        if not self.begin_step <= step <= self.end_step:
            return False
        return step == self.begin_step or self._passed(step) > self._passed(step - 1)

    def sparsity(self, step: int) -> float:
        """Evaluate the formula at `step`."""
        passed = self._passed(step)
        if passed == self.stages:
            return float(self.final_sparsity)
        if passed == 0:
            return float(self.initial_sparsity)
        left = (1.0 - self.final_sparsity) / (1.0 - self.initial_sparsity)
        return 1.0 - (1.0 - self.initial_sparsity) * left ** (passed / self.stages)

    def _passed(self, step: int) -> int:
        if step >= self.end_step:
            return self.stages
        if step < self.begin_step:
            return 0
        return self.stages * (step - self.begin_step) // (self.end_step - self.begin_step)
