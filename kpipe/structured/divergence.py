"""Where a smaller model begins to answer otherwise than the original."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kpipe.graph import Trace, at_inference, at_rest, evaluate, sites
from kpipe.structured.agreement import SMALLEST, tolerance_for

Call = Callable[..., Any]
"""(site, *args, **kwargs) -> outputs."""


def first_divergence(small: keras.Model, trace: Trace, keep: np.ndarray, inputs: list[Any], call: Call) -> str | None:
    """Name the first layer of a smaller model that, on the channels it has, answers otherwise than the original.

    Args:
        small: The smaller model.
        trace: The original's trace.
        keep: Which classes of channel ids stay, shape (classes,), bool.
        inputs: One array for each input.
        call: Calls a site of the original, as it is compared.

    Returns:
        The layer's path; None where none is found.
    """
    flow, tolerance = sites(small), tolerance_for(small)
    whole = _outputs(trace.flow, inputs, call)
    with at_rest(small):
        cut = _outputs(flow, inputs, lambda site, *args, **kwargs: at_inference(site.operation, *args, **kwargs))
    for site in trace.flow.sites:
        here = site.path, site.call
        if here not in whole or here not in cut:
            continue
        for key, one, other in zip(site.outputs, whole[here], cut[here], strict=False):
            if not _agree(one, other, trace.kept(trace.tensors[key], keep), tolerance):
                return site.path
    return None


def _outputs(flow: Any, inputs: list[Any], call: Call) -> dict[tuple[str, int], list[np.ndarray]]:
    """Compute what each call of each layer gives."""
    found: dict[tuple[str, int], list[np.ndarray]] = {}

    def noted(site: Any, *args: Any, **kwargs: Any) -> Any:
        made = call(site, *args, **kwargs)
        found[site.path, site.call] = [np.asarray(keras.ops.convert_to_numpy(y)) for y in keras.tree.flatten(made)]
        return made

    evaluate(flow, inputs, noted)
    return found


def _agree(whole: np.ndarray, cut: np.ndarray, kept: np.ndarray, tolerance: float) -> bool:
    """Compare the kept channels of a tensor; the ids have no batch axis."""
    if whole.dtype.kind not in "fiub":
        return True
    whole = whole[:, np.broadcast_to(kept, whole.shape[1:])]  # (batch, kept entries)
    if whole.size != cut.size:
        return False
    away = np.abs(whole.astype("float64") - cut.reshape(whole.shape).astype("float64")).max(initial=0.0)
    return bool(away <= tolerance * max(SMALLEST, np.abs(whole).max(initial=0.0)))
