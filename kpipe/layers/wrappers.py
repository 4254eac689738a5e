"""Rules of layers round another layer: for each step of a sequence, and in both directions."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.call import Port, freeze_others, ports
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.recurrent import from_rest, joined, times
from kpipe.layers.rule import Kept, Rule, inside, rule


@rule(L.TimeDistributed)
def time_distributed(layer: L.TimeDistributed, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Ask the layer inside for one step: it is the same at each of them."""
    given = ports(layer, ids, inputs)
    x = given.pop("inputs")
    freeze_others(ids, given)
    steps, step = x.shape[0], x.step(ids)
    with ids.within([x.shape[1:]], [ids.output_shapes[0][1:]], ((step,), {})):
        found = inside(layer.layer, ids, "layer", "layer.config", step)
    return replace(
        found,
        out=found.outputs(1)[0][None],  # (1, *step)
        reuse=times(found.reuse, steps),
        arguments={},
        products=[(steps, *product) for product in found.products],
        reference=_per_step(layer, found),
    )


def _per_step(layer: L.TimeDistributed, found: Rule) -> Any:
    """Give the reference of what is inside, called at each step."""
    if found.reference is None:
        return None
    inner = found.reference

    def reference(kept: Kept) -> Any:
        function = inner(kept)

        def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            masked = mask is not None and layer.layer._call_has_mask_arg
            masks: list[Any] = list(keras.ops.unstack(mask, axis=1) or []) if masked else []
            named = [{"mask": one} for one in masks] or [{}] * inputs.shape[1]
            return keras.ops.stack([function(inputs[:, i], **one) for i, one in enumerate(named)], axis=1)

        return call

    return reference


@rule(L.Bidirectional)
def bidirectional(layer: L.Bidirectional, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Ask the layers of both directions; the same unit of each goes.

    Keras infers the shape of the output from the forward layer alone, so both must keep one size.
    """
    given = ports(layer, ids, inputs)
    x, states = given.pop("sequences"), list(given.pop("initial_state", None) or [])
    freeze_others(ids, given)
    half = len(states) // 2
    forward = _direction(layer.forward_layer, ids, "forward_layer", "layer.config", x, states[:half])
    backward = _direction(layer.backward_layer, ids, "backward_layer", "backward_layer.config", x, states[half:])
    sizes = [[one.shape for one in found.out] for found in (forward, backward)]
    if sizes[0] != sizes[1]:
        ids.refuse(f"its two directions give outputs of different shapes, {sizes[0]} and {sizes[1]}; make them alike")
    for one, other in zip(forward.out, backward.out, strict=True):
        ids.tie(one, other)
    (first, *after), (last, *before) = forward.out, backward.out
    if layer.merge_mode == "concat":
        merged = [_concatenated(ids, first, last)]
    else:
        merged = [first] if layer.merge_mode else [first, last]
    out = (*merged, *after, *before)
    parts = (layer.forward_layer, layer.backward_layer)
    return replace(joined(out, forward, backward), reference=from_rest(layer, *parts) if layer.stateful else None)


def _direction(layer: Any, ids: ChannelIds, attribute: str, config: str, x: Port, states: list) -> Rule:
    """Ask the layer of one direction; its outputs are always a tuple."""
    made: Any = layer.compute_output_shape((None, *x.shape))
    first = made[0] if layer.return_state else made
    starts: list[Any] = keras.tree.flatten(states)
    call = ((x.ids,), {"initial_state": keras.tree.map_structure(lambda port: port.ids, states)})
    with ids.within([x.shape, *(start.shape for start in starts)], [tuple(first[1:])], call):
        found = inside(layer, ids, attribute, config, x.ids, *(start.ids for start in starts))
    return replace(found, out=found.outputs(1))


def _concatenated(ids: ChannelIds, first: Ids, last: Ids) -> Ids:
    """Concatenate along the last axis, as Keras does; where the channels lie along another, they pass."""
    there = first.size == first.shape[-1] and 2 * first.size == ids.output_shapes[0][-1]
    return np.concatenate([first, last], -1) if there else first
