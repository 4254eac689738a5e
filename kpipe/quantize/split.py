"""A float graph written with layers that each do one thing: what a runtime rounds separately stands separately."""

from typing import Any

import keras
from keras import layers as L

from kpipe.graph import Site, replay
from kpipe.layers import FUSED, quantization_of


def split(model: keras.Model) -> keras.Model:
    """Copy a model with nested models written out and composite layers taken apart.

    A SeparableConv2D becomes a DepthwiseConv2D and a Conv2D; a convolution or dense layer with an activation that no
    runtime fuses (softmax, sigmoid, ...) becomes a linear one and an Activation, which keeps the name.

    Args:
        model: A built Functional or Sequential model; it is not changed.

    Returns:
        A Functional model that computes the same; a layer's name is its path with "_" for "/".

    Example:
        >>> dense = keras.layers.Dense(3, activation="softmax", name="classes")
        >>> [layer.name for layer in split(keras.Sequential([keras.Input((4,)), dense])).layers[1:]]
        ['classes_linear', 'classes']
    """
    made: dict[int, list[keras.Layer]] = {}
    names: set[str] = set()

    def call(site: Site, *args: Any, **kwargs: Any) -> Any:
        if id(site.operation) not in made:
            made[id(site.operation)] = parts(site.operation, unique(site.path.replace("/", "_"), names))
        first, *others = made[id(site.operation)]
        y = first(*args, **kwargs)
        for layer in others:
            y = layer(y)
        if len(first.weights) + len(site.operation.weights) and site.call == 0:
            copy_weights(site.operation, made[id(site.operation)])
        return y

    return replay(model, call)


def unique(name: str, taken: set[str]) -> str:
    """Give `name`, or `name` with a number that is not taken, and take it."""
    number, candidate = 1, name
    while candidate in taken:
        number, candidate = number + 1, f"{name}_{number}"
    taken.add(candidate)
    return candidate


def parts(layer: keras.Layer, name: str) -> list[keras.Layer]:
    """Give fresh layers that together do what `layer` does, called one after the other; the last has the name."""
    kind = quantization_of(layer)
    if kind not in ("weights", "split"):
        return [type(layer).from_config({**layer.get_config(), "name": name})]
    activation = layer.activation
    fused = activation in FUSED
    last = name if fused else f"{name}_linear"
    config = {**layer.get_config(), "name": last}
    if not fused:
        config["activation"] = "linear"
    made = [type(layer).from_config(config)] if kind == "weights" else _halves(config, name)
    return made if fused else [*made, L.Activation(activation, name=name)]


def _halves(config: dict[str, Any], name: str) -> list[keras.Layer]:
    """Take a SeparableConv2D's config apart; strides and dilation belong to its depthwise half."""
    both = {"data_format": config["data_format"], "dtype": config["dtype"], "trainable": config["trainable"]}
    places = ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    depthwise = {key: config[key] for key in places} | {"use_bias": False, "name": f"{name}_depthwise"}
    pointwise = {key: config[key] for key in ("filters", "use_bias", "activation", "name")} | {"kernel_size": 1}
    for part in ("initializer", "regularizer", "constraint"):
        depthwise[f"depthwise_{part}"] = config[f"depthwise_{part}"]
        pointwise[f"kernel_{part}"] = config[f"pointwise_{part}"]
        pointwise[f"bias_{part}"] = config[f"bias_{part}"]
    return [L.DepthwiseConv2D.from_config(both | depthwise), L.Conv2D.from_config(both | pointwise)]


def copy_weights(source: keras.Layer, targets: list[keras.Layer]) -> None:
    """Copy the weights of one layer into those it was taken apart into, in their order."""
    values = source.get_weights()
    for layer in targets:
        count = len(layer.weights)
        layer.set_weights(values[:count])
        values = values[count:]
