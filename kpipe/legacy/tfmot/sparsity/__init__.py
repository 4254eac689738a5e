"""Where TFMOT keeps its pruning: `tfmot.sparsity.keras`."""

from kpipe.legacy.tfmot.sparsity import keras

__all__ = ["keras"]
