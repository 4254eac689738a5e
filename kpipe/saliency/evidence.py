"""All that a criterion may look at, for one variable; and how it is gathered."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kpipe.data import batches
from kpipe.errors import KpipeError
from kpipe.registry import nearest


@dataclass(frozen=True)
class Evidence:
    """Hold all that a criterion may see of one variable.

    Args:
        role: What the variable does, one of `kpipe.layers.rule.Role`.
        weight: The variable's value.
        grad: Mean over the batches of dL/dw, shaped like `weight`; None when not asked for.
        grad_sq: Mean over the batches of (dL/dw)², shaped like `weight`; None when not asked for.
        rng: A generator seeded by the run's seed and the variable's path.
        curvature: Diagonal of the Gauss-Newton matrix of the mean loss, shaped like `weight`; None when not asked for.
        inputs: L2 norm of the activations that each weight multiplies, broadcastable to `weight`; None when not asked
            for.
        movement: Sum over the training of -w · dL/dw, shaped like `weight`; None outside of a training.
    """

    role: str
    weight: np.ndarray
    grad: np.ndarray | None
    grad_sq: np.ndarray | None
    rng: np.random.Generator
    curvature: np.ndarray | None = None
    inputs: np.ndarray | None = None
    movement: np.ndarray | None = None


FROM_LABELS = ("grad", "grad_sq", "curvature")
"""The fields of `Evidence` that take labelled data and a loss."""

FROM_DATA = (*FROM_LABELS, "inputs")
"""The fields of `Evidence` that take a pass over data."""


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
    weights: Iterable[Any],
    needs: str | Sequence[str] | None = None,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    observed: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> dict[str, Evidence]:
    """Gather the evidence on some weights of a model, without changing them.

    Args:
        model: The model whose loss is differentiated.
        weights: (path, role, variable) of each weight, or objects with these attributes; the path names it in the
            result and seeds its generator.
        needs: Names of the fields of `Evidence` that are asked for beside the weight.
        data: What `model.fit` takes, with labels; needed for gradients.
        loss: A Keras loss or its name. None: the loss the model was compiled with.
        seed: Of the generators.
        observed: Path -> field -> array: what was gathered during a training already, and is taken as it is.

    Returns:
        Path -> evidence.

    Raises:
        KpipeError: When gradients are asked for without data, without labels, or without a loss.
    """
    named = [weight if isinstance(weight, tuple) else (weight.path, weight.role, weight.variable) for weight in weights]
    asked = fields_of(needs)
    seen = observed or {}
    missing = [field for field in asked if any(field not in seen.get(path, {}) for path, _, _ in named)]
    if "movement" in missing:
        raise KpipeError(
            "A criterion that needs 'movement' follows the weights through a training; in one shot there is none. Use "
            "it in kpipe.callbacks.WeightPruning(schedule, criterion='movement') with model.fit."
        )
    variables = [variable for _, _, variable in named]
    means = [(None, None)] * len(variables)
    if "grad" in missing or "grad_sq" in missing:
        means = _gradients(model, variables, data, loss)
    return {
        path: replace(
            Evidence(role, np.asarray(variable), grad, grad_sq, generator(seed, path)),
            **{field: array for field, array in seen.get(path, {}).items() if field in asked},
        )
        for (path, role, variable), (grad, grad_sq) in zip(named, means, strict=True)
    }


def fields_of(needs: str | Sequence[str] | None) -> tuple[str, ...]:
    """Write what a criterion needs as a tuple of fields of `Evidence`.

    Raises:
        KpipeError: When one of them is no such field.

    Example:
        >>> fields_of(None), fields_of("grad"), fields_of(["grad", "inputs"])
        ((), ('grad',), ('grad', 'inputs'))
    """
    asked = () if needs is None else (needs,) if isinstance(needs, str) else tuple(needs)
    known = (*FROM_DATA, "movement")
    for field in asked:
        if field not in known:
            raise KpipeError(f"A criterion needs {field!r}. Known: {', '.join(known)}.{nearest(field, known)}")
    return asked


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
