"""Which layers and residual blocks can be taken out of a model, what they cost, and which of them are meant."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.graph import trace
from kpipe.registry import nearest
from kpipe.structured.request import Ignore
from kpipe.structured.scopes import compiled, several
from kpipe.structured.stretches import Stretch, graphs, in_order, stretches


@dataclass(frozen=True)
class Candidate:
    """Describe what `remove_layers` can take out in one go.

    Args:
        name: Path of the layer that ends it: the layer itself, or the sum that closes a residual block.
        layers: Paths of all that goes: layers, operations and nested models.
        params: How many weights go.
        macs: How many multiply-accumulates a sample go; None when not known.
    """

    name: str
    layers: tuple[str, ...]
    params: int
    macs: int | None


def bypassable(model: keras.Model) -> tuple[Candidate, ...]:
    """List the layers and residual blocks that can be taken out of a model, without touching it.

    A tensor goes into a candidate, and what comes after takes nothing from it but its end, which has the shape and type
    of that tensor: a dense layer of n units on n features, a convolution that keeps its maps along with its norm and
    activation, a residual block from where it branches off to its sum, with or without a mask that others take too.
    Nested models are looked into. What makes an output of the model stays. What computes no multiply-accumulates is not
    listed, nor what lies in another candidate that computes the same.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        The candidates in the order of the model; they may lie in one another, as a layer in its block.

    Raises:
        SurgeryError: When the graph cannot be read.

    Example:
        >>> x = keras.Input((8,))
        >>> y = keras.layers.Dense(32, "relu", name="wide")(x)
        >>> y = keras.layers.Add(name="sum")([x, keras.layers.Dense(8, name="narrow")(y)])
        >>> for candidate in bypassable(keras.Model(x, keras.layers.Dense(2)(y))):
        ...     print(candidate)
        Candidate(name='sum', layers=('wide', 'narrow', 'sum'), params=552, macs=512)
    """
    costs = Costs(model)
    return tuple(costs.candidate(stretch) for stretch in worthwhile(model, costs))


class Costs:
    """Count what the layers and nested models of a model hold and compute, by path."""

    def __init__(self, model: keras.Model):
        self.params: dict[str, int] = {}
        self.macs: dict[str, int | None] = {}
        traced = trace(model, unknown="freeze")
        self._leaves = [layer.path for layer in traced.layers]
        for layer in traced.layers:
            alone = replace(traced, layers=(layer,))
            for path in accumulate(layer.path.split("/"), "{}/{}".format):
                self.params[path] = self.params.get(path, 0) + alone.params()
                before, macs = self.macs.get(path, 0), alone.macs()
                self.macs[path] = None if before is None or macs is None else before + macs

    def plain(self, path: str) -> bool:
        """Say whether a layer or nested model computes no multiply-accumulates."""
        return self.macs[path] == 0

    def computing(self, stretch: Stretch) -> frozenset[str]:
        """Give the paths of the layers in a stretch, and in models inside it, that compute multiply-accumulates."""
        paths = {path for one in stretch.paths for path in self._leaves if f"{path}/".startswith(f"{one}/")}
        return frozenset(path for path in paths if not self.plain(path))

    def candidate(self, stretch: Stretch) -> Candidate:
        """Count what goes with a stretch; of a layer that is also called elsewhere its weights stay."""
        inside, all_calls = (
            Counter(stretch.prefix + node.operation.name for node in nodes)
            for nodes in (stretch.nodes, in_order(stretch.graph))
        )
        params = sum(self.params[path] for path, calls in inside.items() if calls == all_calls[path])
        each = [(self.macs[path], calls, all_calls[path]) for path, calls in inside.items()]
        known = [macs * calls // of for macs, calls, of in each if macs is not None]
        return Candidate(stretch.name, stretch.paths, params, sum(known) if len(known) == len(each) else None)


def worthwhile(model: keras.Model, costs: Costs) -> list[Stretch]:
    """Give the stretches that can be left out and compute something; of two that compute the same, the outer one.

    Without the branch of a residual block, its sum would add up what goes round it and a mere norm of it.
    """
    found = [(one, costs.computing(one)) for one in stretches(model, costs.plain) if not one.why_not]
    found = [(one, computing) for one, computing in found if computing]
    return [
        one
        for one, computing in found
        if not any(other is not one and computing == same and _holds(other, one) for other, same in found)
    ]


def _every(model: keras.Model) -> dict[str, Any]:
    """Map the path of each layer, operation and nested model to it."""
    return {prefix + operation.name: operation for prefix, graph in graphs(model) for operation in graph.operations}


def _matching(wanted: Any, names: Iterable[str], argument: str) -> list[str]:
    pattern = compiled(wanted, argument)
    return [name for name in names if pattern.search(name)]


def layers_found(model: keras.Model, wanted_layers: Ignore, argument: str = "ignore") -> set[str]:
    """Give the paths of the layers that filters mean.

    Args:
        model: A built Functional or Sequential model.
        wanted_layers: A regex on the path, several, or a function of the layer.
        argument: What they were given as, for the error.

    Raises:
        KpipeError: When one of the filters means no layer.

    Example:
        >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "second")]
        >>> layers_found(keras.Sequential([keras.Input((4,)), *dense]), "first")
        {'first'}
    """
    every, found = _every(model), set()
    for wanted in several(wanted_layers, argument):
        if callable(wanted):
            meant = [path for path, layer in every.items() if isinstance(layer, keras.Layer) and wanted(layer)]
        else:
            meant = _matching(wanted, every, argument)
        if not meant:
            known = f"Its layers: {', '.join(every)}."
            raise KpipeError(f"{argument}={wanted!r} matches no layer of {model.name!r}. {known}")
        found.update(meant)
    return found


def touches(stretch: Stretch, stay: set[str]) -> bool:
    """Say whether a layer that stays is in a stretch, in a model inside it, or the model around it."""
    inside = [path + "/" for path in stretch.paths]
    return any(f"{one}/".startswith(path) or path.startswith(f"{one}/") for one in stay for path in inside)


def named(model: keras.Model, layers: str | Sequence[str], stay: set[str]) -> list[str]:
    """Give the names of the stretches that are meant; of those that lie in one another, the outer ones.

    Raises:
        KpipeError: When a regex matches nothing, or one of them cannot be taken out.
    """
    found, meant = stretches(model, Costs(model).plain), []
    for wanted in several(layers, "layers"):
        names = set(_matching(wanted, (one.name for one in found), "layers"))
        if not names:
            raise KpipeError(f"layers={wanted!r} {_why_none(model, wanted, found)}")
        meant += [one for one in found if one.name in names and one not in meant]
    outer = [one for one in meant if not any(_holds(other, one) for other in meant if other is not one)]
    for one in outer:
        reason = one.why_not or ("ignore says that a layer of it stays" if touches(one, stay) else "")
        if reason:
            raise KpipeError(f"{one.name!r} of {model.name!r} cannot be taken out: {reason}.")
    return [one.name for one in outer]


def _holds(outer: Stretch, inner: Stretch) -> bool:
    """Say whether one stretch lies in another, or in a nested model of it."""
    if outer.graph is inner.graph:
        return set(map(id, inner.nodes)) <= set(map(id, outer.nodes))
    return any(inner.prefix.startswith(f"{path}/") for path in outer.paths)


def _why_none(model: keras.Model, wanted: str, found: Sequence[Stretch]) -> str:
    """Say why nothing of a name can be taken out."""
    names = [one.name for one in found if not one.why_not]
    for path in _matching(wanted, _every(model), "layers"):
        around = [one.name for one in found if not one.why_not and path in one.paths]
        where = f"it lies in {', '.join(around)}" if around else f"what can be: {', '.join(names) or 'nothing'}"
        return (
            f"matches {path!r}, which cannot be taken out alone: what comes out of it is not like the one tensor that "
            f"it depends on, or is taken elsewhere too; {where}."
        )
    return f"matches no layer. What can be taken out: {', '.join(names) or 'nothing'}.{nearest(wanted, names)}"


def find(model: keras.Model, name: str) -> Stretch:
    """Find a stretch again in a model from which others have gone.

    Raises:
        KpipeError: When it cannot be taken out any more.
    """
    for stretch in stretches(model, Costs(model).plain):
        if stretch.name == name and not stretch.why_not:
            return stretch
    raise KpipeError(
        f"{name!r} cannot be taken out of {model.name!r} any more, now that others have gone. Name fewer in `layers`."
    )


def no_more(model: keras.Model, small: keras.Model, count: int, done: int, stay: set[str]) -> str:
    """Say why the next layer cannot be taken out."""
    held = [one.name for one in worthwhile(small, Costs(small)) if touches(one, stay)]
    reasons = [f"{', '.join(held)}: ignored"] if held else []
    reasons += [f"{one.name}: {one.why_not}" for one in stretches(small, Costs(small).plain) if one.why_not]
    if not done:
        return (
            f"Nothing of {model.name!r} can be taken out: no layer or block that computes something has an output like "
            f"the one tensor that it depends on. {'; '.join(reasons)}"
        ).strip()
    only = f"count={count}, but only {done} can be taken out of {model.name!r} one after another."
    return f"{only} {'; '.join(reasons)}".strip()
