"""One weight under pruning: its schedule, its mask, and what changes with it."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns import ByFunction, Pattern, Scope, drop_count
from kpipe.projections import Holder, Mask, first_mask
from kpipe.registry import nearest
from kpipe.targets import Skipped, Target
from kpipe.unstructured.masks import drop_more, due


@dataclass
class Pruned:
    """Keep what is known of one weight.

    Args:
        target: The weight.
        schedule: The name of its schedule.
        mask: What is held; one byte an entry, and nothing else of that size is kept.
        dropped: Number of entries that the mask drops.
    """

    target: Target
    schedule: str | None
    mask: Mask
    dropped: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a pattern sees: (*positions, inputs, outputs)."""
        return self.target.layout.turned_shape(tuple(self.target.variable.shape))

    def is_too_sparse(self, pattern: Pattern, sparsity: float) -> bool:
        """Tell whether more units are dropped than a sparsity asks for."""
        keep = self.target.layout.turn(self.mask.numpy())
        units = pattern.pool(np.where(keep, np.float32(0), -np.inf))
        return int(np.count_nonzero(units == -np.inf)) > drop_count(units.size, sparsity)

    def change(self, before: np.ndarray, keep: np.ndarray, holder: Holder) -> np.ndarray | None:
        """Change the mask, and the weight at once.

        Args:
            before: The keep-mask so far.
            keep: The new keep-mask.
            holder: Holds the mask.

        Returns:
            What has grown: kept now and not before; it is zero at this moment. None when nothing has.
        """
        self.dropped = keep.size - int(np.count_nonzero(keep))
        changed = np.flatnonzero(before != keep)
        if not len(changed):
            return None
        if not keep.reshape(-1)[changed].any():
            holder.drop(self.target.variable, self.mask, keep, changed)
            return None
        self.mask.assign(keep)
        holder.project([self.target.variable])
        return keep & ~before


def pending(weights: Mapping[str, Pruned], sparsity: float, scope: Scope, pattern: Pattern) -> list[str]:
    """List the weights that have to be ranked for a sparsity: those of which counts alone say nothing; see `due`."""
    dropped = {path: one.dropped for path, one in weights.items()}
    return due({path: one.shape for path, one in weights.items()}, dropped, sparsity, scope, pattern)


def lacks(weights: Mapping[str, Pruned], sparsity: float, scope: Scope, pattern: Pattern) -> bool:
    """Tell whether fewer entries are dropped than a sparsity asks for.

    A function as pattern may drop fewer than it is asked to; there it is enough that it has dropped some.

    Example:
        >>> import keras
        >>> from kpipe.patterns import pattern_of, scope_of
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> _ = net.layers[0].kernel.assign([[0.0], [3.0]])
        >>> with Holder(net) as holder:
        ...     held = {"d": hold(Target("d", "kernel", net.layers[0].kernel), None, holder)}
        ...     [lacks(held, sparsity, scope_of("layer"), pattern_of("unstructured")) for sparsity in (0.5, 0.8)]
        [False, True]
    """
    paths = pending(weights, sparsity, scope, pattern)
    if not paths or isinstance(pattern, ByFunction):
        return bool(paths) and not any(one.dropped for one in weights.values())
    keeps = {path: weights[path].mask.numpy() for path in paths}
    alike = {path: np.ones(keep.shape, "float32") for path, keep in keeps.items()}  # how many would go, not which
    layouts = {path: weights[path].target.layout for path in paths}
    wanted = drop_more(keeps, alike, sparsity, scope, pattern, layouts)
    return any(not np.array_equal(wanted[path], keep) for path, keep in keeps.items())


def led(
    targets: Sequence[Target], schedules: Collection[str | None], left_out: Collection[str] = ()
) -> tuple[dict[str, str | None], list[Skipped]]:
    """Find the schedule of each weight: the first whose regular expression is found in its path, or in Keras's own.

    Args:
        targets: Weights to prune.
        schedules: The expressions; None for one that leads all weights.
        left_out: The paths of weights that are not pruned, for now perhaps: a layer may be unfrozen later.

    Returns:
        Path -> expression, and the weights that no schedule leads.

    Raises:
        KpipeError: When no weight is led, or an expression is found in no path at all.

    Example:
        >>> import keras
        >>> targets = [Target(path, "kernel", keras.Variable([[1.0]])) for path in ("conv/kernel", "fc/kernel")]
        >>> names, skipped = led(targets, ["conv"])
        >>> names, [row.path for row in skipped]
        ({'conv/kernel': 'conv'}, ['fc/kernel'])
    """
    names: dict[str, str | None] = {}
    skipped = []
    for target in targets:
        names_of = (target.path, target.variable.path)
        found = [name for name in schedules if name is None or any(re.search(name, path) for path in names_of)]
        if found:
            names[target.path] = found[0]
        else:
            shape = tuple(target.variable.shape)
            skipped.append(Skipped(target.path, shape, "no schedule's expression is found in its path"))
    paths = [target.path for target in targets]
    for name in schedules:
        if name is None or name in names.values():
            continue
        if not any(re.search(name, path) for path in (*paths, *left_out)):
            listed = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
            raise KpipeError(
                f"The schedule's expression {name!r} is found in the path of no weight. The weights to prune: {listed}."
                f"{nearest(name, paths)}"
            )
    if not names:
        raise KpipeError(
            f"The schedules' expressions ({', '.join(map(repr, schedules))}) are found in paths of weights that are "
            f"left out alone, in none of the weights to prune: {', '.join(paths[:8])}."
        )
    return names, skipped


def hold(target: Target, schedule: str | None, holder: Holder) -> Pruned:
    """Hold the zeros that a weight has.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> _ = net.layers[0].kernel.assign([[0.0], [3.0]])
        >>> with Holder(net) as holder:
        ...     one = hold(Target("d/kernel", "kernel", net.layers[0].kernel), None, holder)
        ...     before = one.dropped
        ...     _ = one.change(one.mask.numpy(), np.array([[False], [False]]), holder)
        ...     print(before, one.dropped)
        1 2
        >>> net.layers[0].kernel.numpy().tolist()
        [[0.0], [0.0]]
    """
    keep = first_mask(target.variable.numpy())
    return Pruned(target, schedule, holder.mask(target.variable, keep), keep.size - int(np.count_nonzero(keep)))
