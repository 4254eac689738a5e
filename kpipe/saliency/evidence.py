"""All that a criterion may look at, for one variable; and how it is gathered."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kpipe.checks import broken_in, check_seed, not_finite
from kpipe.errors import KpipeError
from kpipe.projections import view
from kpipe.registry import nearest
from kpipe.saliency.activations import input_norms
from kpipe.saliency.batches import Pass, check_data, labelled, refuse_broken
from kpipe.saliency.curvature import gauss_newton_diagonal
from kpipe.saliency.gradients import mean_gradients, mean_squared_gradients
from kpipe.saliency.outputs import active_outputs, mean_outputs


@dataclass(frozen=True)
class Evidence:
    """Hold all that a criterion may see of one variable.

    Args:
        role: What the variable does, one of `kpipe.layers.rule.Role`.
        weight: The variable's value; it cannot be written to.
        grad: Mean over the batches of dL/dw, shaped like `weight`; None when not asked for.
        grad_sq: Mean over the samples of (dl/dw)², l the loss of one sample, shaped like `weight`: the diagonal of the
            empirical Fisher matrix; None when not asked for.
        rng: A generator seeded by the run's seed and the variable's path.
        curvature: Diagonal of the Gauss-Newton matrix of the mean loss, shaped like `weight`; None when not asked for.
        inputs: L2 norm of the activations that each weight multiplies, broadcastable to `weight`; None when not asked
            for, or not known for this weight.
        movement: Sum over the training of -w · dL/dw, shaped like `weight`; None outside of a training.
        outputs: Mean size of the activations of each channel that the weight produces, broadcastable to `weight`; None
            when not asked for, and for what is no kernel.
        active: Fraction of these activations that are not zero, likewise.
    """

    role: str
    weight: np.ndarray
    grad: np.ndarray | None
    grad_sq: np.ndarray | None
    rng: np.random.Generator
    curvature: np.ndarray | None = None
    inputs: np.ndarray | None = None
    movement: np.ndarray | None = None
    outputs: np.ndarray | None = None
    active: np.ndarray | None = None


FROM_LABELS = ("grad", "grad_sq", "curvature")
"""The fields of `Evidence` that take labelled data and a loss."""

FROM_DATA = (*FROM_LABELS, "inputs", "outputs", "active")
"""The fields of `Evidence` that take a pass over data."""


def generator(seed: int, path: str) -> np.random.Generator:
    """Seed a generator by a run's seed and a variable's path: the same in every process.

    Raises:
        KpipeError: When the seed is no whole number of at least 0.

    Example:
        >>> bool(generator(0, "conv/kernel").random() == generator(0, "conv/kernel").random())
        True
    """
    check_seed(seed)
    digest = hashlib.sha256(path.encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


class Passes:
    """Keep passes over data ready for a model that is gone through again and again, as in a training.

    A pass that is kept needs no new trace of the model. It is prepared anew for another model or loss, for weights that
    it has not taken yet, and when the model has been compiled or something in it frozen or unfrozen meanwhile. What is
    kept holds on to the model; it keeps no sums of gradients.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> passes, given = Passes(), ([("k", "kernel", net.weights[0])], "inputs")
        >>> [gather(net, *given, data=np.array([[x]]), passes=passes)["k"].inputs.item() for x in (3.0, 4.0)]
        [3.0, 4.0]
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def go(
        self, field: str, model: keras.Model, variables: Sequence[keras.Variable], data: Any, loss: Any
    ) -> list[np.ndarray | None]:
        """Go through data once for a field of `Evidence`: an array for each variable, None where it is not known."""
        rests_on = (model, loss, getattr(model, "_compile_loss", None))
        learning = [variable.trainable for variable in model.variables]
        kept = self._kept.get(field)
        if kept is not None and not kept.rests_on_the_same(rests_on, learning):
            kept = None
        known = {id(variable): variable for variable in kept.variables} if kept else {}
        every = list((known | {id(variable): variable for variable in variables}).values())
        if kept is None or len(every) > len(known):
            kept = _Kept(rests_on, learning, every, PASSES[field](model, every, loss))
            self._kept[field] = kept
        found = {id(variable): array for variable, array in zip(every, kept.through(data), strict=True)}
        return [found[id(variable)] for variable in variables]


