"""The data that evidence is taken over: what can be gone through, and in which batches."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from kpipe.checks import not_finite
from kpipe.data import weighted_batches
from kpipe.errors import KpipeError

Batch = tuple[Any, Any, Any]
"""(x, y, sample weights); the last two None where there are none."""

Pass = Callable[[Any], list[Any]]
"""Data -> an array for each variable, None where it is not known; it goes through the data once."""


def check_data(data: Any, again: str | None = None) -> None:
    """Refuse data that never end, and data that can be gone through only once where it takes more.

    A generator that never ends, and a `tf.data.Dataset` that does not know how long it is, cannot be told from others.

    Args:
        data: What `model.fit` takes; None passes.
        again: Who goes through the data several times, named in the error; None where nobody does.

    Raises:
        KpipeError: When the data do not fit.

    Example:
        >>> check_data(tf.data.Dataset.range(3).repeat())
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: Received data that never end (a tf.data.Dataset that repeats without end). A pass over
        data goes to their end: give a part of them, such as data.take(32).
        >>> check_data(iter([1]), again="WeightPruning")
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: Received an iterator (list_iterator) as data: it can be gone through once, and
        WeightPruning goes through its data again and again. Give arrays, a tf.data.Dataset, or the function that makes
        the iterator.
    """
    if isinstance(data, tf.data.Dataset) and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise KpipeError(
            "Received data that never end (a tf.data.Dataset that repeats without end). A pass over data goes to "
            "their end: give a part of them, such as data.take(32)."
        )
    if isinstance(data, keras.utils.PyDataset) and data.num_batches is None:
        raise KpipeError(
            f"Received data that never end ({type(data).__name__}, whose num_batches is None). A pass over data goes "
            "to their end: let num_batches say how many batches there are."
        )
    if again is not None and isinstance(data, Iterator):
        raise KpipeError(
            f"Received an iterator ({type(data).__name__}) as data: it can be gone through once, and {again} goes "
            "through its data again and again. Give arrays, a tf.data.Dataset, or the function that makes the iterator."
        )


def refuse_broken(data: Any) -> None:
    """Refuse data that hold NaN or infinity; what can be gone through only once is not looked at.

    Raises:
        KpipeError: When they do.

    Example:
        >>> import numpy as np
        >>> refuse_broken((np.array([[1.0], [np.nan]]), np.zeros(2)))
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: The data hold 1 NaN or infinite value in their inputs, and every weight of the model is
        finite. Clean the data first.
    """
    if data is None or isinstance(data, Iterator):
        return
    found = dict.fromkeys(("inputs", "labels", "sample weights"), 0)
    for batch in weighted_batches(data):
        for what, part in zip(found, batch, strict=True):
            found[what] += sum(not_finite(array) for array in keras.tree.flatten(part) if array is not None)
    if any(found.values()):
        said = " and ".join(
            f"{count} NaN or infinite value{'s' if count > 1 else ''} in their {what}"
            for what, count in found.items()
            if count
        )
        raise KpipeError(f"The data hold {said}, and every weight of the model is finite. Clean the data first.")


def labelled(data: Any) -> Iterator[Batch]:
    """Go through labelled data in batches of (x, y, sample weights), to differentiate the loss on them.

    Raises:
        KpipeError: At once when there are no data or they never end, and inside a strategy's scope, where variables
            have several values; on the way when there are no labels or no batch.

    Example:
        >>> import numpy as np
        >>> [(len(x), len(y), w) for x, y, w in labelled((np.zeros((40, 2)), np.zeros(40)))]
        [(32, 32, None), (8, 8, None)]
    """
    if data is None:
        raise KpipeError("A criterion that needs gradients needs labelled data. Received: data=None. Pass data=(x, y).")
    if tf.distribute.has_strategy():
        raise KpipeError(
            "A criterion that needs gradients cannot take them inside strategy.scope(). Build and compile the model "
            "there, and call fit or kpipe outside of it."
        )
    check_data(data)
    return _with_labels(_some(data, "gradients"))


def unlabelled(data: Any) -> Iterator[Any]:
    """Go through the inputs of data in batches; labels are left out.

    Raises:
        KpipeError: At once when there are no data or they never end; on the way when there is no batch.

    Example:
        >>> import numpy as np
        >>> [x.tolist() for x in unlabelled((np.zeros((2, 1)), np.ones(2)))]
        [[[0.0], [0.0]]]
    """
    if data is None:
        raise KpipeError("A criterion that needs activations needs data. Received: data=None. Pass data=x.")
    check_data(data)
    return (x for x, _, _ in _some(data, "activations"))


def _some(data: Any, what: str) -> Iterator[Batch]:
    empty = True
    for batch in weighted_batches(data):
        empty = False
        yield batch
    if empty:
        raise KpipeError(f"A criterion that needs {what} needs data. Received: no batch at all.")


def _with_labels(batches: Iterator[Batch]) -> Iterator[Batch]:
    for x, y, weights in batches:
        if y is None:
            raise KpipeError("A criterion that needs gradients needs labels. Received: inputs alone. Pass data=(x, y).")
        yield x, y, weights
