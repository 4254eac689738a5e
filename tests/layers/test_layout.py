"""Layouts against the layers themselves: what a slice of the turned kernel does to the output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L

from kpipe.errors import KpipeError
from kpipe.layers import NATURAL, Layout, Weight, weights, weights_within

ConvLSTMCell = type(L.ConvLSTM2D(1, 1).cell)
Run = Callable[[Any, Any], Any]
Without = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Case:
    """A layer and one of its kernels.

    Args:
        layer: The layer.
        name: Attribute of the kernel.
        data: What it is run on.
        without: From the data and the number of an input channel to the data without it; None where the kernel sums
            over no input channels.
        run: From the layer and the data to an output whose last axis is that of the output channels.
        gates: Each unit of the output comes from all columns of the kernel that are alike modulo the units.
        carried: A unit's state goes on to its own output by another way than the kernel, too.
    """

    layer: keras.Layer
    name: str
    data: Any
    without: Without | None
    run: Run = lambda layer, data: layer(data)
    gates: bool = False
    carried: bool = False

    def output(self, data: Any) -> np.ndarray:
        return np.asarray(self.run(self.layer, data)).copy()

    def weight(self) -> Weight:
        return next(weight for weight in weights(self.layer) if weight.name == self.name)


def zeroed(case: Case, layout: Layout, channel: Any) -> np.ndarray:
    """Give the output with a slice of the turned kernel set to zero, then put the kernel back."""
    variable = case.weight().variable
    value = np.asarray(variable).copy()
    turned = layout.turn(value).copy()
    turned[channel] = 0
    variable.assign(layout.back(turned, value.shape))
    output = case.output(case.data)
    variable.assign(value)
    return output


def inputs_are_right(case: Case, layout: Layout) -> bool:
    """Zero rows of the kernel do what zero channels of the data do."""
    if case.without is None:
        return layout.turned_shape(case.weight().variable.shape)[-2] == 1
    right = []
    for i in (0, 1):
        less = zeroed(case, layout, (..., i, slice(None)))
        expected = case.output(case.without(case.data, i))
        compared = np.arange(expected.shape[-1]) != (i if case.carried else -1)
        right.append(np.allclose(less[..., compared], expected[..., compared], atol=1e-5))
        right.append(not np.allclose(less, case.output(case.data), atol=1e-3))
    return all(right)


def outputs_are_right(case: Case, layout: Layout) -> bool:
    """Zero columns of the kernel silence the channels of the output that they make, and no others."""
    full, right = case.output(case.data), []
    for o in (0, 1):
        less = zeroed(case, layout, (..., slice(o, None, full.shape[-1]) if case.gates else o))
        others = np.arange(full.shape[-1]) != o
        right.append(np.allclose(less[..., others], full[..., others], atol=1e-5))
        right.append(not np.allclose(less[..., o], full[..., o], atol=1e-3))
        right.append(case.gates or bool((less[..., o] == 0).all()))
    return all(right)


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


MAPS = {1: (2, 7), 2: (2, 6, 5), 3: (1, 4, 4, 3)}


def images(rank: int, channels: int = 3) -> np.ndarray:
    return normal(*MAPS[rank], channels)


def last(data: np.ndarray, i: int) -> np.ndarray:
    """Take out channel i of the last axis."""
    data = data.copy()
    data[..., i] = 0
    return data


def last_two(data: np.ndarray, i: int) -> np.ndarray:
    """Take out entry i of the last two axes, laid flat."""
    return last(data.reshape(*data.shape[:-2], -1), i).reshape(data.shape)


def second(data: np.ndarray, i: int) -> np.ndarray:
    return np.swapaxes(last(np.swapaxes(data, 1, -1), i), 1, -1)


def einsum(equation: str, shape: Any, data: np.ndarray, without: Without = last, run: Run | None = None) -> Case:
    layer = L.EinsumDense(equation, shape)
    layer(data)
    return Case(layer, "kernel", data, without, run or (lambda layer, data: layer(data)))


def flat(layer: Any, data: Any) -> np.ndarray:
    out = np.asarray(layer(data))
    return out.reshape(*out.shape[:-2], -1)


def convolved(layer: keras.Layer, data: np.ndarray, without: Without | None = last) -> Case:
    layer(data)
    return Case(layer, "kernel", data, without)


def cell(layer: Any, name: str, shape: tuple[int, ...], carried: bool = False) -> Case:
    """Make one step from (inputs, state); the cell state of an LSTM is zero."""
    data = (normal(*shape, 3), normal(*shape, 4))

    def step(layer: Any, data: Any) -> Any:
        inputs, state = data
        lstm = isinstance(layer, (L.LSTMCell, ConvLSTMCell))
        return layer(inputs, [state, np.zeros_like(state)] if lstm else [state])[0]

    def without(data: Any, i: int) -> Any:
        return (last(data[0], i), data[1]) if name == "kernel" else (data[0], last(data[1], i))

    step(layer, data)
    return Case(layer, name, data, without, step, gates=True, carried=carried and name == "recurrent_kernel")


def embedding() -> Case:
    """One row a token, and no row is added to another."""
    layer, tokens = L.Embedding(5, 4), np.array([[0, 1, 2, 3], [4, 1, 0, 0]])
    layer(tokens)
    return Case(layer, "embeddings", tokens, None)


def reverse() -> Case:
    layer, data = L.ReversibleEmbedding(5, 3, tie_weights=False), normal(2, 4, 3)
    layer(np.zeros((1, 1), "int32"))
    return Case(layer, "reverse_embeddings", data, last, lambda layer, data: layer(data, reverse=True))


def pointwise(layer: Any, data: np.ndarray) -> Case:
    """An input channel i of the pointwise kernel is multiple i % 2 of channel i // 2."""

    def run(layer: Any, data: Any) -> Any:
        x, gone = data
        value = np.asarray(layer.depthwise_kernel).copy()
        less = value.copy()
        if gone >= 0:
            less[..., gone // 2, gone % 2] = 0
        layer.depthwise_kernel.assign(less)
        out = layer(x)
        layer.depthwise_kernel.assign(value)
        return out

    layer(data)
    return Case(layer, "pointwise_kernel", (data, -1), lambda data, i: (data[0], i), run)


def depthwise_part(layer: Any, data: np.ndarray) -> Case:
    layer(data)
    layer.pointwise_kernel.assign(np.reshape(np.eye(6), layer.pointwise_kernel.shape))
    return Case(layer, "depthwise_kernel", data, None)


CASES: dict[str, Callable[[], Case]] = {
    "Dense": lambda: convolved(L.Dense(4), normal(5, 3)),
    "Dense-sequence": lambda: convolved(L.Dense(4), normal(2, 5, 3)),
    "Conv1D": lambda: convolved(L.Conv1D(4, 3), images(1)),
    "Conv2D": lambda: convolved(L.Conv2D(4, 3, strides=2), images(2)),
    "Conv3D": lambda: convolved(L.Conv3D(4, 2), images(3)),
    "Conv1DTranspose": lambda: convolved(L.Conv1DTranspose(4, 3), images(1)),
    "Conv2DTranspose": lambda: convolved(L.Conv2DTranspose(4, 3, strides=2), images(2)),
    "Conv3DTranspose": lambda: convolved(L.Conv3DTranspose(4, 2), images(3)),
    "DepthwiseConv1D": lambda: convolved(L.DepthwiseConv1D(3, depth_multiplier=2), images(1), None),
    "DepthwiseConv2D": lambda: convolved(L.DepthwiseConv2D(3, depth_multiplier=2), images(2), None),
    "SeparableConv1D-depthwise": lambda: depthwise_part(L.SeparableConv1D(6, 3, depth_multiplier=2), images(1)),
    "SeparableConv2D-depthwise": lambda: depthwise_part(L.SeparableConv2D(6, 3, depth_multiplier=2), images(2)),
    "SeparableConv1D-pointwise": lambda: pointwise(L.SeparableConv1D(4, 3, depth_multiplier=2), images(1)),
    "SeparableConv2D-pointwise": lambda: pointwise(L.SeparableConv2D(4, 3, depth_multiplier=2), images(2)),
    "ab,bc->ac": lambda: einsum("ab,bc->ac", 4, normal(5, 3)),
    "ab,cb->ac": lambda: einsum("ab,cb->ac", 4, normal(5, 3)),
    "abc,cde->abde": lambda: einsum("abc,cde->abde", (None, 2, 3), normal(2, 5, 4), last, flat),
    "abc,dce->abde": lambda: einsum("abc,dce->abde", (None, 2, 3), normal(2, 5, 4), last, flat),
    "abcd,cde->abe": lambda: einsum("abcd,cde->abe", (None, 4), normal(2, 3, 2, 3), last_two),
    "abcd,ecd->abe": lambda: einsum("abcd,ecd->abe", (None, 4), normal(2, 3, 2, 3), last_two),
    "...x,xy->...y": lambda: einsum("...x,xy->...y", 4, normal(2, 5, 3)),
    "ab...,bc->ac...": lambda: einsum(
        "ab...,bc->ac...", 4, normal(2, 3, 5), second, lambda layer, data: np.swapaxes(np.asarray(layer(data)), 1, -1)
    ),
    "bhd,hde->bhe": lambda: einsum("bhd,hde->bhe", (2, 4), normal(5, 2, 3)),
    "bhd,edh->bhe": lambda: einsum("bhd,edh->bhe", (2, 4), normal(5, 2, 3)),
    "Embedding": embedding,
    "ReversibleEmbedding": reverse,
    **{
        f"{made.__name__}-{name}": lambda made=made, name=name: cell(made(4), name, (5,), made is L.GRUCell)
        for made in (L.SimpleRNNCell, L.LSTMCell, L.GRUCell)
        for name in ("kernel", "recurrent_kernel")
    },
    **{
        f"ConvLSTM{rank}D-{name}": lambda rank=rank, name=name: cell(
            ConvLSTMCell(rank, 4, 3, padding="same"), name, MAPS[rank]
        )
        for rank in (1, 2, 3)
        for name in ("kernel", "recurrent_kernel")
    },
}


def prepared(name: str) -> Case:
    """Make a case with random kernels and without biases, so that nothing but the kernels makes the output."""
    keras.utils.set_random_seed(0)
    case = CASES[name]()
    for variable in case.layer.weights:
        if variable.name == "bias":
            variable.assign(np.zeros(variable.shape))
    return case


@pytest.mark.parametrize("name", CASES)
def test_rows_and_columns_are_the_channels(name):
    case = prepared(name)
    layout = case.weight().layout
    assert inputs_are_right(case, layout)
    assert outputs_are_right(case, layout)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("Dense", Layout((1,), (0,))),
        ("Conv2D", Layout((-1,), (-2,))),
        ("Conv2DTranspose", NATURAL),
        ("DepthwiseConv2D", NATURAL),
        ("ab,cb->ac", NATURAL),
        ("abcd,cde->abe", Layout((1, 0), (2,))),
        ("abcd,ecd->abe", NATURAL),
        ("bhd,edh->bhe", Layout((2,), (0,))),
        ("Embedding", NATURAL),
        ("Embedding", Layout((), (0,))),
        ("LSTMCell-kernel", Layout((1,), (0,))),
        ("LSTMCell-recurrent_kernel", Layout((1,), (0,))),
    ],
)
def test_a_wrong_layout_is_found(name, wrong):
    case = prepared(name)
    assert not (inputs_are_right(case, wrong) and outputs_are_right(case, wrong))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (
            L.MultiHeadAttention(2, 3, value_dim=4),
            {"query": (5, 6), "key": (5, 6), "value": (5, 8), "attention_output": (8, 5)},
        ),
        (
            L.GroupQueryAttention(3, 4, 2),
            {"query": (5, 12), "key": (5, 6), "value": (5, 6), "attention_output": (12, 5)},
        ),
    ],
    ids=["multi_head", "group_query"],
)
def test_the_projections_of_attention_are_matrices(layer, shapes):
    """(features, heads times size of a head), and back."""
    layer(query=normal(2, 4, 5), value=normal(2, 4, 5))
    found = {
        weight.layer.name: weight.layout.turned_shape(weight.variable.shape)
        for weight in weights_within(layer)
        if weight.role == "kernel"
    }
    assert found == shapes


