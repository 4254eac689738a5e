"""What a criterion may look at, and the criteria. A new criterion is one function."""

from kpipe.saliency.criteria import CRITERIA, Criterion, criterion_of, score
from kpipe.saliency.evidence import FROM_DATA, FROM_LABELS, Evidence, gather, generator

__all__ = [
    "CRITERIA",
    "FROM_DATA",
    "FROM_LABELS",
    "Criterion",
    "Evidence",
    "criterion_of",
    "gather",
    "generator",
    "score",
]
