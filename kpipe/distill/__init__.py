"""Teaching: a small model learns from the answers of a large one, and from what its layers compute."""

from kpipe.distill.answers import SoftAnswers, answers_of
from kpipe.distill.features import Feature
from kpipe.distill.teach import distill

__all__ = ["Feature", "SoftAnswers", "answers_of", "distill"]
