"""All that a criterion may look at, for one variable; and how it is gathered."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.data import batches
from kpipe.errors import KpipeError


@dataclass(frozen=True)
class Evidence:
    """Hold all that a criterion may see of one variable.

    Args:
        role: What the variable does: "kernel", "depthwise_kernel", "bias", "gamma", "beta", "statistic".
        weight: The variable's value.
        grad: Mean over the batches of dL/dw, shaped like `weight`; None when not asked for.
        grad_sq: Mean over the batches of (dL/dw)², shaped like `weight`; None when not asked for.
        rng: A generator seeded by the run's seed and the variable's path.
    """

    role: str
    weight: np.ndarray
    grad: np.ndarray | None
    grad_sq: np.ndarray | None
    rng: np.random.Generator


def generator(seed: int, path: str) -> np.random.Generator:
    """Seed a generator by a run's seed and a variable's path: the same in every process.

    Example:
        >>> bool(generator(0, "conv/kernel").random() == generator(0, "conv/kernel").random())
        True
    """
    digest = hashlib.sha256(path.encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def gather(
    model: keras.Model,
    weights: Iterable[tuple[str, str, keras.Variable]],
    needs: str | None = None,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> dict[str, Evidence]:
    """Gather the evidence on some weights of a model, without changing them.

    Args:
        model: The model whose loss is differentiated.
        weights: (path, role, variable) of each weight; the path names it in the result and seeds its generator.
        needs: "grad" to pass over the data for gradients; None for the weights alone.
        data: What `model.fit` takes, with labels; needed for gradients.
        loss: A Keras loss or its name. None: the loss the model was compiled with.
        seed: Of the generators.

    Returns:
        Path -> evidence.

    Raises:
        KpipeError: When gradients are asked for without data, without labels, or without a loss.
    """
    weights = list(weights)
    variables = [variable for _, _, variable in weights]
    means = _gradients(model, variables, data, loss) if needs == "grad" else [(None, None)] * len(variables)
    return {
        path: Evidence(role, np.asarray(variable), grad, grad_sq, generator(seed, path))
        for (path, role, variable), (grad, grad_sq) in zip(weights, means, strict=True)
    }


def _loss_function(model: keras.Model, loss: Any) -> Callable[[Any, Any], Any]:
    if loss is not None:
        chosen: Any = keras.losses.get(loss)
        return lambda y, predicted: tf.reduce_mean(chosen(y, predicted))
    if not model.compiled:
        raise KpipeError(
            f"A criterion that needs gradients needs a loss. Received: a model ({model.name!r}) that is not compiled, "
            "and no loss. Compile the model, or pass loss='sparse_categorical_crossentropy' or the like."
        )
    return lambda y, predicted: model.compute_loss(y=y, y_pred=predicted)


def _gradients(
    model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean gradient and mean squared gradient over the batches, for each variable; zeros where none flows."""
    if data is None:
        raise KpipeError("A criterion that needs gradients needs labelled data. Received: data=None. Pass data=(x, y).")
    compute, values = _loss_function(model, loss), [variable.value for variable in variables]
    trainable = [variable.trainable for variable in variables]

    @tf.function
    def step(x: Any, y: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            total = compute(y, model(x, training=False))
        return tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    sums = [(np.zeros(v.shape, "float64"), np.zeros(v.shape, "float64")) for v in variables]
    count = 0
    for x, y in batches(data):
        if y is None:
            raise KpipeError("A criterion that needs gradients needs labels. Received: inputs alone. Pass data=(x, y).")
        for (total, squares), found, learns in zip(sums, step(x, y), trainable, strict=True):
            if learns:
                found = tf.convert_to_tensor(found).numpy().astype("float64")  # an Embedding's gradient is sparse
                total += found
                squares += found**2
        count += 1
    if count == 0:
        raise KpipeError("A criterion that needs gradients needs data. Received: no batch at all.")
    return [((total / count).astype("float32"), (squares / count).astype("float32")) for total, squares in sums]
