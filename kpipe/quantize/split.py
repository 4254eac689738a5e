"""A float graph written with layers that each do one thing: what a runtime rounds separately stands separately."""

import inspect
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers as L

from kpipe.copies import copy_layer, copy_operation
from kpipe.errors import KpipeError
from kpipe.fake_quant import LOST_MASK, TRANSPOSED, is_linear, kind_of
from kpipe.graph import Site, answer_at_rest, before_probabilities, functional, random_inputs, replay, sites
from kpipe.layers import FUSED, WRITTEN, quantization_of
from kpipe.layers.operations.operands import classes
from kpipe.quantize.attention import PROJECTIONS, Attention
from kpipe.quantize.functions import FUNCTIONS, Naming, applied, function_parts, unique

PAIRWISE = (L.Add, L.Multiply, L.Maximum, L.Minimum)
"""Layers that merge any number of tensors, of which the runtimes have integer kernels for two."""
CONCATENATE, STACK, MAXIMUM, MINIMUM = classes("numpy", "Concatenate Stack Maximum Minimum")
SAME = 1e-4
"""How far the answers of a model that was taken apart may be from its own, relatively: sums in another order."""


@dataclass(frozen=True)
class Split:
    """Hold a model that was taken apart.

    Args:
        model: It computes the same.
        origins: Name of each layer -> path of the layer in the model before, of which it is a part.
        output_names: What the outputs were called before.
    """

    model: keras.Model
    origins: dict[str, str]
    output_names: list[str]


def split(model: keras.Model, functions: bool = True, left_out: Collection[str] = ()) -> Split:
    """Copy a model with nested models written out and composite layers taken apart.

    A separable convolution becomes a depthwise and a pointwise one, attention its projections, products and softmax; a
    convolution or dense layer with an activation becomes a linear one, whose bias can be rounded, and a ReLU, or, where
    no runtime fuses it (softmax, sigmoid, any behind a transposed convolution, ...), an Activation, which keeps the
    name; a hard sigmoid a rescaling and a
    ReLU, a (hard) swish the product of what goes in and its (hard) sigmoid; what merges more than two tensors becomes
    layers that merge two each, a stack becomes a concatenation.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        functions: Whether such activations too; where activations are not rounded, they are best left whole.
        left_out: Paths of layers that are not rounded, and keep the activations that runtimes fuse.

    Returns:
        A Functional model that computes the same; a layer's name is its path with "_" for "/". Where attention is taken
        apart, that was tried on random input.

    Raises:
        KpipeError: When it does not compute the same.

    Example:
        >>> dense = keras.layers.Dense(3, activation="softmax", name="classes")
        >>> apart = split(keras.Sequential([keras.Input((4,)), dense]))
        >>> [layer.name for layer in apart.model.layers[1:]], apart.origins["classes_linear"]
        (['classes_linear', 'classes'], 'classes')
    """
    splitter = _Splitter({site.path.replace("/", "_") for site in sites(model).sites}, functions, left_out)
    apart = replay(model, splitter)
    if splitter.attentions:
        _check_attention(model, apart, splitter.attentions)
    return Split(apart, splitter.origins, functional(model).output_names)


def _check_attention(model: keras.Model, apart: keras.Model, paths: list[str]) -> None:
    """Raise a `KpipeError` unless a model that was taken apart answers as before: masks go ways that no graph shows.

    It is tried with all of the random numbers and with zeros for some of the places, of which models make masks. What
    answers nothing finite is left to those who look at weights and data.
    """
    drawn = random_inputs(model)
    for inputs in (drawn, _with_zeros(drawn)):
        with warnings.catch_warnings(), before_probabilities(model, apart) as left_out:
            warnings.filterwarnings("ignore", LOST_MASK, UserWarning)
            pairs = list(zip(answer_at_rest(model, inputs), answer_at_rest(apart, inputs), strict=True))
        made = [[f(y) for y in pair] for f, pair in zip(left_out, pairs, strict=True) if f is not None]
        if not all(_alike(*pair) for pair in (*pairs, *made)):
            raise KpipeError(
                f"{model.name!r} computes otherwise when the attention in {', '.join(map(repr, paths))} is taken "
                "apart. If masks are carried along to it, give them by attention_mask=... instead."
            )


def _alike(before: Any, after: Any) -> bool:
    """Say whether two answers are the same but for rounding, or the first is not finite."""
    before, after = (np.asarray(keras.ops.convert_to_numpy(y), np.float64) for y in (before, after))
    if not np.isfinite(before).all():
        return True
    return bool(np.abs(after - before).max() <= SAME * max(np.abs(before).max(), 1e-6))


