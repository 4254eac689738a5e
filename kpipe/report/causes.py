"""What changed a file between two stages, from what was counted in them; and where that shows."""

from kpipe.report.record import FileRecord, StageRecord
from kpipe.report.units import count, share

CLUSTERED = "cluster_weights"
ROUNDING = 0.01  # a share of zeros, or of parameters, that moved by less was not moved by a stage on purpose


def causes(before: tuple[StageRecord, FileRecord], after: tuple[StageRecord, FileRecord]) -> list[str]:
    """Name what makes a stage's file other than that of the stage before.

    Fewer parameters and a narrower precision make the file itself smaller. Zeros and clustered weights are stored like
    any other numbers: they make it smaller only once it is compressed.

    Args:
        before: The stage before, and its file.
        after: The stage, and its file in the same format.

    Returns:
        Phrases with the figures; none where nothing that was counted changed.

    Example:
        >>> from kpipe.report.record import record
        >>> pruned = {"name": "02-prune_weights", "measure": {"params": 50, "sparsity": 0.6}}
        >>> run = record({"stages": [{"name": "01-train", "measure": {"params": 90, "sparsity": 0.0}}, pruned]})
        >>> first, second = ((stage, FileRecord("m.tflite")) for stage in run.stages)
        >>> causes(first, second)
        ['parameters 90 → 50', 'zeros 0 % → 60.0 %, which pay only compressed']
    """
    (was, old), (now, new) = before, after
    found = []
    if _comparable(was, now) and was.params and now.params and abs(1 - now.params / was.params) >= ROUNDING:
        found.append(f"parameters {count(was.params)} → {count(now.params)}")
    if old.precision and new.precision and old.precision != new.precision:
        found.append(f"{old.precision} → {new.precision}")
    if was.sparsity is not None and now.sparsity is not None and now.sparsity - was.sparsity >= ROUNDING:
        found.append(f"zeros {share(was.sparsity)} → {share(now.sparsity)}, which pay only compressed")
    if now.stage == CLUSTERED:
        found.append("weights of a few values, which pay only compressed")
    return found


def _comparable(was: StageRecord, now: StageRecord) -> bool:
    """Say whether two stages' parameters compare: quantization folds layers into one another."""
    return all(stage.artifact in (None, "float") for stage in (was, now))
