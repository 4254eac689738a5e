"""Prune weights in one shot: a new model."""

import warnings
from typing import Any

import keras
import numpy as np

from kpipe.copies import copy_model
from kpipe.errors import NoEffectWarning
from kpipe.patterns import Pattern, check_scope, drop_count, pattern_of
from kpipe.saliency import Criterion, criterion_of, gather
from kpipe.unstructured.masks import drop_more, first_mask, judge
from kpipe.unstructured.targets import LayerFilter, find_targets


def prune_weights(
    model: keras.Model,
    sparsity: float,
    criterion: str | Criterion = "magnitude",
    pattern: str | Pattern = "unstructured",
    scope: str = "layer",
    layers: LayerFilter = None,
    *,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> keras.Model:
    """Set the weights that matter least to zero, at once; the given model stays as it is.

    Args:
        model: A built model.
        sparsity: Fraction of zeros, in [0, 1). A weight that is sparser already keeps its zeros.
        criterion: A registered name, or a function of `Evidence`.
        pattern: A registered name, or a function of (scores, sparsity).
        scope: "layer": the fraction of each weight; "global": of all together, by one ranking.
        layers: None for every kernel of the layers that kpipe knows, a regular expression searched in the weight's
            path, or a function of the layer.
        data: Labelled data for a criterion that needs gradients: what `model.fit` takes.
        loss: Loss for those; None: the one the model was compiled with.
        seed: Of a criterion that draws random numbers.

    Returns:
        A new model, not compiled. Warns with `NoEffectWarning` when no weight was set to zero.

    Raises:
        KpipeError: For a model, filter, criterion, pattern or sparsity that does not fit.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> net.set_weights([np.array([[1.0, -2.0], [3.0, -4.0]]), np.zeros(2)])
        >>> prune_weights(net, 0.5).get_weights()[0].tolist()
        [[0.0, 0.0], [3.0, -4.0]]
    """
    chosen, (function, facts) = pattern_of(pattern), criterion_of(criterion)
    check_scope(scope, chosen)
    drop_count(1, sparsity)
    targets, _ = find_targets(model, layers)
    evidence = gather(model, [(t.path, t.role, t.variable) for t in targets], facts["needs"], data, loss, seed)
    before = {path: first_mask(known.weight) for path, known in evidence.items()}
    keeps = drop_more(before, judge(function, evidence), sparsity, scope, chosen)
    pruned = copy_model(model)
    for twin, target in zip(find_targets(pruned, layers)[0], targets, strict=True):
        twin.variable.assign(np.where(keeps[target.path], evidence[target.path].weight, 0))
    if all((keeps[path] == before[path]).all() for path in keeps):
        warnings.warn(
            f"prune_weights set no weight of {model.name!r} to zero: sparsity={sparsity} is reached already.",
            NoEffectWarning,
            stacklevel=2,
        )
    return pruned
