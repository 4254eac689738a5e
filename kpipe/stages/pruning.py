"""What the pruning stages share: how entries are judged, and how much goes at which step."""

from typing import Self

from pydantic import model_validator

from kpipe.errors import KpipeError
from kpipe.saliency import FROM_LABELS, criterion_of
from kpipe.stages.fields import CriterionName, ScheduleSpec, ScopeName
from kpipe.stages.training import RetrainingStage


class PruningStage(RetrainingStage):
    """Describe a stage that prunes, at once or along a training.

    Args:
        schedule: A schedule of the fraction that is gone. Steps that it leaves out are laid over the training.
        criterion: How entries are judged.
        scope: "layer" takes the same share of each layer; "global" ranks all the entries against one another.
    """

    schedule: ScheduleSpec | None = None
    criterion: CriterionName
    scope: ScopeName = "layer"

    def only_for_training(self) -> tuple[str, ...]:
        """Name the fields that nothing reads where nothing trains; a criterion with gradients reads the loss."""
        fields = super().only_for_training()
        reads_loss = any(field in FROM_LABELS for field in criterion_of(self.criterion)[1]["needs"])
        return tuple(name for name in fields if not (reads_loss and name == "loss"))

    @model_validator(mode="after")
    def _has_steps_to_prune_in(self) -> Self:
        if self.schedule is not None and self.epochs == 0:
            raise KpipeError("a schedule needs epochs to prune in; give epochs, or a fixed amount instead")
        return self
