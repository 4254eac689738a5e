"""What can be worked on: models of Keras 3 that have their weights."""

from typing import Any

import keras

from kpipe.errors import KpipeError


def check_built(model: Any) -> None:
    """Refuse what is not a Keras model, and a model that has no weights yet.

    Raises:
        KpipeError: When it is one of these.

    Example:
        >>> check_built(keras.Sequential([keras.layers.Dense(1)], name="net"))
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The model 'net' is not built: it has no weights yet. Call it on data or build() it.
    """
    refuse_keras2(model)
    if not isinstance(model, keras.Model):
        raise KpipeError(f"Received {type(model).__name__}; expected a Keras 3 model (keras.Model).")
    if not model.built and not model.weights:
        raise KpipeError(
            f"The model {model.name!r} is not built: it has no weights yet. Call it on data or build() it."
        )


def refuse_keras2(value: Any) -> None:
    """Refuse a model or layer of tf_keras, which is Keras 2 under another name.

    Raises:
        KpipeError: When its class, or one above it, is of tf_keras.

    Example:
        >>> refuse_keras2(type("Dense", (), {"__module__": "tf_keras.src.layers.core.dense"})())
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: Received Dense of tf_keras, which is Keras 2; expected Keras 3. Remove
        TF_USE_LEGACY_KERAS from the environment and import keras, not tf_keras. A saved model of Keras 2 becomes one of
        Keras 3 by kpipe.legacy.load(path).
    """
    if any(kind.__module__.partition(".")[0] == "tf_keras" for kind in type(value).__mro__):
        raise KpipeError(
            f"Received {type(value).__name__} of tf_keras, which is Keras 2; expected Keras 3. Remove "
            "TF_USE_LEGACY_KERAS from the environment and import keras, not tf_keras. A saved model of Keras 2 becomes "
            "one of Keras 3 by kpipe.legacy.load(path)."
        )
