"""Run a tf_keras model and keep what every call of a layer gives."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import plain_array, thinned
from .graph import flat, forget_states, is_graph, is_rounding, is_symbolic, nodes_of, tensor_key
from .inputs import Inputs


def arrays_of(inputs: Inputs, outputs: Any) -> dict[str, np.ndarray]:
    """Give a model's inputs and outputs as arrays.

    Returns:
        `input:<key>`; `output:<number>`, in flat order; and `mask:output:<number>` where an output has a mask, true for
        what it shows.
    """
    found = {f"input:{key}": array for key, array in inputs.flat.items()}
    for number, output in enumerate(flat(outputs)):
        found[f"output:{number}"] = plain_array(output)
        found.update(_hidden(f"output:{number}", output, lambda array: array))
    return found


def calls_of(model: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """Run a model call by call.

    Returns:
        `call:<place>:<number>` for the outputs of each call, thinned. The place is the number of the call in its graph,
        after that of the nested model that it lies in. And `mask:call:...` where there is a mask.
    """
    forget_states(model)
    found: dict[str, np.ndarray] = {}
    tensors = zip(map(tensor_key, flat(model._nested_inputs)), flat(inputs.values), strict=True)
    _run(model, dict(tensors), "", found)
    return found


def save(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Write `probe.npz`."""
    np.savez(folder / "probe.npz", **arrays)


def _run(model: Any, tensors: Mapping[str, Any], place: str, found: dict[str, np.ndarray]) -> Any:
    """Make the calls of a graph one by one; nested models are gone into."""
    import tensorflow as tf

    known = dict(tensors)
    number = 0
    for node in nodes_of(model):
        args, kwargs = tf.nest.map_structure(
            lambda value: known[tensor_key(value)] if is_symbolic(value) else value,
            (list(node.call_args), dict(node.call_kwargs)),
        )
        here = f"{place}{number}"
        if is_graph(node.layer):
            outputs = _run(node.layer, _arguments(node.layer, args[0]), f"{here}.", found)
        else:
            outputs = node.layer(*args, **_at_inference(node.layer, kwargs))
        known.update(zip(map(tensor_key, flat(node.outputs)), flat(outputs), strict=True))
        if is_rounding(node.layer):
            continue
        number += 1
        for index, output in enumerate(flat(outputs)):
            if tf.is_tensor(output):
                found[f"call:{here}:{index}"] = thinned(plain_array(output))
                found.update(_hidden(f"call:{here}:{index}", output, thinned))
    return tf.nest.map_structure(lambda tensor: known[tensor_key(tensor)], model._nested_outputs)


def _hidden(name: str, output: Any, thin: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Say which entries of an output its mask shows."""
    mask = getattr(output, "_keras_mask", None)
    if mask is None:
        return {}
    mask = np.asarray(mask)
    spread = np.broadcast_to(mask.reshape(mask.shape + (1,) * (output.ndim - mask.ndim)), output.shape)
    return {f"mask:{name}": thin(spread)}


def _arguments(model: Any, values: Any) -> dict[str, Any]:
    """Match what a nested model is called on with its inputs."""
    given = model._flatten_to_reference_inputs(values)
    return {
        tensor_key(symbol): model._conform_to_reference_input(value, ref_input=symbol)
        for symbol, value in zip(model.inputs, given, strict=True)
    }


def _at_inference(layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Say that this is no training, where a layer asks and the call does not say."""
    if layer._call_spec.expects_training_arg and kwargs.get("training") is None:
        return {**kwargs, "training": False}
    return kwargs
