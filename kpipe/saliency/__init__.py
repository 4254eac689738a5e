"""What a criterion may look at, and the criteria. A new criterion is one function."""

from kpipe.saliency.batches import check_data
from kpipe.saliency.criteria import CRITERIA, Criterion, criterion_of, score
from kpipe.saliency.evidence import FROM_DATA, FROM_LABELS, Evidence, Passes, gather, generator
from kpipe.saliency.sight import Sight

__all__ = [
    "CRITERIA",
    "FROM_DATA",
    "FROM_LABELS",
    "Criterion",
    "Evidence",
    "Passes",
    "Sight",
    "check_data",
    "criterion_of",
    "gather",
    "generator",
    "score",
]
