"""Squared gradients of single samples, exact, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.errors import KpipeError
from kpipe.saliency.batches import Pass, labelled
from kpipe.saliency.losses import log_losses, loss_of, means, traced, undisturbed, zeros_like

Rows = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""(loss of one sample as a function of its point, the point (C,)) -> vectors v_k in the space of points, (K, C)."""

AT_ONCE = 2**22
"""Gradient entries that are held at once: a small model is differentiated for many samples together."""

ENDS: dict[str, Callable[[Any], Any]] = {"Softmax": tf.nn.softmax, "Sigmoid": tf.nn.sigmoid}
"""Operations that end a network, and what computes them anew from the logits."""

ZERO = tf.UnconnectedGradients.ZERO


def mean_squares(
    model: keras.Model, variables: Sequence[keras.Variable], loss: Any, rows: Rows, strict: bool = False
) -> Pass:
    """Prepare to take the mean over the samples of Σ_k (J'v_k)², J the Jacobian of one sample's point by a variable.

    The point is all that the model puts out for the sample in one vector; before a last softmax or sigmoid, the logits.

    Args:
        model: The model; it runs in inference mode and stays as it is.
        variables: Those to differentiate by.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.
        rows: Gives the vectors v_k of one sample.
        strict: Go back to the logits only where the output's loss is one of `LOG_LOSSES`.

    Returns:
        From labelled data, what `model.fit` takes, to an array for each variable, of its shape; zeros for one that is
        frozen or does not reach the point. It raises `KpipeError` when data or labels are missing, or the model cannot
        run on one sample.

    Raises:
        KpipeError: When a loss is missing.
    """
    compute = loss_of(model, loss)
    learning = [variable for variable in variables if variable.trainable]

    def points(x: Any) -> tuple[list[tf.Tensor], Callable[[tf.Tensor], Any]]:
        outputs = model(x, training=False)
        return cut_off_ends(outputs, [likely or not strict for likely in log_losses(model, loss, outputs)])

    look, adder = _looker(points, compute, rows), _Adder(points, learning)

    def through(data: Any) -> list[np.ndarray]:
        batches, sums, samples = labelled(data), zeros_like(learning), 0
        with undisturbed(model):
            for x, y, weights in batches:
                with _explained(model):
                    vectors = look(x, y, weights)
                    adder.add(sums, x, vectors)
                samples += len(vectors)
        return means(variables, learning, sums, samples)

    return through


@contextmanager
def _explained(model: keras.Model) -> Iterator[None]:
    """Say what it means when a model or its loss cannot run on one sample."""
    try:
        yield
    except KpipeError:
        raise
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise KpipeError(
            f"The model {model.name!r} or its loss cannot be followed one sample at a time: {error} Use a criterion "
            "that takes whole batches, such as 'taylor'."
        ) from error


def cut_off_ends(outputs: Any, back: Sequence[bool]) -> tuple[list[tf.Tensor], Callable[[tf.Tensor], Any]]:
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


class _Adder:
    """Add Σ (J'v)² over the samples and vectors of a batch to sums.

    Small models are differentiated for several samples together, the others one vector after the other, so that there
    is one gradient at a time.

    Args:
        points: From a batch to the tensors that make up the points of its samples.
        variables: Those to differentiate by.
    """

    def __init__(self, points: Callable[..., Any], variables: Sequence[keras.Variable]):
        self.points, self.values = points, [variable.value for variable in variables]
        self.size = sum(int(np.prod(variable.shape)) for variable in variables)
        self.together = True
        self.many, self.one_by_one = traced(self._many), traced(self._one_by_one)

    def add(self, sums: Sequence[tf.Variable], x: Any, vectors: tf.Tensor) -> None:
        """Add those of one batch, with its vectors (n, K, C)."""
        chunk = AT_ONCE // max(1, self.size * int(tf.shape(vectors)[1]))
        found = self._together(x, vectors, chunk) if self.together and chunk > 1 else None
        if found is None:
            self.one_by_one(sums, x, vectors)
        else:
            for total, whole in zip(sums, found, strict=True):
                total.assign_add(whole)

    def _together(self, x: Any, vectors: tf.Tensor, chunk: int) -> list[tf.Tensor] | None:
        """Sum up a batch, so many samples at once; None when an operation cannot be done for several together."""
        found = [tf.zeros(value.shape) for value in self.values]
        try:
            for part in _chunks(x, vectors, chunk):
                with _quiet():
                    self.together = not _is_unsafe(self.many.get_concrete_function(*part).graph)
                    if not self.together:
                        return None
                    found = [a + b for a, b in zip(found, self.many(*part), strict=True)]
        except (NotImplementedError, TypeError, ValueError, tf.errors.OpError):
            self.together = False
            return None
        return found

    def _many(self, x: Any, vectors: tf.Tensor) -> list[tf.Tensor]:
        """Sum up several samples together."""

        def sample(row: Any) -> list[tf.Tensor]:
            squares = self._squares(tf.nest.map_structure(lambda array: array[None], row[0]))
            return [tf.reduce_sum(found, axis=0) for found in tf.vectorized_map(squares, row[1])]

        return [tf.reduce_sum(found, axis=0) for found in tf.vectorized_map(sample, (x, vectors))]

    def _one_by_one(self, sums: Sequence[tf.Variable], x: Any, vectors: tf.Tensor) -> None:
        """Add one vector of one sample after the other to the sums."""

        def sample(i: tf.Tensor) -> tf.Tensor:
            squares = self._squares(_row(x, i))

            def add(k: tf.Tensor) -> tf.Tensor:
                for total, found in zip(sums, squares(vectors[i, k]), strict=True):
                    total.assign_add(found)
                return k + 1

            _count_to(tf.shape(vectors)[1], add)
            return i + 1

        _count_to(tf.shape(vectors)[0], sample)

    def _squares(self, x: Any) -> Callable[[tf.Tensor], list[tf.Tensor]]:
        """Run the model on one sample; give the function from a vector v to (J'v)² of each variable."""
        tape: Any = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        with tape:
            tape.watch(self.values)
            point = _flat(self.points(x)[0])

        def squares(vector: tf.Tensor) -> list[tf.Tensor]:
            found = tape.gradient(point, self.values, output_gradients=vector, unconnected_gradients=ZERO)
            return [tf.square(tf.cast(gradient, "float32")) for gradient in found]

        return squares


def _is_unsafe(graph: tf.Graph) -> bool:
    """Say whether a graph holds a product that TensorFlow 2.21 computes beyond its memory on CPUs with AVX-512.

    It is that of a batch with an axis of one, as single samples have, by a matrix that is the same for all of them, as
    EinsumDense and attention have: https://github.com/tensorflow/tensorflow/issues/117700
    """
    products = [op.inputs for op in graph.get_operations() if op.type == "BatchMatMulV2"]
    return any(
        left.shape.rank is None
        or (left.shape.rank > 3 and left.shape[-3] in (1, None) and left.shape[:-2] != right.shape[:-2])
        for left, right in products
    )


def _count_to(number: tf.Tensor, step: Callable[[tf.Tensor], tf.Tensor]) -> None:
    """Take steps from 0 on, each of which gives the next, one after the other."""
    tf.while_loop(lambda i: i < number, step, [0], parallel_iterations=1)


def _chunks(x: Any, vectors: tf.Tensor, size: int) -> Iterator[tuple[Any, tf.Tensor]]:
    for start in range(0, len(vectors), size):
        rows = slice(start, start + size)
        yield tf.nest.map_structure(lambda array, rows=rows: array[rows], x), vectors[rows]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow from telling which operations it does one by one, or cannot do, where many are asked for."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)