@dataclass(frozen=True)
class _Kept:
    """A pass that is ready, for some variables, and what it rests on."""

    rests_on: tuple[Any, ...]
    learning: list[bool]
    variables: list[keras.Variable]
    through: Pass

    def rests_on_the_same(self, rests_on: tuple[Any, ...], learning: list[bool]) -> bool:
        return self.learning == learning and all(a is b for a, b in zip(self.rests_on, rests_on, strict=True))


def gather(
    model: keras.Model,
    weights: Iterable[Any],
    needs: str | Sequence[str] | None = None,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
    observed: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    passes: Passes | None = None,
) -> dict[str, Evidence]:
    """Gather the evidence on some weights of a model; the model stays as it is.

    Args:
        model: The model; it runs in inference mode.
        weights: (path, role, variable) of each weight, or objects with these attributes; the path names it in the
            result and seeds its generator.
        needs: Names of the fields of `Evidence` that are asked for beside the weight.
        data: What `model.fit` takes: with labels for gradients and curvature (sample weights count), with or without
            for activations. It is gone through once for each field.
        loss: What `compile` takes as loss. None: the loss that the model is compiled with.
        seed: Of the generators.
        observed: Path -> field -> array: what was gathered during a training already, and is taken as it is.
        passes: Those that earlier calls have prepared, and what this one prepares; None: nothing is kept.

    Returns:
        Path -> evidence.

    Raises:
        KpipeError: When data, labels, a loss or a training is missing for what is asked for. When a pass shows values
            that are not finite, because weights of the model or the data are not.

    Example:
        >>> net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> found = gather(net, [("k", "kernel", net.weights[0])], "inputs", data=np.array([[3.0], [4.0]]))
        >>> found["k"].inputs.tolist(), found["k"].grad
        ([[5.0]], None)
    """
    named = [weight if isinstance(weight, tuple) else (weight.path, weight.role, weight.variable) for weight in weights]
    fields: dict[str, dict[str, Any]] = {path: {} for path, _, _ in named}
    asked, ready = fields_of(needs), passes or Passes()
    if sum(field in FROM_DATA for field in asked) > 1:
        check_data(data, again=f"a criterion that needs {' and '.join(asked)}")
    for field in asked:
        seen = {path: found[field] for path, found in (observed or {}).items() if field in found}
        missing = {path: variable for path, _, variable in named if path not in seen}
        if missing and field in FROM_LABELS:
            labelled(data)  # what is wrong with the data is said before anything is traced
        passed = ready.go(field, model, list(missing.values()), data, loss) if missing else []
        if any(array is not None and not_finite(array) for array in passed):
            if broken := broken_in(model):
                raise KpipeError(broken)
            refuse_broken(data)
        seen |= dict(zip(missing, passed, strict=True))
        for path, known in fields.items():
            known[field] = seen[path]
    return {
        path: Evidence(
            **{"grad": None, "grad_sq": None} | fields[path],
            role=role,
            weight=_value(variable),
            rng=generator(seed, path),
        )
        for path, role, variable in named
    }


def _value(variable: keras.Variable) -> np.ndarray:
    value = view(variable)
    return value if value.dtype in ("float32", "float64") else value.astype("float32")


def _no_training(*_: Any) -> Pass:
    raise KpipeError(
        "A criterion that needs 'movement' follows the weights through a training; in one shot there is none. Use it "
        "in model.fit: for single weights in kpipe.callbacks.WeightPruning(schedule, criterion='movement'), for whole "
        "channels in kpipe.callbacks.FilterPruning(schedule, criterion='movement')."
    )


PASSES: dict[str, Callable[[keras.Model, Sequence[keras.Variable], Any], Pass]] = {
    "grad": mean_gradients,
    "grad_sq": mean_squared_gradients,
    "curvature": gauss_newton_diagonal,
    "inputs": input_norms,
    "movement": _no_training,
    "outputs": mean_outputs,
    "active": active_outputs,
}
"""Field of `Evidence` -> function of (model, variables, loss) that prepares the pass over data."""


def fields_of(needs: str | Sequence[str] | None) -> tuple[str, ...]:
    """Write what a criterion needs as a tuple of fields of `Evidence`.

    Raises:
        KpipeError: When one of them is no such field.

    Example:
        >>> fields_of(None), fields_of("grad"), fields_of(["grad", "inputs"])
        ((), ('grad',), ('grad', 'inputs'))
    """
    asked = () if needs is None else (needs,) if isinstance(needs, str) else tuple(needs)
    for field in asked:
        if field not in PASSES:
            raise KpipeError(f"A criterion needs {field!r}. Known: {', '.join(PASSES)}.{nearest(field, PASSES)}")
    return asked
