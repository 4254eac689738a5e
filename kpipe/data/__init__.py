"""Data in: named sources, files and functions; and anything that `model.fit` takes, as NumPy."""

from kpipe.data.augment import augmented
from kpipe.data.batches import CALIBRATION_SAMPLES, batches, samples, weighted_batches
from kpipe.data.sentences import sentences
from kpipe.data.sources import SOURCES, Dataset, load

__all__ = [
    "CALIBRATION_SAMPLES",
    "SOURCES",
    "Dataset",
    "augmented",
    "batches",
    "load",
    "samples",
    "sentences",
    "weighted_batches",
]
