"""Prune weights in one shot: a new model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kpipe.copies import copy_model
from kpipe.errors import NoEffectWarning
from kpipe.patterns import MaskFunction, Pattern, Scope, pattern_of, scope_of
from kpipe.projections import first_mask
from kpipe.saliency import Criterion, criterion_of, gather
from kpipe.targets import PRUNED_ROLES, LayerFilter, Target, find_targets
from kpipe.unstructured.masks import drop_more, judge
from kpipe.unstructured.suited import suited


def prune_weights(
    model: keras.Model,
    sparsity: float,
    criterion: str | Criterion = "magnitude",
    pattern: str | Pattern | MaskFunction = "unstructured",
    scope: str | Mapping[str, Any] | Scope = "layer",
    layers: LayerFilter = None,
    *,
    roles: Sequence[str] = PRUNED_ROLES,
    data: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> keras.Model:
    """Set the weights that matter least to zero, at once; the given model stays as it is.

    Args:
        model: A built model.
        sparsity: Fraction of zeros, in [0, 1). A weight that is sparser already keeps its zeros.
        criterion: A registered name, or a function of `Evidence`.
        pattern: What goes together: "unstructured", "2:4" or any other n:m, "block:4x1" or any other block (with
            ":max" for the maximum of its scores), a `Pattern`, or a function of (scores, sparsity). Its scores have the
            axes (*positions, inputs, outputs).
        scope: "layer": the fraction of each weight; "global": of all together, by one ranking, also of normalised
            scores ("global:mean", "global:lamp") and with a ceiling on each weight's fraction ("global:lamp:0.95");
            "erk": more of large weights than of small ones; or a `Scope`.
        layers: None for every layer that kpipe knows, a regular expression searched in the weight's path, a layer class
            or a tuple of them, or a function of the layer.
        roles: What a weight has to be; depthwise kernels are left out unless they are named.
        data: Labelled data for a criterion that needs gradients: what `model.fit` takes.
        loss: Loss for those; None: the one the model was compiled with.
        seed: Of a criterion that draws random numbers.

    Returns:
        A new model, not compiled. Warns with `NoEffectWarning` when no weight was set to zero, and with `UserWarning`
        of weights that cannot have the pattern and stay as they are.

    Raises:
        KpipeError: For a model, filter, criterion, pattern, scope or sparsity that does not fit.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> net.set_weights([np.array([[1.0, -2.0], [3.0, -4.0]]), np.zeros(2)])
        >>> prune_weights(net, 0.5).get_weights()[0].tolist()
        [[0.0, 0.0], [3.0, -4.0]]
        >>> prune_weights(net, 0.5, pattern="1:2").get_weights()[0].tolist()
        [[0.0, 0.0], [3.0, -4.0]]
    """
    chosen, sharing, (function, facts) = pattern_of(pattern), scope_of(scope), criterion_of(criterion)
    sharing.check(chosen, sparsity)
    targets, refused = suited(find_targets(model, layers, roles)[0], chosen)
    evidence = gather(model, targets, facts["needs"], data, loss, seed)
    before = {path: first_mask(known.weight) for path, known in evidence.items()}
    layouts = {target.path: target.layout for target in targets}
    keeps = drop_more(before, judge(function, evidence), sparsity, sharing, chosen, layouts)
    pruned = _with_zeros(model, targets, keeps)
    if refused:
        reasons = "; ".join(f"{row.path}: {row.reason}" for row in refused)
        warnings.warn(f"prune_weights left some weights of {model.name!r} as they are ({reasons}).", stacklevel=2)
    if all((keeps[path] == before[path]).all() for path in keeps):
        warnings.warn(
            f"prune_weights set no weight of {model.name!r} to zero: sparsity={sparsity} is reached already.",
            NoEffectWarning,
            stacklevel=2,
        )
    return pruned


def _with_zeros(model: keras.Model, targets: Sequence[Target], keeps: Mapping[str, np.ndarray]) -> keras.Model:
    """Copy the model with what is not kept set to zero."""
    pruned = copy_model(model)
    twins = {id(variable): twin for variable, twin in zip(model.weights, pruned.weights, strict=True)}
    for target in targets:
        twins[id(target.variable)].assign(np.where(keeps[target.path], target.variable.numpy(), 0))
    return pruned
