"""What a stage says of layers, tried on a model's layers before anything trains."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from kpipe.errors import KpipeError
from kpipe.graph import Trace
from kpipe.pipeline import Misfit
from kpipe.registry import nearest
from kpipe.structured.request import freeze_ignored
from kpipe.targets import PRUNE, Aim, Skipped, Target, candidates, find_targets


def sift(field: str, wanted: Iterable[Any], attempt: Callable[[list[Any]], Any]) -> tuple[list[Any], list[Misfit]]:
    """Try values one after another, each with those before it that were accepted.

    Args:
        field: The field that they are of.
        wanted: The values.
        attempt: Raises a `KpipeError` when the last of the values that it is given does not fit.

    Returns:
        The values that fit, and the misfits.

    Example:
        >>> from kpipe.checks import is_whole
        >>> def even(values):
        ...     if values[-1] % 2:
        ...         raise KpipeError(f"{values[-1]} is odd")
        >>> sift("count", [2, 3, 4], even)
        ([2, 4], [('count', '3 is odd')])
    """
    good: list[Any] = []
    misfits: list[Misfit] = []
    for one in wanted:
        try:
            attempt([*good, one])
        except KpipeError as error:
            misfits.append((field, str(error)))
        else:
            good.append(one)
    return good, misfits


def sift_ignored(traced: Trace, ignore: Sequence[str]) -> tuple[Trace, list[Misfit]]:
    """Freeze what is ignored as far as its expressions find something, and name the others."""
    good, misfits = sift("ignore", ignore, lambda some: freeze_ignored(traced, some))
    return freeze_ignored(traced, good), misfits


def feature_misfits(field: str, features: Sequence[str], model: keras.Model) -> list[Misfit]:
    """Name the expressions that are found in the name of no layer of a model.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="logits")])
        >>> feature_misfits("features", ["log", "logist"], net)
        [('features', "'logist' is found in the name of no layer of the model: logits. Did you mean 'logits'?")]
    """
    names = [layer.name for layer in model.layers]
    return [
        (
            field,
            f"{wanted!r} is found in the name of no layer of the model: {', '.join(names)}.{nearest(wanted, names)}",
        )
        for wanted in features
        if not any(re.search(wanted, name) for name in names)
    ]


def weight_misfits(
    model: keras.Model,
    layers: str | None,
    roles: Sequence[str],
    aim: Aim = PRUNE,
    more: tuple[str, Sequence[str], Callable[[list[Target], list[Skipped], list[str]], Any]] | None = None,
) -> list[Misfit]:
    """Name what finds none of the weights that a stage is to change.

    Args:
        model: The model.
        layers: The stage's pattern of their paths; None for all.
        roles: What a weight has to be.
        aim: What is to be done to them.
        more: A field whose expressions are searched in the paths too, these, and what raises a `KpipeError` when, of
            the weights and of those left out, the last expression that it is given finds none.

    Returns:
        The misfits.
    """
    if layers is not None and _by_the_path_of_a_file(layers, model):
        return []
    try:
        found = find_targets(model, layers, roles, aim)
    except KpipeError as error:
        return [("stage" if layers is None else "layers", str(error))]
    if more is None:
        return []
    field, expressions, attempt = more
    sure = [one for one in expressions if not _by_the_path_of_a_file(one, model)]
    return sift(field, sure, lambda some: attempt(*found, some))[1]


def _by_the_path_of_a_file(expression: str, model: keras.Model) -> bool:
    """Tell whether an expression may rest on a weight's path by Keras, which is shorter in a model that was loaded."""
    paths = [path for path, *_ in candidates(model)]
    tails = ["/".join(parts[start:]) for parts in (path.split("/") for path in paths) for start in range(1, len(parts))]
    return any(re.search(expression, tail) for tail in tails) and not any(re.search(expression, path) for path in paths)
