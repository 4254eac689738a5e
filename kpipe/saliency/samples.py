"""Squared gradients of single samples, exact, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.saliency.losses import labelled, log_losses, loss_of, traced, undisturbed, zeros_like

Rows = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""(loss of one sample as a function of its point, the point (C,)) -> vectors v_k in the space of points, (K, C)."""

AT_ONCE = 2**22
"""Gradient entries that are held at once: a small model is differentiated for many samples together."""

ENDS: dict[str, Callable[[Any], Any]] = {"Softmax": tf.nn.softmax, "Sigmoid": tf.nn.sigmoid}
"""Operations that end a network, and what computes them anew from the logits."""

ZERO = tf.UnconnectedGradients.ZERO


def mean_squares(
    model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any, rows: Rows, strict: bool = False
) -> list[np.ndarray]:
    """Take the mean over the samples of Σ_k (J'v_k)², J the Jacobian of one sample's point by a variable.

    The point is all that the model puts out for the sample in one vector; before a last softmax or sigmoid, the logits.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        data: What `model.fit` takes, with labels.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.
        rows: Gives the vectors v_k of one sample.
        strict: Go back to the logits only where the output's loss is one of `LOG_LOSSES`.

    Returns:
        An array for each variable, of its shape; zeros for one that is frozen or does not reach the point.

    Raises:
        KpipeError: When labels, data or a loss are missing, or the model cannot run on one sample.
    """
    batches, compute = labelled(data), loss_of(model, loss)
    learning = [variable for variable in variables if variable.trainable]
    sums, samples = zeros_like(learning), 0

    def points(x: Any) -> tuple[list[tf.Tensor], Callable[[tf.Tensor], Any]]:
        outputs = model(x, training=False)
        return cut(outputs, [likely or not strict for likely in log_losses(model, loss, outputs)])

    look, add = _looker(points, compute, rows), _adder(points, learning, sums)
    with undisturbed(model):
        for x, y, weights in batches:
            try:
                vectors = look(x, y, weights)
                add(x, vectors)
            except (TypeError, ValueError, tf.errors.OpError) as error:
                if isinstance(error, KpipeError):
                    raise
                raise KpipeError(
                    f"The model {model.name!r} or its loss cannot be followed one sample at a time: {error} Use a "
                    "criterion that takes whole batches, such as 'taylor'."
                ) from error
            samples += len(vectors)
    means = {id(variable): total.numpy() / np.float32(samples) for variable, total in zip(learning, sums, strict=True)}
    return [means.get(id(variable), np.zeros(variable.shape, "float32")) for variable in variables]


def cut(outputs: Any, back: Sequence[bool]) -> tuple[list[tf.Tensor], Callable[[tf.Tensor], Any]]:
    """Cut a model's outputs off the loss, before a last softmax or sigmoid where `back` says so.

    Args:
        outputs: The model's outputs while its graph is traced.
        back: For each output, flat, whether to go back to its logits.

    Returns:
        The tensors at the cut, and a function from one sample's point (C,) to the outputs of a batch of that sample.
    """
    flat = keras.tree.flatten(outputs)
    ends = [ENDS.get(tensor.op.type) if behind else None for tensor, behind in zip(flat, back, strict=True)]
    points = [tensor.op.inputs[0] if end else tensor for tensor, end in zip(flat, ends, strict=True)]

    def rebuild(point: tf.Tensor) -> Any:
        parts = tf.split(point, [tf.size(tensor[0]) for tensor in points])
        shaped = [
            tf.cast(tf.reshape(part, tf.shape(tensor[:1])), tensor.dtype)
            for part, tensor in zip(parts, points, strict=True)
        ]
        for part, tensor in zip(shaped, points, strict=True):
            part.set_shape((1, *tensor.shape[1:]))
        whole = [end(part) if end else part for part, end in zip(shaped, ends, strict=True)]
        return keras.tree.pack_sequence_as(outputs, whole)

    return points, rebuild


def _flat(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.cast(tf.reshape(tensor, [-1]), "float32") for tensor in tensors], axis=0)