def _with_zeros(inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Copy arrays with zeros from the middle of the second axis on; whole numbers, of which some are 0, stay."""
    copies = [array.copy() for array in inputs]
    for array in copies:
        if array.ndim > 1 and array.dtype.kind == "f":
            array[:, (array.shape[1] + 1) // 2 :] = 0
    return copies


def shapes_by_role(site: Site) -> dict[str, tuple[int | None, ...]]:
    """Give the shapes of what an attention layer is called on: "query", "value", and "key" where it is given."""
    arguments = site.node.arguments
    found = inspect.signature(site.operation.call).bind(*arguments.args, **arguments.kwargs).arguments
    return {role: tuple(found[role].shape) for role in PROJECTIONS if found.get(role) is not None}


class _Splitter:
    """Say for each site of a model what stands there in the one that is taken apart."""

    def __init__(self, paths: set[str], functions: bool, left_out: Collection[str]) -> None:
        self.paths, self.functions, self.left_out = paths, functions, left_out
        self.made: dict[tuple[int, int], Callable[..., Any]] = {}
        self.names: set[str] = set()
        self.origins: dict[str, str] = {}
        self.attentions: list[str] = []

    def __call__(self, site: Site, *args: Any, **kwargs: Any) -> Any:
        key = id(site.operation), len(site.inputs) if _merges(site.operation) else 0
        if key not in self.made:
            name = unique(site.path.replace("/", "_"), self.names)
            self.made[key], parts = self._make(site, name)
            self.origins |= {part.name: site.path for part in parts}
        return self.made[key](*args, **kwargs)

    def _make(self, site: Site, name: str) -> tuple[Callable[..., Any], list[Any]]:
        layer, kind = site.operation, kind_of(site)
        if (as_layer := copying(site, name)) is not None:
            return as_layer[0], [as_layer[1]]
        if kind == "split" and isinstance(layer, (L.Activation, *FUNCTIONS)) and self.functions:
            function = layer.activation if isinstance(layer, L.Activation) else FUNCTIONS[type(layer)]
            written = function_parts(function, name, self._free)
            return partial(applied, written), written
        if not isinstance(layer, keras.Layer):
            twin = copy_operation(layer, name)
            return twin, [twin]
        if kind == "split" and isinstance(layer, (L.MultiHeadAttention, L.GroupQueryAttention)):
            attention = Attention(layer, name, shapes_by_role(site))
            self.attentions.append(site.path)
            return attention, attention.parts
        if _merges(layer) and len(site.inputs) > 2:
            pairs = in_pairs(layer, name, len(site.inputs), self._free)
            return _merging(pairs), pairs
        if isinstance(layer, L.Activation) or (
            kind not in ("weights", "split") and quantization_of(layer) != "weights"
        ):
            twin = copy_layer(layer)
            twin.name = name
            return twin, [twin]
        made, behind = self._apart(site, name)
        for part, shape in zip(made, _shapes(made, site.input_shapes[0]), strict=True):
            part.build(shape)
        copy_weights(layer, made)
        return _one_after_the_other(made, behind), [*made, *behind]

    def _apart(self, site: Site, name: str) -> tuple[list[keras.Layer], list[keras.Layer]]:
        """Give the parts of a layer with a kernel, and the layers that are its activation function."""
        layer: Any = site.operation
        function, linear = layer.activation, keras.activations.linear
        if is_linear(layer):
            return parts(layer, name, self._free, linear), []
        if function in FUSED and not isinstance(layer, TRANSPOSED):
            if not self.functions or site.path in self.left_out:
                return parts(layer, name, self._free, function), []
            most = 6.0 if function is keras.activations.relu6 else None
            return parts(layer, name, self._free, linear), [L.ReLU(most, name=self._free(f"{name}_relu"))]
        made = parts(layer, self._free(f"{name}_linear"), self._free, linear)
        written = self.functions and function in WRITTEN
        return made, function_parts(function, name, self._free) if written else [L.Activation(function, name=name)]

    def _free(self, name: str) -> str:
        """Take a name that neither a layer of the model has nor one that was made, of which `name` is the beginning."""
        taken = self.names | self.paths
        found = unique(name, taken)
        self.names.add(found)
        return found


def _one_after_the_other(layers: list[keras.Layer], function: list[keras.Layer]) -> Callable[..., Any]:
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        y = layers[0](x, *args, **kwargs)
        for layer in layers[1:]:
            y = layer(y)
        return applied(function, y)

    return call


def copying(site: Site, name: str) -> tuple[Callable[..., Any], keras.Layer] | None:
    """Give the layer that copies numbers as an operation of `keras.ops` does, and how it is called; None for others.

    Such layers bring what goes in to one grid.
    """
    operation: Any = site.operation
    if type(operation) in (CONCATENATE, STACK) and operation.axis != 0:
        joined, axis = L.Concatenate(operation.axis, name=name), operation.axis
        if type(operation) is CONCATENATE:
            return joined, joined
        return lambda tensors: joined([keras.ops.expand_dims(x, axis) for x in tensors]), joined
    if type(operation) in (MAXIMUM, MINIMUM) and len(site.inputs) == 2 and len(set(site.input_shapes)) == 1:
        chosen = (L.Maximum if type(operation) is MAXIMUM else L.Minimum)(name=name)
        return lambda x1, x2: chosen([x1, x2]), chosen
    return None


def _merges(layer: Any) -> bool:
    """Say whether a layer is one of Keras's own that may be written two by two; a subclass may compute otherwise."""
    return type(layer) in (*PAIRWISE, L.Average)


def in_pairs(layer: Any, name: str, count: int, free: Naming) -> list[keras.Layer]:
    """Give fresh layers that merge `count` tensors two by two, in their order; a mean is a sum and its nth part.

    Args:
        layer: One of `PAIRWISE`, or an Average.
        name: Of the last one.
        count: How many tensors.
        free: Gives the names of the others.
    """
    mean = isinstance(layer, L.Average)
    cls = L.Add if mean else type(layer)
    others = [free(f"{name}_pair") for _ in range(count - 1 if mean else count - 2)]
    pairs: list[keras.Layer] = [cls(name=each) for each in (others if mean else (*others, name))]
    return [*pairs, L.Rescaling(1 / count, name=name)] if mean else pairs


def _merging(layers: list[keras.Layer]) -> Callable[..., Any]:
    def call(tensors: list[Any]) -> Any:
        y, *others = tensors
        for layer, x in zip(layers, others, strict=False):
            y = layer([y, x])
        return layers[-1](y) if len(layers) > len(others) else y

    return call


def _shapes(layers: list[keras.Layer], shape: tuple[int | None, ...]) -> list[Any]:
    """Give the input shape of each of several layers that follow one another."""
    shapes: list[Any] = [shape]
    for layer in layers[:-1]:
        shapes.append(layer.compute_output_shape(shapes[-1]))
    return shapes


def parts(layer: Any, name: str, free: Naming, function: Any) -> list[keras.Layer]:
    """Give fresh layers that together do what `layer` does with another function, called one after the other.

    Args:
        layer: A layer with a kernel, or a separable convolution.
        name: Of the last one.
        free: Gives the names of others.
        function: The activation function that the last one has.
    """
    config = {**layer.get_config(), "name": name, "activation": keras.activations.serialize(function)}
    whole = quantization_of(layer) == "weights"
    return [type(layer).from_config(config)] if whole else _halves(type(layer), config, free(f"{name}_depthwise"))


def _halves(cls: type, config: dict[str, Any], name: str) -> list[keras.Layer]:
    """Take a separable convolution's config apart; strides and dilation belong to its depthwise half, called `name`."""
    first, second = (L.DepthwiseConv1D, L.Conv1D) if cls is L.SeparableConv1D else (L.DepthwiseConv2D, L.Conv2D)
    both = {"data_format": config["data_format"], "dtype": config["dtype"], "trainable": config["trainable"]}
    places = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    depthwise = {key: config[key] for key in places} | {"use_bias": False, "name": name}
    pointwise = {key: config[key] for key in ("filters", "use_bias", "activation", "name")} | {"kernel_size": 1}
    for part in ("initializer", "regularizer", "constraint"):
        depthwise[f"depthwise_{part}"] = config[f"depthwise_{part}"]
        pointwise[f"kernel_{part}"] = config[f"pointwise_{part}"]
        pointwise[f"bias_{part}"] = config[f"bias_{part}"]
    return [first.from_config(both | depthwise), second.from_config(both | pointwise)]


def copy_weights(source: keras.Layer, targets: list[keras.Layer]) -> None:
    """Copy the weights of one layer into those it was taken apart into, in their order."""
    values = source.get_weights()
    for layer in targets:
        count = len(layer.weights)
        layer.set_weights(values[:count])
        values = values[count:]
