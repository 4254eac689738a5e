"""How much a model loses when the channels of one group go, group by group and ratio by ratio."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError, NoEffectWarning, SurgeryError
from kpipe.graph import Group, Trace, answer_at_rest, trace
from kpipe.saliency import Criterion, channel_criterion_of, check_data
from kpipe.saliency.losses import undisturbed
from kpipe.saliency.metrics import Metric, Own, input_batches, metric_of
from kpipe.structured.agreement import difference, tolerance_for
from kpipe.structured.channels import masked_answer
from kpipe.structured.filters import refuse_quantized
from kpipe.structured.ranking import choose
from kpipe.structured.request import PARTS, check_parts, freeze_parts
from kpipe.structured.scan import GroupSensitivity, Sensitivity
from kpipe.structured.scan_record import ScanRecord, identity
from kpipe.structured.scopes import compiled, several
from kpipe.structured.scores import judge_groups


def sensitivity(
    model: keras.Model,
    data: Any,
    ratios: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    criterion: str | Criterion = "l1",
    metric: str | Own = "accuracy",
    groups: str | Sequence[str] | None = None,
    loss: Any = None,
    path: str | Path | None = None,
    seed: int = 0,
    *,
    parts: Sequence[str] | None = PARTS,
) -> Sensitivity:
    """Measure how much a model loses when each group of channels alone is cut, without training in between.

    The cut model is not built: its answers are those of the original with the consumers of the channels zeroed, which
    is what `prune_filters` holds every model to that it returns.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        data: Labelled data, what `model.fit` takes; criteria that need data see the same.
        ratios: Fractions of a group's channels to remove, each in [0, 1); one channel is always kept.
        criterion: What chooses the channels: a registered name, or a function of `Evidence`.
        metric: "accuracy", "loss", or a function of (labels, outputs) of which higher is better.
        groups: Which groups: a regex on the paths of the layers that produce the channels, or several. None: all.
        loss: For "loss" and criteria that need gradients: what `compile` takes. None: the one that the model is
            compiled with.
        path: A JSON file to keep each figure in as soon as it is known; a scan that was broken off, or one of fewer
            ratios or groups, goes on from there.
        seed: Of the criterion's randomness.
        parts: Which parts of layers are scanned: as in `plan_filters`; None: all.

    Returns:
        The figures: a table when printed, `plot` draws them, `ratios` makes them ratios for `plan_filters` with the
        same parts.

    Raises:
        KpipeError: When an argument is out of range, a regex matches nothing, the criterion judges none of the groups,
            or the file is of another scan.
        SurgeryError: When the model's channels cannot be followed; it names the layer. When the masked model answers
            otherwise than the model itself before any channel is cut.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> layers = [keras.Input((4,)), keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2, name="b")]
        >>> net = keras.Sequential(layers)
        >>> labels = np.asarray(net(x)).argmax(-1)
        >>> found = sensitivity(net, (x, labels), ratios=(0.5,))
        >>> found.baseline, [(group.name, group.removed) for group in found.groups]
        (1.0, [('a', (4,))])

    References:
        Li et al., Pruning filters for efficient ConvNets (2017), https://arxiv.org/abs/1608.08710
    """
    refuse_quantized(model)
    wanted = _checked(ratios)
    check_data(data, again="sensitivity")
    check_parts(parts)
    traced = _chosen(freeze_parts(trace(model, unknown="freeze"), parts), groups)
    if not traced.groups:
        reasons = "; ".join(f"{one}: {why}" for one, why in traced.frozen.items())
        warnings.warn(f"No channel of {model.name!r} can be cut. {reasons}", NoEffectWarning, stacklevel=2)
    with undisturbed(model):
        figure = metric_of(metric, model, data, loss, who="sensitivity(metric='loss')")
        record = ScanRecord(None, {})
        if path is not None:
            asked = {"criterion": criterion, "metric": metric, "seed": seed}
            if metric == "loss" or channel_criterion_of(criterion).needs:
                asked["loss"] = model.loss if loss is None else loss
            record = ScanRecord.open(path, identity(model, traced, data, asked))
        _check_masked(model, traced, data)
        scan = _Scan(model, data, traced, figure, record)
        baseline = scan.value("", np.ones(traced.class_count, bool))
        traced, scores = judge_groups(model, traced, criterion, data, loss, seed)
        found = tuple(scan.group(group, one, wanted) for group, one in zip(traced.groups, scores, strict=True))
    name = channel_criterion_of(criterion).name
    return Sensitivity(figure.name, figure.higher_is_better, baseline, name, found, dict(traced.frozen))


@dataclass(frozen=True)
class _Scan:
    """Measure one model with some of its channels masked; what the record knows is not measured again."""

    model: keras.Model
    data: Any
    traced: Trace
    metric: Metric
    record: ScanRecord

    def value(self, group: str, keep: np.ndarray) -> float:
        """Give the metric with only some classes of channels kept."""
        gone = int((~keep).sum())
        known = self.record.get(group, gone)
        if known is None:
            known = self.metric.of(lambda inputs: masked_answer(self.traced, keep, inputs), self.model, self.data)
            self.record.put(group, gone, known)
        return known

    def group(self, group: Group, scores: np.ndarray, ratios: Sequence[float]) -> GroupSensitivity:
        """Measure one group at each ratio."""
        removed, values = [], []
        for ratio in ratios:
            (places,) = choose([scores], ratio, "layer", [1])
            keep = np.ones(self.traced.class_count, bool)
            keep[group.classes[places]] = False
            removed.append(len(places))
            values.append(self.value(group.name if len(places) else "", keep))
        return GroupSensitivity(group.name, group.layers, len(group), tuple(ratios), tuple(removed), tuple(values))


def _check_masked(model: keras.Model, traced: Trace, data: Any) -> None:
    """Refuse a model that answers otherwise once its calls are taken one by one, all channels kept."""
    inputs, *_ = next(input_batches(model, data, "sensitivity"))
    found = masked_answer(traced, np.ones(traced.class_count, bool), inputs)
    worst = difference(model, answer_at_rest(model, inputs), found)
    if not worst <= tolerance_for(model):
        raise SurgeryError(
            f"With no channel cut, the calls of {model.name!r} one by one answer otherwise than the model, by "
            f"{worst:.3g}: a layer hands on something beside its output, such as a mask, that is lost on the way. "
            "Build the model without implicit masks."
        )


def _checked(ratios: Any) -> tuple[float, ...]:
    try:
        found = sorted({float(ratio) for ratio in ratios})
    except (TypeError, ValueError):
        found = []
    if not found or not all(0 <= ratio < 1 for ratio in found):
        raise KpipeError(f"ratios is {ratios!r}; expected fractions of channels to remove, each in [0, 1).")
    return tuple(found)


def _chosen(traced: Trace, groups: str | Sequence[str] | None) -> Trace:
    """Leave the groups that are meant."""
    if groups is None:
        return traced
    found: set[str] = set()
    expressions = several(groups, "groups")
    if not expressions:
        raise KpipeError(f"groups={groups!r} names none. Give regexes on the paths of layers, or None for all groups.")
    for wanted in expressions:
        pattern = compiled(wanted, "groups")
        meant = {group.name for group in traced.groups if any(pattern.search(one) for one in group.layers)}
        if not meant:
            known = ", ".join(path for group in traced.groups for path in group.layers)
            raise KpipeError(
                f"groups={wanted!r} matches no layer whose channels can be cut: {known or 'there is none'}."
            )
        found |= meant
    return replace(traced, groups=tuple(group for group in traced.groups if group.name in found))
