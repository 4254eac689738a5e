"""Models and names of Keras 2 and TFMOT, brought to Keras 3."""

from kpipe.legacy import tfmot
from kpipe.legacy.load import load

__all__ = ["load", "tfmot"]
