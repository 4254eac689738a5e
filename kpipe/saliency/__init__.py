"""What a criterion may look at, and the criteria. A new criterion is one function."""

from kpipe.saliency.batches import check_data
from kpipe.saliency.channels import ChannelJudge, Reduction, channel_criteria, channel_criterion_of, score_rows
from kpipe.saliency.criteria import CHANNEL_CRITERIA, CRITERIA, Criterion, blame, criterion_of, score
from kpipe.saliency.evidence import FROM_DATA, FROM_LABELS, Evidence, Passes, gather, generator
from kpipe.saliency.training_evidence import TrainingEvidence

__all__ = [
    "CHANNEL_CRITERIA",
    "CRITERIA",
    "FROM_DATA",
    "FROM_LABELS",
    "ChannelJudge",
    "Criterion",
    "Evidence",
    "Passes",
    "Reduction",
    "TrainingEvidence",
    "blame",
    "channel_criteria",
    "channel_criterion_of",
    "check_data",
    "criterion_of",
    "gather",
    "generator",
    "score",
    "score_rows",
]
