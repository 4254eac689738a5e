"""What a quantized model decides by comparing numbers: rounding may move them to the other side."""

from collections.abc import Sequence, Set
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError
from kpipe.fake_quant import ROUNDING
from kpipe.graph import Flow, Site, at_inference, evaluate, sites

Call = tuple[str, int]
"""Path of an operation, and how many of its calls came before."""
MOVED = 0.1
"""Share of the decisions for or against that may be others than without rounding."""
FEW = 2
"""So many may always."""
BATCH = 32


def check_decisions(model: keras.Model, inputs: Sequence[np.ndarray]) -> None:
    """Refuse a quantized model that decides otherwise than without the rounding, as where it looks for padding of -1.

    A number that is looked for need not lie on the grid of what is compared with it; 0 does always.

    Args:
        model: A model with `FakeQuant` layers whose ranges are set.
        inputs: One array for each input of the model, (samples, ...).

    Raises:
        KpipeError: When of what an operation found true or false of numbers more than `MOVED` has changed.
    """
    flow = sites(model)
    deciding = {(site.path, site.call) for site in flow.sites if _decides(site)}
    counts = {one: np.zeros((2, 2), int) for one in deciding}  # without rounding, with rounding
    for start in range(0, len(inputs[0]), BATCH) if deciding else ():
        some = [array[start : start + BATCH] for array in inputs]
        exact, rounded = (_decisions(flow, some, deciding, rounds) for rounds in (False, True))
        for one, before in exact.items():
            np.add.at(counts[one], (before.astype(int).ravel(), rounded[one].astype(int).ravel()), 1)
    for (path, _), table in counts.items():
        for side in (False, True):
            there, moved = table[int(side)].sum(), table[int(side), int(not side)]
            if moved > max(FEW, MOVED * there):
                raise KpipeError(
                    f"Layer {path!r} cannot be quantized: of the numbers that it finds {str(side).lower()}, rounding "
                    f"changes {moved / there:.0%}. What it compares them with need not lie on their grid, as 0 always "
                    "does, or lies nearer to them than a step of it. Pad with zeros, or let what is decided be an "
                    "input of its own."
                )


def _decides(site: Site) -> bool:
    """Say whether a call makes truth values of numbers that may be floats: what Keras says of types is not exact."""
    compares = any(keras.backend.is_float_dtype(tensor.dtype) for tensor in site.node.input_tensors)
    return compares and all(tensor.dtype == "bool" for tensor in site.node.outputs)


def _decisions(flow: Flow, inputs: Sequence[np.ndarray], deciding: Set[Call], rounds: bool) -> dict[Call, np.ndarray]:
    """Run a quantized model, its activations rounded or not; give what was decided at each call."""
    found: dict[Call, np.ndarray] = {}

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        if isinstance(site.operation, ROUNDING) and not rounds:
            return args[0]
        y = at_inference(site.operation, *args, **kwargs)
        if (site.path, site.call) in deciding:
            found[site.path, site.call] = np.asarray(keras.ops.convert_to_numpy(y))
        return y

    evaluate(flow, [keras.ops.convert_to_tensor(array) for array in inputs], call)
    return found