@pytest.mark.parametrize(
    ("layout", "turned"),
    [
        (NATURAL, (2, 3, 4, 5)),
        (Layout((), (-2, -1)), (2, 3, 1, 20)),
        (Layout((-1,), (-2,)), (2, 3, 5, 4)),
        (Layout((0, 2), (1,)), (5, 8, 3)),
        (Layout((3, 1), (0, 2)), (15, 8)),
        (Layout((), ()), (2, 3, 4, 5, 1, 1)),
    ],
)
def test_turned_and_back_is_the_same(layout, turned):
    kernel = np.arange(120).reshape(2, 3, 4, 5)
    values = layout.turn(kernel)
    assert values.shape == turned == layout.turned_shape(kernel.shape)
    assert np.array_equal(layout.back(values, kernel.shape), kernel)
    assert sorted(values.ravel()) == list(range(120))


def test_several_axes_lie_flat_in_the_order_of_their_names():
    kernel = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(Layout((2, 0), (1,)).turn(kernel), kernel.transpose(2, 0, 1).reshape(8, 3))


@pytest.mark.parametrize("layout", [NATURAL, Layout((-1,), (-2,)), Layout((0,), (1, 2, 3))])
def test_no_copy_is_made_where_none_is_needed(layout):
    kernel = np.zeros((2, 3, 4, 5), "float32")
    assert np.shares_memory(layout.turn(kernel), kernel)
    assert np.shares_memory(layout.back(layout.turn(kernel), kernel.shape), kernel)


@pytest.mark.parametrize("layout", [Layout((2,), (1,)), Layout((0,), (-2,)), Layout((0, 0), (1,)), Layout((-3,), (0,))])
def test_a_layout_that_does_not_fit_says_so(layout):
    with pytest.raises(KpipeError, match="does not fit a kernel of 2 axes; expected each axis once, from -2 to 1"):
        layout.turn(np.zeros((3, 4)))
