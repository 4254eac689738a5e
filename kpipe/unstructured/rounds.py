"""What a round of a lottery ticket takes: of which weights, how much, and by whose judgement."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.patterns import MaskFunction, Pattern, Scope
from kpipe.projections import first_mask
from kpipe.registry import nearest
from kpipe.saliency import FROM_DATA, Criterion, check_data, criterion_of, gather
from kpipe.targets import Skipped, Target
from kpipe.unstructured.masks import drop_more, judge

PerRound = float | Mapping[str, float]
"""Fraction of what is left that a round prunes, of all weights alike or by regular expressions on their paths."""

ScopeChoice = str | Mapping[str, Any] | Scope
"""Whatever `kpipe.patterns.scope_of` takes."""


@dataclass(frozen=True)
class Chosen:
    """Name a weight to prune.

    Args:
        target: The weight of the model that is given.
        place: Its index in `model.weights`, which is the same in copies.
        fraction: What a round takes of what is left.
        weight: What it begins with.
    """

    target: Target
    place: int
    fraction: float
    weight: np.ndarray

    def sparsity(self, number: int, highest: float | None) -> float:
        """Give the fraction of zeros after a number of rounds; a weight that has more already keeps them."""
        kept = np.count_nonzero(first_mask(self.weight)) / self.weight.size
        wanted = 1 - kept * (1 - self.fraction) ** number
        return wanted if highest is None else max(1 - kept, min(wanted, highest))

    def rounds(self, highest: float) -> int:
        """Give the number of rounds after which it has that fraction of zeros."""
        kept = np.count_nonzero(first_mask(self.weight)) / self.weight.size
        return math.ceil(math.log((1 - highest) / kept) / math.log(1 - self.fraction) - 1e-9)

    def of(self, twin: keras.Model) -> Target:
        """Name the same weight of a copy of the model."""
        return replace(self.target, variable=twin.weights[self.place], layer=None)


def choose(model: keras.Model, targets: list[Target], skipped: list[Skipped], per_round: PerRound) -> dict[str, Chosen]:
    """Give each weight its fraction a round; a weight that no expression is found in is left out.

    Args:
        model: The model.
        targets: Those of its weights that may be pruned.
        skipped: The others; an expression may be found in one of these alone.
        per_round: The fractions. Expressions are searched in the paths of the report and in Keras's own.

    Returns:
        Path -> what is chosen.

    Raises:
        KpipeError: When a fraction or an expression does not fit, or one is found nowhere.
    """
    fractions = fractions_of(per_round)
    names = {target.path: (target.path, target.variable.path) for target in targets}
    known = [*names.values(), *((row.path,) for row in skipped)]
    for wanted in fractions:
        if not any(_is_found(wanted, paths) for paths in known):
            hint = nearest(wanted, names)
            raise KpipeError(f"per_round has {wanted!r}, which matches no weight. {_listed(targets)}{hint}")
    places = {id(variable): place for place, variable in enumerate(model.weights)}
    found = {}
    for target in targets:
        first = next((share for wanted, share in fractions.items() if _is_found(wanted, names[target.path])), None)
        if first is not None:
            found[target.path] = Chosen(target, places[id(target.variable)], first, target.variable.numpy())
    if not found:
        raise KpipeError(f"per_round={per_round!r} matches none of the weights to prune. {_listed(targets)}")
    return found


def fractions_of(per_round: PerRound) -> Mapping[str, float]:
    """Give the fractions by expressions; the empty one is found in every path.

    Raises:
        KpipeError: When there are none, one is no fraction, or an expression is none.

    Example:
        >>> fractions_of(0.2), fractions_of({"conv": 0.1})
        ({'': 0.2}, {'conv': 0.1})
    """
    fractions = per_round if isinstance(per_round, Mapping) else {"": per_round}
    numbers = [value for value in fractions.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if not fractions or len(numbers) < len(fractions) or not all(0 < value < 1 for value in numbers):
        raise KpipeError(
            f"per_round is {per_round!r}; expected a fraction in (0, 1), such as 0.2, or a mapping of expressions to "
            "such."
        )
    for expression in fractions:
        try:
            re.compile(expression)
        except (re.error, TypeError) as error:
            raise KpipeError(f"per_round has {expression!r}, which is no regular expression: {error}.") from error
    return fractions


def _listed(targets: Sequence[Target]) -> str:
    names = [target.path for target in targets]
    return f"The weights to prune: {', '.join(names[:8])}{', ...' if len(names) > 8 else '.'}"


def _is_found(expression: str, paths: Sequence[str]) -> bool:
    return any(re.search(expression, path) for path in paths)


def count_rounds(chosen: Mapping[str, Chosen], rounds: int | None, sparsity: float | None) -> int:
    """Give the number of rounds: the one that is asked for, or as many as it takes to the sparsity.

    Raises:
        KpipeError: When both are given or none is, or there is nothing to do.
    """
    if (rounds is None) == (sparsity is None):
        raise KpipeError(f"Received rounds={rounds!r} and sparsity={sparsity!r}; expected exactly one of them.")
    if sparsity is not None:
        if not 0 < sparsity < 1:
            raise KpipeError(f"The sparsity is {sparsity!r}; expected a fraction of zeros in (0, 1), such as 0.8.")
        rounds = max(one.rounds(sparsity) for one in chosen.values())
    if not isinstance(rounds, int) or rounds < 1:
        reached = f"sparsity={sparsity!r} is reached already" if sparsity is not None else f"rounds is {rounds!r}"
        raise KpipeError(f"{reached}; expected at least one round of training and pruning.")
    return rounds


def share_out(
    chosen: Mapping[str, Chosen], number: int, sparsity: float | None, alone: bool
) -> list[tuple[float, list[str]]]:
    """Put together which weights share a sparsity after this round, which the scope shares out."""
    groups: dict[float, list[str]] = {}
    for path, one in chosen.items():
        groups.setdefault(one.sparsity(number, sparsity) if alone else one.fraction, []).append(path)
    if alone:
        return list(groups.items())
    shared = []
    for paths in groups.values():
        sizes = [chosen[path].weight.size for path in paths]
        each = [chosen[path].sparsity(number, sparsity) for path in paths]
        shared.append((float(np.average(each, weights=sizes)), paths))
    return shared


@dataclass(frozen=True)
class Judging:
    """Hold how trained weights are judged, and what goes together; the arguments are those of `find_ticket`.

    Raises:
        KpipeError: When the criterion needs data, and there are none that can be gone through in every round.
    """

    criterion: str | Criterion
    pattern: str | Pattern | MaskFunction
    scope: ScopeChoice
    data: Any
    loss: Any
    seed: int

    def __post_init__(self) -> None:
        needs = [field for field in criterion_of(self.criterion)[1]["needs"] if field in FROM_DATA]
        if needs and self.data is None:
            raise KpipeError(
                f"The criterion {self.criterion!r} needs data ({', '.join(needs)}). Give find_ticket(..., data=(x, y))."
            )
        if needs:
            check_data(self.data, again="find_ticket")

    def keeps(
        self, trained: keras.Model, chosen: Mapping[str, Chosen], groups: list[tuple[float, list[str]]], number: int
    ) -> dict[str, np.ndarray]:
        """Give the keep-mask of each weight when every group is brought to its sparsity."""
        function, facts = criterion_of(self.criterion)
        targets = [one.of(trained) for one in chosen.values()]
        evidence = gather(trained, targets, facts["needs"], self.data, self.loss, self.seed + number)
        scores, layouts = judge(function, evidence), {target.path: target.layout for target in targets}
        keeps: dict[str, np.ndarray] = {}
        for sparsity, paths in groups:
            before = {path: first_mask(evidence[path].weight) for path in paths}
            mine = {path: scores[path] for path in paths}
            keeps |= drop_more(before, mine, sparsity, self.scope, self.pattern, layouts)
        return keeps


def note_gone(dropped: Mapping[str, np.ndarray], keeps: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Note which entries go in a round.

    Example:
        >>> before = {"a": np.array([1, 0, 0], "int16")}
        >>> note_gone(before, {"a": np.array([False, False, True])}, number=2)["a"].tolist()
        [1, 2, 0]
    """
    return {path: np.where((gone == 0) & ~keeps[path], number, gone).astype("int16") for path, gone in dropped.items()}
