"""What the pruning stages share: how entries are judged, and how much goes at which step."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

from pydantic import model_validator

from kpipe.errors import KpipeError
from kpipe.pipeline import Context
from kpipe.saliency import FROM_LABELS, channel_criterion_of, criterion_of
from kpipe.schedules import AnySchedule, EpochSchedule, schedules_of
from kpipe.stages.fields import TRIED, CriterionName
from kpipe.stages.training import RetrainingStage
from kpipe.unstructured import Report


class JudgingStage(RetrainingStage):
    """Describe a stage that removes what a criterion judges least.

    Args:
        criterion: How entries are judged.
    """

    judges_channels: ClassVar[bool] = False
    """Whether channels are judged, and not the entries of weights."""

    criterion: CriterionName

    def needs(self) -> tuple[str, ...]:
        """Name what the criterion looks at beside the weights."""
        if self.judges_channels:
            return channel_criterion_of(self.criterion).needs
        return criterion_of(self.criterion)[1]["needs"]

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains; a criterion with gradients reads the loss."""
        fields = super().only_for_training()
        reads_loss = any(field in FROM_LABELS for field in self.needs())
        return tuple(name for name in fields if not (reads_loss and name == "loss"))

    @abstractmethod
    def follows_movement(self) -> bool:
        """Tell whether the criterion may look at how the weights moved in the stage's own training."""

    @model_validator(mode="after")
    def _has_a_training_to_look_at(self) -> Self:
        if "movement" in self.needs() and not self.follows_movement():
            raise KpipeError(
                f"the criterion {self.criterion!r} follows the weights through a training; use it in prune_weights "
                "with epochs, or in prune_filters with a schedule"
            )
        return self


class PruningStage(JudgingStage):
    """Describe a stage that prunes, at once or along a training.

    Args:
        schedule: A schedule of the fraction that is gone. Steps that it leaves out are laid over the training.
        criterion: How entries are judged.
    """

    schedule: dict[str, Any] | None = None

    def schedules(self, steps: int) -> dict[str | None, AnySchedule]:
        """Make the schedules of a training of so many optimizer updates; none where there is no schedule."""
        return {} if self.schedule is None else schedules_of(self.schedule, steps)

    @abstractmethod
    def check_amount(self) -> None:
        """Raise unless exactly one field says how much goes; every other check rests on that."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        self.check_amount()
        return self

    @model_validator(mode="after")
    def _has_steps_to_prune_in(self) -> Self:
        if self.schedule is not None and self.epochs == 0:
            raise KpipeError("a schedule needs epochs to prune in; give epochs, or a fixed amount instead")
        for made in self.schedules(TRIED).values():
            if isinstance(made, EpochSchedule) and (end := made.in_steps(TRIED).end_step) > self.epochs * TRIED:
                raise KpipeError(
                    f"the schedule ends at epoch {end / TRIED:g}, and the stage trains {self.epochs} epochs; give more "
                    "epochs, or let it end earlier"
                )
        return self


def tell_weights(report: Report, context: Context) -> None:
    """Put into the record how sparse each weight became, and why others were skipped."""
    context.record.details["weights"] = [
        {"path": row.path, "shape": list(row.shape), "sparsity": row.sparsity} for row in report.pruned
    ]
    for row in report.skipped:
        context.record.skip(row.path, str(row.reason))
