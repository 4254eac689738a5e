"""One plan for several cuts in a row, and which channels of a layer are left."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.graph import Group, trace
from kpipe.structured.plan import FilterPlan, GroupPlan


def gone_before(groups: Sequence[Group], plan: FilterPlan | None) -> list[int]:
    """Count the channels of each group that a plan, carried out already, has removed.

    Args:
        groups: Of the model as it is now.
        plan: By which it was cut; None: by none.

    Returns:
        A number for each group; 0 where the plan says nothing of it.

    Raises:
        KpipeError: When the plan leaves other numbers of channels than there are.

    Example:
        >>> plan = FilterPlan((GroupPlan("conv", ("conv",), 6, (0, 3)),))
        >>> gone_before([Group("conv", ("conv",), np.arange(4), (1,)), Group("fc", ("fc",), np.arange(9), (1,))], plan)
        [2, 0]
    """
    if plan is not None and not isinstance(plan, FilterPlan):
        raise KpipeError(f"Expected after= as the FilterPlan by which the model was cut. Received: {plan!r}.")
    known = {} if plan is None else {group.name: group for group in plan.groups}
    for group in groups:
        one = known.get(group.name)
        if one is not None and one.kept != len(group):
            raise KpipeError(
                f"The model has {len(group)} channels of {group.name!r}, and the plan given as after= leaves "
                f"{one.kept} of them. Give the plan by which this very model was cut."
            )
    return [len(known[group.name].removed) if group.name in known else 0 for group in groups]


def compose(first: FilterPlan, second: FilterPlan) -> FilterPlan:
    """Write two plans, of which the second is for what the first leaves, as one for the model of the first.

    Args:
        first: The plan that is carried out first.
        second: The plan for the smaller model.

    Returns:
        The plan that removes the channels of both, with the request and the counts of `second` after.

    Raises:
        KpipeError: When the second is not for what the first leaves.

    Example:
        >>> first = FilterPlan((GroupPlan("conv", ("conv",), 6, (0, 3)),))
        >>> second = FilterPlan((GroupPlan("conv", ("conv",), 4, (1, 3)),))
        >>> compose(first, second).groups[0].removed  # of 1, 2, 4, 5 the second and the fourth
        (0, 2, 3, 5)
    """
    later = {group.name: group for group in second.groups}
    groups = []
    for group in first.groups:
        after = later.pop(group.name, None)
        groups.append(group if after is None else _both(group, after))
    groups += later.values()
    return replace(second, groups=tuple(groups), before=first.before)


def _both(first: GroupPlan, second: GroupPlan) -> GroupPlan:
    if second.channels != first.kept:
        raise KpipeError(
            f"The plans do not follow one another: the first leaves {first.kept} channels of {first.name!r}, the "
            f"second expects {second.channels}."
        )
    left = np.setdiff1d(np.arange(first.channels), first.removed)
    removed = np.union1d(first.removed, left[list(second.removed)]).astype(int)
    return replace(second, channels=first.channels, removed=tuple(removed.tolist()))


def kept_channels(model: keras.Model, plan: FilterPlan) -> Mapping[str, tuple[int, tuple[int, ...]]]:
    """Say which channels of each layer's output a plan keeps.

    Args:
        model: The model that the plan is for.
        plan: The plan.

    Returns:
        Path of a layer of one output -> the axis of its channels, the batch axis counted, and the places of those that
        are kept. A layer whose output loses none is left out.

    Example:
        >>> layers = [keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")]
        >>> plan = FilterPlan((GroupPlan("a", ("a",), 4, (1,)),))
        >>> kept_channels(keras.Sequential(layers), plan)
        {'a': (1, (0, 2, 3))}
    """
    traced = trace(model, unknown="freeze")
    removed = {group.name: list(group.removed) for group in plan.groups}
    keep = np.ones(traced.class_count, bool)
    for group in traced.groups:
        keep[group.classes[removed.get(group.name, [])]] = False
    found = {}
    for layer in traced.layers:
        kept = traced.kept(layer.out[0], keep)
        if len(layer.out) == 1 and not kept.all():
            axis = next((n for n in range(kept.ndim) if kept.shape[n] == kept.size), None)
            if axis is not None:  # else they lie along several axes
                found[layer.path] = (axis + 1, tuple(np.flatnonzero(kept).tolist()))
    return found
