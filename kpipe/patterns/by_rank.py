"""One ranking over all weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Self

import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns.pattern import Pattern
from kpipe.patterns.ranking import drop_count, keep_highest, keep_sized
from kpipe.patterns.rescale import RESCALES
from kpipe.patterns.scope import SCOPES, Scope
from kpipe.registry import nearest

Pools = dict[str, np.ndarray]


@SCOPES("global")
@dataclass(frozen=True)
class Global(Scope):
    """Rank the units of all weights together, so that each weight gets a sparsity of its own.

    As many units go as bring the dropped entries to round(sparsity * entries); units of several entries (blocks) bring
    them as near to it as they can. Equal scores go by the order of the weights, then by index. Where ceilings and the
    edges of a pattern leave fewer that may go, all these go.

    Args:
        normalise: "none" compares the scores as they are, "mean" divides them by their weight's mean, "lamp" compares
            each with what is left above it in its weight.
        ceiling: Highest sparsity of any one weight, in (0, 1]. What was dropped before may lie above it and stays.

    Example:
        >>> from kpipe.patterns import keep_masks
        >>> scores = {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 4.0]])}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, Global()).items()}
        {'a': [[False, False]], 'b': [[True, True]]}
        >>> {path: keep.tolist() for path, keep in keep_masks(scores, 0.5, Global(ceiling=0.5)).items()}
        {'a': [[False, True]], 'b': [[False, True]]}
        >>> str(Global("lamp", 0.95)), Global.parse("global:lamp:0.95")
        ('global:lamp:0.95', Global(normalise='lamp', ceiling=0.95))
    """

    ranks = True

    normalise: str = "none"
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if self.normalise not in RESCALES:
            known = ", ".join(RESCALES)
            raise KpipeError(
                f"normalise is {self.normalise!r}; expected one of {known}.{nearest(self.normalise, RESCALES)}"
            )
        number = isinstance(self.ceiling, Real) and not isinstance(self.ceiling, bool)
        if not number or not 0 < self.ceiling <= 1:
            raise KpipeError(f"ceiling is {self.ceiling!r}; expected the highest sparsity of a weight, in (0, 1].")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read "global", "global:NORMALISE" or "global:NORMALISE:CEILING"."""
        name, *rest = text.split(":")
        if name != "global":
            return None
        if len(rest) > 2:
            raise KpipeError(f"The scope is {text!r}; expected a form such as 'global:lamp:0.95'.")
        normalise, ceiling = *rest, *("none", "1")[len(rest) :]
        try:
            return cls(normalise, float(ceiling))
        except ValueError as error:
            if isinstance(error, KpipeError):
                raise
            raise KpipeError(f"The scope is {text!r}; its ceiling {ceiling!r} is no number.") from error

    def check(self, pattern: Pattern, sparsity: float | None = None) -> None:
        """Refuse also a sparsity above the ceiling: no weight is to go beyond it, so all together cannot."""
        super().check(pattern, sparsity)
        if sparsity is not None and sparsity > self.ceiling + 1e-9:
            raise KpipeError(
                f"The sparsity is {sparsity!r}; with ceiling={self.ceiling} no weight goes beyond that, and neither do "
                "all together. Raise the ceiling, or ask for less."
            )

    def keep(self, scores: Mapping[str, np.ndarray], sparsity: float, pattern: Pattern) -> dict[str, np.ndarray]:
        """Choose by one ranking."""
        self.check(pattern, sparsity)
        if not scores:
            return {}
        units = {path: pattern.pool(values, RESCALES[self.normalise]) for path, values in scores.items()}
        sizes = {path: pattern.sizes(values.shape) for path, values in scores.items()}
        entries = {path: values.size for path, values in scores.items()}
        total = sum(entries.values())
        asked = drop_count(total, sparsity)
        most = {path: _entries(units[path] < np.inf, sizes[path]) for path in units} if pattern.limit < 1 else entries
        asked = sum(most.values()) if pattern.at_limit(total, asked) else asked
        caps = most if self.ceiling == 1 else self._caps(units, sizes, most, entries)
        keeps = _rank(units, sizes, min(asked, sum(caps.values())), caps)
        return {path: pattern.spread(keep, scores[path].shape) for path, keep in keeps.items()}

    def _caps(
        self, units: Pools, sizes: Mapping[str, np.ndarray | None], most: Mapping[str, int], entries: Mapping[str, int]
    ) -> dict[str, int]:
        caps = {}
        for path, values in units.items():
            gone = _entries(values == -np.inf, sizes[path])
            caps[path] = max(gone, min(most[path], int(self.ceiling * entries[path] + 1e-9)))
        return caps

    def __str__(self) -> str:
        parts = [] if self.ceiling == 1 else [self.normalise, f"{self.ceiling!r}"]
        return ":".join(["global", *(parts or ([] if self.normalise == "none" else [self.normalise]))])


def _entries(chosen: np.ndarray, sizes: np.ndarray | None) -> int:
    return int(np.count_nonzero(chosen)) if sizes is None else int(sizes[chosen].sum())


def _rank(units: Pools, sizes: Mapping[str, np.ndarray | None], asked: int, caps: Mapping[str, int]) -> Pools:
    """Drop the lowest of all; where that goes past a cap, drop there what the cap allows and rank the others anew."""
    free, keeps = dict(units), {}
    while free:
        found = _drop(free, sizes, asked)
        over = [path for path, keep in found.items() if _entries(~keep, sizes[path]) > caps[path]]
        if not over:
            return {path: (keeps | found)[path] for path in units}
        for path in over:
            keeps |= _drop({path: free.pop(path)}, sizes, caps[path], at_most=True)
            asked -= _entries(~keeps[path], sizes[path])
    return {path: keeps[path] for path in units}


def _drop(units: Pools, sizes: Mapping[str, np.ndarray | None], asked: int, at_most: bool = False) -> Pools:
    each = [size for path in units if (size := sizes[path]) is not None]
    if not each:
        return dict(zip(units, keep_highest(list(units.values()), asked), strict=True))
    return dict(zip(units, keep_sized(list(units.values()), each, asked, at_most), strict=True))
