"""Which weights of a model are pruned or clustered, and why the others are not."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import keras

from kpipe.copies import check_built
from kpipe.errors import KpipeError
from kpipe.layers import (
    KERNEL_ROLES,
    NATURAL,
    Layout,
    Role,
    Weight,
    layers_within,
    located,
    own_variables,
    roles_of,
    unique,
    unlisted,
    weight_facts_of,
    weights_within,
)
from kpipe.registry import nearest
from kpipe.targets.selection import LayerFilter, Selector, selector

PRUNED_ROLES: tuple[Role, ...] = ("kernel", "recurrent_kernel", "embedding")
"""Those of `kpipe.layers.KERNEL_ROLES` that weight pruning takes when it is not told otherwise.

Depthwise kernels are left dense, as Zhu and Gupta (2017, on MobileNet) and TFMOT do: they are a small share of the
weights, and their nine or so entries a channel cannot spare many.
"""

PACKED = ("int8", "int4", "gptq", "awq")
"""Quantization modes of Keras that store a kernel as integers."""

NOT_SELECTED = "not selected by layers"
UNBUILT = "it has no weights yet: call the model on data first"


@dataclass(frozen=True)
class Aim:
    """Say in the words of a message what is to be done to the weights, and what they are to be afterwards."""

    verb: str
    done: str
    adjective: str
    result: str


PRUNE = Aim("prune", "pruned", "prunable", "sparse")


@dataclass(frozen=True)
class Target:
    """Name one weight that is chosen.

    Args:
        path: The names of the layers around the weight and its own, made unique: the same however the model was made or
            loaded, which Keras's variable path is not.
        role: What it does; see `kpipe.layers.Role`.
        variable: The weight.
        layout: Its axes.
        layer: The layer that holds it.
    """

    path: str
    role: str
    variable: keras.Variable
    layout: Layout = NATURAL
    layer: keras.Layer | None = None


@dataclass(frozen=True)
class Skipped:
    """Name one weight that is left as it is, and why; a layer that has no weights yet, with the shape ()."""

    path: str
    shape: tuple[int, ...]
    reason: str


def find_targets(
    model: keras.Model, layers: LayerFilter = None, roles: Sequence[str] = PRUNED_ROLES, aim: Aim = PRUNE
) -> tuple[list[Target], list[Skipped]]:
    """Choose the weights to prune or cluster: the kernels of the layers that kpipe knows, narrowed by a filter.

    A layer of one's own joins by `kpipe.layers.register_weights`, or by a method `get_prunable_weights()` that lists
    variables: these are kernels then, and nothing else in that layer is chosen.

    Args:
        model: A built model, nested or subclassed too.
        layers: None, a regular expression searched in the weight's path, a layer class or a tuple of them, or a
            function of the layer. A class means what is inside such a layer too; a function is asked about the layer
            that holds the weight, or about the LSTM or attention whose part that is.
        roles: What a weight has to be: any of the kernel roles of `kpipe.layers`, for instance
            ("kernel", "depthwise_kernel"); biases and norms too, if the criterion judges them.
        aim: What is to be done to them, for the messages.

    Returns:
        The targets, and every other weight that is or could be trained with the reason why it is left out.

    Raises:
        KpipeError: When the model is not built, the filter or a role is not valid, or no weight is left.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")
        >>> net = keras.Sequential([keras.Input((2,)), a, b])
        >>> chosen, skipped = find_targets(net, layers="b/")
        >>> chosen[0].variable is b.kernel, len(chosen), [row.reason for row in skipped][:2]
        (True, 1, ['not selected by layers', "its role is 'bias', only kernels are pruned"])
    """
    check_built(model)
    roles, selects, left_out = _check_roles(roles), selector(model, layers), unlisted(model)
    targets: list[Target] = []
    skipped = [Skipped(path, (), UNBUILT) for path, layer in located(model).items() if _waits(layer)]
    for path, layer, variable, weight in candidates(model):
        if id(variable) in left_out:
            reason = f"get_prunable_weights() of {left_out[id(variable)]!r} leaves it out"
        elif layer.quantization_mode in PACKED and _stands_for_kernel(layer, variable):
            mode = layer.quantization_mode
            reason = f"its layer is quantized to {mode}: {aim.verb} before model.quantize({mode!r})"
        elif weight is None:
            reason = _unknown(layer, variable, aim)
        else:
            reason = _unwanted(weight, roles, selects, (path, variable.path), aim)
            if reason is None:
                targets.append(Target(path, weight.role, variable, weight.layout, weight.layer))
        if reason is not None:
            skipped.append(Skipped(path, tuple(variable.shape), reason))
    if not targets:
        raise KpipeError(_nothing(model, layers, skipped, aim))
    return targets, skipped


def trainable(model: keras.Model, roles: Sequence[str] = PRUNED_ROLES) -> list[bool]:
    """Tell of each weight of a role whether it is trained now, in the order of the model.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1, trainable=False)])
        >>> trainable(net)
        [True, False]
    """
    return [weight.variable.trainable for weight in weights_within(model) if weight.role in roles]


def _check_roles(roles: Sequence[str]) -> tuple[str, ...]:
    given, known = (roles,) if isinstance(roles, str) else tuple(roles), get_args(Role)
    for role in given:
        if role not in known or role == "statistic":
            raise KpipeError(
                f"roles holds {role!r}; expected any of {', '.join(known[:-1])}.{nearest(str(role), known[:-1])}"
            )
    if not given:
        raise KpipeError(f"roles is empty; expected any of {', '.join(KERNEL_ROLES)}.")
    return given


def candidates(model: keras.Model) -> Iterator[tuple[str, keras.Layer, keras.Variable, Weight | None]]:
    """Give each variable once, with its path and the layer that speaks for it: all that train or could, all kernels.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a")], name="net")
        >>> [(path, variable.path) for path, _, variable, _ in candidates(net)]
        [('a/kernel', 'net/a/kernel'), ('a/bias', 'net/a/bias')]
    """
    known = {id(weight.variable): weight for weight in weights_within(model)}
    seen: set[int] = set()
    paths: set[str] = set()
    places = {id(layer): path for path, layer in located(model).items()}
    for layer in layers_within(model):
        trained = {id(variable) for variable in layer._trainable_variables}
        for variable in own_variables(layer):
            weight = known.get(id(variable))
            kernel = _stands_for_kernel(layer, variable) or (weight is not None and weight.role in KERNEL_ROLES)
            if id(variable) in seen or not (id(variable) in trained or kernel):
                continue
            speaker = weight.layer if weight else layer
            holder = speaker if any(own is variable for own in own_variables(speaker)) else layer
            name = re.sub(r"^variable_\d+$", "variable", variable.name)  # a number that Keras counts on and on
            path = unique(f"{places[id(holder)]}/{name}".lstrip("/"), paths)
            seen.add(id(variable))
            paths.add(path)
            yield path, speaker, variable, weight


def _stands_for_kernel(layer: keras.Layer, variable: keras.Variable) -> bool:
    """Say whether a variable is the stored form of a kernel, which low-rank adapters and packed integers replace."""
    return roles_of(layer).get(variable.name.removeprefix("quantized_")) in KERNEL_ROLES


def _waits(layer: keras.Layer) -> bool:
    """Say whether a layer will have kernels, but has none yet: nothing has been given to it."""
    facts = weight_facts_of(layer)
    kernels = not callable(facts.roles) and any(role in KERNEL_ROLES for role in (facts.roles or {}).values())
    return not layer.built and (kernels or (facts.whole and not layer._layers))


def _unknown(layer: keras.Layer, variable: keras.Variable, aim: Aim) -> str:
    if getattr(layer, "lora_enabled", False):
        return (
            f"LoRA is enabled: the sum of the frozen kernel and its adapters would not be {aim.result}. "
            f"{aim.verb.capitalize()} before enable_lora(), or load the saved weights, into which the adapters are "
            "merged, in a model without LoRA"
        )
    if getattr(variable, "overwrite_with_gradient", False):
        return "it is a scale of float8 training"
    kind = type(layer).__name__
    return (
        f"kpipe knows no role of this weight of {kind}. If it is a kernel, say so with kpipe.layers.register_weights("
        f"{kind}, roles={{...: 'kernel'}}), or list it in get_prunable_weights() of {kind}"
    )


def _unwanted(weight: Weight, roles: Collection[str], selects: Selector, paths: Sequence[str], aim: Aim) -> str | None:
    """Say why a weight of known role is not chosen; None when it is."""
    variable = weight.variable
    if not keras.backend.is_float_dtype(variable.dtype):
        return f"its type is {variable.dtype}, only floating-point weights are {aim.done}"
    if weight.role not in roles:
        if weight.role in KERNEL_ROLES or not set(roles) <= set(KERNEL_ROLES):
            return f"its role is {weight.role!r}, which roles={tuple(roles)} leaves out"
        return f"its role is {weight.role!r}, only kernels are {aim.done}"
    if not selects(weight.layer, paths):
        return NOT_SELECTED
    return None if variable.trainable else "frozen: trainable is False"


def _nothing(model: keras.Model, layers: LayerFilter, skipped: list[Skipped], aim: Aim) -> str:
    filtered = [row.path for row in skipped if row.reason == NOT_SELECTED]
    if filtered:
        paths = ", ".join(filtered[:8]) + (", ..." if len(filtered) > 8 else "")
        hint = nearest(layers, filtered) if isinstance(layers, str) else ""
        able = f"{aim.adjective} weight"
        return f"layers={layers!r} matches no {able} of {model.name!r}. Its {able}s: {paths}.{hint}"
    telling = sorted(skipped, key=lambda row: row.reason.startswith("its role is"))[:8]
    reasons = "; ".join(f"{row.path}: {row.reason}" for row in telling) or "it has no weights"
    return f"The model {model.name!r} has no weight to {aim.verb} ({reasons}). Give a model with Dense or Conv layers."
