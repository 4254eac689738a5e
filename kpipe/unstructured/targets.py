"""Which weights of a model are pruned, and why the others are not."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import keras

from kpipe.copies import check_built
from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout, known, leaves, weights
from kpipe.registry import nearest

LayerFilter = str | Callable[[keras.Layer], bool] | None
"""None for every layer, a regular expression on the weight's path, or a function of the layer."""

PRUNED_ROLES = ("kernel", "recurrent_kernel", "embedding")
PRUNED_ROLE = "kernel"
"""The one of `kpipe.layers.KERNEL_ROLES` that weight pruning takes.

Depthwise kernels are left dense, as Zhu and Gupta (2017, on MobileNet) and TFMOT do: they are a small share of the
weights, and their nine or so entries a channel cannot spare many.
"""


@dataclass(frozen=True)
class Target:
    """Name one weight to prune; `path` is unique in the model, `layer` holds the weight, `layout` says its axes."""

    path: str
    role: str
    variable: keras.Variable
    layout: Layout = NATURAL
    layer: keras.Layer | None = None


@dataclass(frozen=True)
class Skipped:
    """Name one weight that is not pruned, and why."""

    path: str
    shape: tuple[int, ...]
    reason: str


def find_targets(model: keras.Model, layers: LayerFilter = None) -> tuple[list[Target], list[Skipped]]:
    """Choose the weights to prune: the kernels of the layers that kpipe knows, narrowed by a filter.

    Args:
        model: A built model, nested or subclassed too.
        layers: None, a regular expression searched in the weight's path, or a function of the layer.

    Returns:
        The targets, and every other trainable weight with the reason why it is left out.

    Raises:
        KpipeError: When the model is not built, the filter is not valid, or nothing is left to prune.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")
        >>> net = keras.Sequential([keras.Input((2,)), a, b])
        >>> chosen, skipped = find_targets(net, layers="b/")
        >>> chosen[0].variable is b.kernel, len(chosen), [row.reason for row in skipped][:2]
        (True, 1, ['not selected by layers', "its role is 'bias', only kernels are pruned"])
    """
    check_built(model)
    selects = _selector(layers)
    targets: dict[int, Target] = {}
    skipped: dict[int, Skipped] = {}
    names: dict[str, int] = {}
    for layer in leaves(model):
        known_weights = {id(weight.variable): weight for weight in weights(layer)}
        roles = {key: weight.role for key, weight in known_weights.items()}
        for variable in layer._trainable_variables:
            if id(variable) in targets or id(variable) in skipped:
                continue
            path = _unique(variable.path, names)
            reason = _reason(layer, variable, roles.get(id(variable)), selects)
            if reason is None:
                targets[id(variable)] = Target(
                    path, roles[id(variable)], variable, known_weights[id(variable)].layout, layer
                )
            else:
                skipped[id(variable)] = Skipped(path, tuple(variable.shape), reason)
    if not targets:
        raise KpipeError(_nothing(model, layers, list(skipped.values())))
    return list(targets.values()), list(skipped.values())


def _selector(layers: LayerFilter) -> Callable[[keras.Layer, str], bool]:
    if layers is None:
        return lambda layer, path: True
    if isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise KpipeError(f"layers is {layers!r}, which is no regular expression: {error}.") from error
        return lambda layer, path: pattern.search(path) is not None
    if callable(layers):
        return lambda layer, path: bool(layers(layer))
    raise KpipeError(f"layers is {layers!r}; expected None, a regular expression on paths, or a function of a layer.")


def _reason(
    layer: keras.Layer, variable: keras.Variable, role: str | None, selects: Callable[[keras.Layer, str], bool]
) -> str | None:
    if role is None:
        kind = type(layer).__name__
        return f"kpipe knows no role of this weight of {kind}" if known(layer) else f"kpipe has no rule for {kind}"
    if role != PRUNED_ROLE:
        return f"its role is {role!r}, only kernels are pruned"
    if not selects(layer, variable.path):
        return "not selected by layers"
    return None if variable.trainable else "frozen: trainable is False"


def _unique(path: str, names: dict[str, int]) -> str:
    names[path] = names.get(path, 0) + 1
    return path if names[path] == 1 else f"{path}#{names[path]}"


def _nothing(model: keras.Model, layers: LayerFilter, skipped: list[Skipped]) -> str:
    filtered = [row.path for row in skipped if row.reason == "not selected by layers"]
    if filtered:
        paths = ", ".join(filtered[:8]) + (", ..." if len(filtered) > 8 else "")
        hint = nearest(layers, filtered) if isinstance(layers, str) else ""
        return f"layers={layers!r} matches no prunable weight of {model.name!r}. Its prunable weights: {paths}.{hint}"
    reasons = "; ".join(f"{row.path}: {row.reason}" for row in skipped[:8]) or "it has no weights"
    return f"The model {model.name!r} has no weight to prune ({reasons}). Give a model with Dense or Conv layers."