def _row(structure: Any, i: Any) -> Any:
    return tf.nest.map_structure(lambda array: None if array is None else array[i : i + 1], structure)


def _looker(points: Callable[..., Any], compute: Callable[..., Any], rows: Rows) -> Callable[..., tf.Tensor]:
    """Make the function from a batch to the vectors of its samples, (n, K, C)."""

    @traced
    def look(x: Any, y: Any, weights: Any) -> tf.Tensor:
        tensors, rebuild = points(x)

        def one(i: tf.Tensor) -> tf.Tensor:
            xs, ys, ws = (_row(structure, i) for structure in (x, y, weights))
            return rows(lambda point: compute(xs, ys, rebuild(point), ws), _flat([tensor[i] for tensor in tensors]))

        every = tf.range(tf.shape(tensors[0])[0])
        return tf.map_fn(one, every, fn_output_signature=tf.TensorSpec((None, None), "float32"))

    return look


def _adder(
    points: Callable[..., Any], variables: Sequence[keras.Variable], sums: Sequence[tf.Variable]
) -> Callable[[Any, tf.Tensor], None]:
    """Make the function that adds Σ (J'v)² over the samples and vectors of a batch to the sums.

    Small models are differentiated for several samples together, the others one vector after the other, so that there
    is one gradient at a time.
    """
    values = [variable.value for variable in variables]
    size = sum(int(np.prod(variable.shape)) for variable in variables)
    together = True

    def backward(x: Any) -> Callable[[tf.Tensor], list[tf.Tensor]]:
        tape: Any = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape:
            tape.watch(values)
            point = _flat(points(x)[0])

        def squares(vector: tf.Tensor) -> list[tf.Tensor]:
            found = tape.gradient(point, values, output_gradients=vector, unconnected_gradients=ZERO)
            return [tf.square(tf.cast(gradient, "float32")) for gradient in found]

        return squares

    @traced
    def many(x: Any, vectors: tf.Tensor) -> list[tf.Tensor]:
        def sample(row: Any) -> list[tf.Tensor]:
            squares = backward(tf.nest.map_structure(lambda array: array[None], row[0]))
            return [tf.reduce_sum(found, axis=0) for found in tf.vectorized_map(squares, row[1])]

        return [tf.reduce_sum(found, axis=0) for found in tf.vectorized_map(sample, (x, vectors))]

    @traced
    def one_by_one(x: Any, vectors: tf.Tensor) -> None:
        def sample(i: tf.Tensor) -> tf.Tensor:
            squares = backward(_row(x, i))

            def add(k: tf.Tensor) -> tf.Tensor:
                for total, found in zip(sums, squares(vectors[i, k]), strict=True):
                    total.assign_add(found)
                return k + 1

            tf.while_loop(lambda k: k < tf.shape(vectors)[1], add, [0], parallel_iterations=1)
            return i + 1

        tf.while_loop(lambda i: i < tf.shape(vectors)[0], sample, [0], parallel_iterations=1)

    def add(x: Any, vectors: tf.Tensor) -> None:
        nonlocal together
        chunk = AT_ONCE // max(1, size * int(tf.shape(vectors)[1]))
        if together and chunk > 1:
            try:
                found = [tf.zeros_like(total) for total in sums]
                for part in _chunks(x, vectors, chunk):
                    with _quiet():
                        found = [a + b for a, b in zip(found, many(*part), strict=True)]
                for total, whole in zip(sums, found, strict=True):
                    total.assign_add(whole)
                return
            except (NotImplementedError, TypeError, ValueError, tf.errors.OpError):
                together = False  # an operation that cannot be done for several samples together
        one_by_one(x, vectors)

    return add


def _chunks(x: Any, vectors: tf.Tensor, size: int) -> Iterator[tuple[Any, tf.Tensor]]:
    for start in range(0, len(vectors), size):
        rows = slice(start, start + size)
        yield tf.nest.map_structure(lambda array, rows=rows: array[rows], x), vectors[rows]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow from telling which operations it does one by one where many are asked for."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
