"""Whole layers and residual blocks: what can be left out is found from the graph, ranked, and taken out for real."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kpipe.checks import check_seed, is_whole
from kpipe.errors import KpipeError, NoEffectWarning
from kpipe.registry import nearest
from kpipe.saliency import check_data
from kpipe.saliency.losses import undisturbed
from kpipe.saliency.metrics import METRICS, Answer, Own, input_batches, metric_of
from kpipe.structured.candidates import Costs, find, layers_found, named, no_more, touches, worthwhile
from kpipe.structured.filters import refuse_quantized
from kpipe.structured.request import Ignore
from kpipe.structured.scopes import several
from kpipe.structured.shorten import check_shortening, shorten
from kpipe.structured.stretches import Stretch, answers

CRITERIA = ("output", "random", *METRICS)
"""What layers can be ranked by, beside a function of one's own."""


def remove_layers(
    model: keras.Model,
    count: int | None = None,
    layers: str | Sequence[str] | None = None,
    criterion: str | Own = "output",
    data: Any = None,
    loss: Any = None,
    ignore: Ignore = None,
    seed: int = 0,
    check: bool = True,
) -> keras.Model:
    """Take whole layers and residual blocks out of a model: what came in goes on in place of what came out.

    Of the `bypassable` ones the model does best without goes first, and after each all are ranked anew.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        count: How many to take out. Give this or `layers`.
        layers: Which to take out: a regex on the names of candidates, or several. Also layers that compute nothing
            that counts, such as a dropout, may be named. Nothing is ranked then: leave criterion, data and loss out.
        criterion: What they are ranked by for `count`. "output": how far the outputs move from the given model's, as
            the L2 norm of the change over that of the outputs, mean over the outputs. "loss" or "accuracy" on labelled
            data, or a function of (labels, outputs) of which higher is better. "random": a draw, for comparison.
        data: For `count`: what `model.fit` takes; "output" needs no labels, "random" no data.
        loss: For "loss": what `compile` takes. None: the one that the model is compiled with.
        ignore: Layers that stay: a regex on the path, several, or a function of the layer.
        seed: Of "random".
        check: Compare the new model on random input with the given one, the stretch left out.

    Returns:
        A new model, not compiled, with the remaining weights and the same names of layers, inputs and outputs.

    Raises:
        KpipeError: When an argument is out of range, a regex matches nothing that can be taken out, or no more can be.
        SurgeryError: When the graph cannot be read or rebuilt, or the check fails: a wrong model is never returned.

    Example:
        >>> dense = [keras.layers.Dense(4, kernel_initializer="identity", name=name) for name in "ab"]
        >>> net = keras.Sequential([keras.Input((4,)), *dense, keras.layers.Dense(2, name="c")])
        >>> _ = net.get_layer("a").kernel.assign(3 * np.eye(4))
        >>> [layer.name for layer in remove_layers(net, count=1, data=np.ones((8, 4))).layers]
        ['a', 'c']

    References:
        Men et al., ShortGPT: layers in large language models are more redundant than you expect (2024),
        https://arxiv.org/abs/2403.03853
    """
    refuse_quantized(model)
    _check_request(count, layers, criterion)
    _check_idle(layers, {"criterion": None if criterion == "output" else criterion, "data": data, "loss": loss})
    stay = layers_found(model, ignore)
    if layers is not None:
        small = model
        for name in named(model, layers, stay):
            small = _take_out(small, find(small, name), check)
        return small
    if count == 0:
        warnings.warn(f"count=0 takes nothing out of {model.name!r}.", NoEffectWarning, stacklevel=2)
    with undisturbed(model):
        return _without_worst(
            model, int(count or 0), _judge(model, criterion, data, loss, seed) if count else None, stay, check
        )


def _without_worst(model: keras.Model, count: int, judge: Any, stay: set[str], check: bool) -> keras.Model:
    small = model if count else shorten(model, None)
    for done in range(count):
        found = [stretch for stretch in worthwhile(small, Costs(small)) if not touches(stretch, stay)]
        if not found:
            raise KpipeError(no_more(model, small, count, done, stay))
        changes = [judge(lambda inputs, m=small, s=stretch: answers(m, inputs, s)) for stretch in found]
        small = _take_out(small, found[first_lowest(changes)], check)
    return small


def first_lowest(values: Sequence[float]) -> int:
    """Give the place of the lowest value, the first of several; what is not a number comes last.

    Example:
        >>> first_lowest([math.nan, 2.0, 1.0, 1.0])
        2
    """
    return min(range(len(values)), key=lambda place: (math.isnan(values[place]), values[place], place))


def relative_change(before: Sequence[Sequence[np.ndarray]], after: Sequence[Sequence[np.ndarray]]) -> float:
    """Give the L2 norm of the change over that of what was before, mean over the outputs.

    Args:
        before: For each batch an array for each output.
        after: Likewise.

    Example:
        >>> relative_change([[np.array([3.0, 4.0])]], [[np.array([3.0, 3.0])]])
        0.2
    """
    moved = [[new - old for new, old in zip(*batch, strict=True)] for batch in zip(after, before, strict=True)]
    return float(np.mean(np.sqrt(_squares(moved) / np.maximum(_squares(before), np.finfo(float).tiny))))


def _squares(batches: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Add up the squares of each output, shape (outputs,)."""
    return np.sum([[np.sum(np.square(y, dtype="float64")) for y in batch] for batch in batches], axis=0)


def _check_request(count: Any, layers: Any, criterion: Any) -> None:
    if (count is None) == (layers is None):
        raise KpipeError(f"Give either count or layers. Received: count={count!r}, layers={layers!r}.")
    if count is not None and not is_whole(count):
        raise KpipeError(f"count is {count!r}; expected how many layers or blocks to take out, such as 2.")
    if layers is not None and not several(layers, "layers"):
        raise KpipeError(f"layers={layers!r} names none. Give regexes on the names of candidates, or a count.")
    if not callable(criterion) and criterion not in CRITERIA:
        raise KpipeError(
            f"criterion is {criterion!r}; expected one of {CRITERIA} or a function of (labels, outputs)."
            f"{nearest(str(criterion), CRITERIA)}"
        )


def _check_idle(layers: Any, given: Mapping[str, Any]) -> None:
    """Refuse what would say how layers are ranked where they are named."""
    idle = [name for name, value in given.items() if value is not None]
    if layers is not None and idle:
        raise KpipeError(f"Layers that are named are not ranked, and {', '.join(idle)} would do nothing. Leave it out.")


def _take_out(model: keras.Model, stretch: Stretch, check: bool) -> keras.Model:
    small = shorten(model, stretch)
    if check:
        check_shortening(model, small, stretch)
    return small


def _judge(model: keras.Model, criterion: str | Own, data: Any, loss: Any, seed: int) -> Callable[[Answer], float]:
    """Give a function from what a model without a layer answers to how bad that is."""
    check_seed(seed)
    if criterion == "random":
        rng = np.random.default_rng(seed)
        return lambda answer: float(rng.random())
    what = f"remove_layers(criterion={criterion!r})"
    check_data(data, again=what)
    if criterion != "output":
        metric = metric_of(criterion, model, data, loss, who=what)
        return lambda answer: (-1 if metric.higher_is_better else 1) * metric.of(answer, model, data)

    def gather(answer: Answer) -> list[list[np.ndarray]]:
        return [[np.asarray(y) for y in answer(inputs)] for inputs, *_ in input_batches(model, data, what)]

    before = gather(lambda inputs: answers(model, inputs))
    return lambda answer: relative_change(before, gather(answer))
