"""What is known of recurrent layers: their cells hold the weights and are asked for one step."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.layers.activation import activate
from kpipe.layers.axes import channels_on, positions
from kpipe.layers.call import freeze_others, ports
from kpipe.layers.channel_ids import ChannelIds, Ids
from kpipe.layers.rule import Role, Rule, inside, register_weights, rule

# Keras gives the cell no public name. Not by an instance: that would set up TensorFlow's devices at import.
ConvLSTMCell = vars(sys.modules[L.ConvLSTM1D.__mro__[1].__module__])["ConvLSTMCell"]

CELL: dict[str, Role] = {"kernel": "kernel", "recurrent_kernel": "recurrent_kernel", "bias": "bias"}

register_weights(L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D, roles={}, whole=True)


@rule(L.SimpleRNNCell, L.LSTMCell, L.GRUCell, roles=CELL)
def cell(layer: L.LSTMCell, ids: ChannelIds, x: Ids, *states: Ids) -> Rule:
    """One step: kernel (in, gates * units), recurrent kernel (units, gates * units), bias with `reset_after` doubled.

    A unit stands once in each block of gates, and its state lives and dies with it.
    """
    return _step(layer, ids, "units", -1, x, states)


@rule(ConvLSTMCell, roles=CELL)
def convolutional_cell(layer: Any, ids: ChannelIds, x: Ids, *states: Ids) -> Rule:
    """One step: kernels (*size, in, 4 * filters) and (*size, filters, 4 * filters)."""
    return _step(layer, ids, "filters", 0 if layer.data_format == "channels_first" else -1, x, states)


def _step(layer: Any, ids: ChannelIds, size: str, axis: int, x: Ids, states: Sequence[Ids]) -> Rule:
    taken, out = channels_on(ids, x, axis), ids.fresh(getattr(layer, size))
    gates = np.tile(out, layer.kernel.shape[-1] // len(out))
    for port, state in enumerate(states, 1):
        ids.tie(channels_on(ids, state, axis, port), out)
    activate(ids, out, layer.activation)
    if not isinstance(layer, L.SimpleRNNCell):
        activate(ids, out, layer.recurrent_activation)
    return Rule(
        (ids.spread(out, axis),) * (1 + state_count(layer)),
        axes={"kernel": {-2: taken, -1: gates}, "recurrent_kernel": {-2: out, -1: gates}, "bias": {-1: gates}},
        config={size: out},
        reuse=positions(ids.output_shapes[0], axis),
        summed={"kernel": (-2,), "recurrent_kernel": (-2,)},
    )


def state_count(layer: Any) -> int:
    """Count the states of a cell.

    Example:
        >>> [state_count(cell) for cell in (L.GRUCell(3), L.LSTMCell(3), L.StackedRNNCells([L.LSTMCell(3)] * 2))]
        [1, 2, 4]
    """
    return 2 if isinstance(layer, ConvLSTMCell) else len(keras.tree.flatten(layer.state_size))


@rule(L.StackedRNNCells)
def stacked_cells(layer: L.StackedRNNCells, ids: ChannelIds, x: Ids, *states: Ids) -> Rule:
    """One step of cells that feed one another."""
    shape, shapes = ids.input_shapes[0], ids.input_shapes[1:]
    rules, out = [], []
    for number, one in enumerate(layer.cells):
        count = state_count(one)
        own, states = states[:count], states[count:]
        own_shapes, shapes = shapes[:count], shapes[count:]
        step = (getattr(one, "output_size", None) or keras.tree.flatten(one.state_size)[0],)
        with ids.within([shape, *own_shapes], [step]):
            found = inside(one, ids, f"cells.{number}", f"cells.{number}.config", x, *own)
        x, *after = found.outputs(1 + count)
        shape = step
        out += after
        rules.append(found)
    return joined((x, *out), *rules)


@rule(L.RNN, L.SimpleRNN, L.LSTM, L.GRU, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
def recurrent(layer: L.RNN, ids: ChannelIds, *inputs: Ids) -> Rule:
    """Ask the cell for one step. Initial states are tied to the units; steps multiply what the kernels cost.

    A stateful layer starts anew after a cut: its states are not carried over.
    """
    given = ports(layer, ids, inputs)
    x, states = given.pop("sequences"), keras.tree.flatten(given.pop("initial_state", None) or [])
    step = x.step(ids)
    freeze_others(ids, given)
    shapes, starts = [state.shape for state in states], [state.ids for state in states]
    with ids.within([x.shape[1:], *shapes], [ids.output_shapes[0][layer.return_sequences :]]):
        found = inside(layer.cell, ids, "cell", "cell.config", step, *starts)
    out, *after = found.outputs(1 + state_count(layer.cell))
    first = out[None] if layer.return_sequences else out  # (1, *step): alike at each of the steps
    config = found.config
    if type(layer) is not L.RNN:  # the layer's own config holds that of its cell
        config = {key.removeprefix("cell.config."): value for key, value in config.items()}
    return replace(
        found,
        out=(first, *after) if layer.return_state else first,
        config=config,
        reuse=times(found.reuse, x.shape[0]),
        reference=from_rest(layer, layer) if layer.stateful else None,
    )


def times(reuse: Any, count: int | None) -> dict[str, int | None]:
    """Multiply how often each weight is used.

    Example:
        >>> times({"kernel": 3, "other": None}, 4), times({"kernel": 3}, None)
        ({'kernel': 12, 'other': None}, {'kernel': None})
    """
    return {name: None if each is None or count is None else each * count for name, each in reuse.items()}


def joined(out: Ids | tuple[Ids, ...], *rules: Rule) -> Rule:
    """Bring together what the rules of several layers inside say."""

    def merged(parts: Sequence[Any]) -> Mapping[str, Any]:
        return {name: value for part in parts for name, value in part.items()}

    return Rule(
        out,
        axes=merged([found.axes for found in rules]),
        config=merged([found.config for found in rules]),
        reuse=merged([found.reuse for found in rules]),
        summed=merged([found.summed for found in rules]),
        rescale=merged([found.rescale for found in rules]),
        products=[product for found in rules for product in found.products],
    )


def from_rest(layer: keras.Layer, *parts: Any) -> Callable[[Any], Callable[..., Any]]:
    """Give the reference of a stateful layer: called like it, but as if `parts`, it or what is inside, were at rest."""

    def call(sequences: Any, initial_state: Any = None, **kwargs: Any) -> Any:
        if initial_state is None:
            shape: Any = keras.ops.shape(sequences)
            initial_state = [state for part in parts for state in part.get_initial_state(shape[0])]
        return layer(sequences, initial_state=initial_state, **kwargs)

    return lambda kept: call
