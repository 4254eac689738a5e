"""What a schedule asked for during a stage's training and what was reached, for the report to draw."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from kpipe.pipeline import Context
from kpipe.schedules import Schedule

Reached = Callable[[], Mapping[str | None, float]]
"""Set of weights -> the fraction that is gone now; a set that has none yet may be left out."""

POINTS = 200
"""About how many points of a curve are kept: where there are many more updates, not all are looked at."""


class Following(keras.callbacks.Callback):
    """Note at the updates of a schedule what has been reached; among callbacks it stands after the one that prunes.

    At the end of the training each schedule's curve stands in `details["schedules"]` of the record.

    Args:
        context: The run's context.
        steps: Optimizer updates of the training, which begins at update 0.
        schedules: Set of weights -> its schedule, None for all.
        reached: Gives what is gone now.
    """

    def __init__(self, context: Context, steps: int, schedules: Mapping[str | None, Schedule], reached: Reached):
        super().__init__()
        self.context, self.steps, self.schedules, self.reached = context, steps, dict(schedules), reached
        self._step = 0
        self._updates = dict.fromkeys(self.schedules, 0)
        self._points: dict[str | None, list[list[float]]] = {name: [] for name in self.schedules}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Note what is gone before the first batch, where an update is due there."""
        self._step = 0
        self._note()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the update, and note what is gone where one of the schedule was due."""
        self._step += 1
        self._note()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Put the curves into the record."""
        self.context.record.details["schedules"] = [
            {
                "weights": name or ("all others" if place else "all"),
                "schedule": str(schedule),
                "updates": self._updates[name],
                "asked": curve(schedule, self.steps),
                "reached": self._points[name],
            }
            for place, (name, schedule) in enumerate(self.schedules.items())
        ]

    def _note(self) -> None:
        due = [name for name, schedule in self.schedules.items() if schedule.due(self._step)]
        for name in due:
            self._updates[name] += 1
        wanting = [name for name in due if self._is_far(name) or self._step == self.schedules[name].end_step]
        found = self.reached() if wanting else {}
        for name in wanting:
            if name in found:
                self._points[name].append([self._step, found[name]])

    def _is_far(self, name: str | None) -> bool:
        points = self._points[name]
        return not points or self._step - points[-1][0] >= self.steps / POINTS


def curve(schedule: Schedule, steps: int) -> list[list[float]]:
    """Give what a schedule asks for over a training, as points of a line: evenly, and at and before the updates.

    Args:
        schedule: The schedule.
        steps: Optimizer updates of the training.

    Returns:
        [step, sparsity] in the order of the steps, from 0 to `steps`.

    Example:
        >>> from kpipe.schedules import SteppedSparsity
        >>> [point for point in curve(SteppedSparsity((0.5,), (40,)), 100) if 38 <= point[0] <= 41]
        [[38, 0.0], [39, 0.0], [40, 0.5], [41, 0.5]]
    """
    due = {step for step in range(steps + 1) if schedule.due(step)}
    at = {round(steps * part / POINTS) for part in range(POINTS + 1)}
    if len(due) <= POINTS:
        at |= due | {step - 1 for step in due if step}
    return [[step, schedule.sparsity(step)] for step in sorted(at)]
