"""TFMOT's scope for loading wrapped models."""

from contextlib import AbstractContextManager

import keras

from kpipe.unstructured.wrapper import PruneLowMagnitude


def prune_scope() -> AbstractContextManager:
    """Give a scope in which Keras finds the wrapper by TFMOT's name; models of kpipe are loaded without it.

    Example:
        >>> with prune_scope():
        ...     keras.saving.get_registered_object("PruneLowMagnitude").__name__
        'PruneLowMagnitude'
    """
    return keras.saving.CustomObjectScope({"PruneLowMagnitude": PruneLowMagnitude})
