"""What a layer holds beside its configuration: weights, vocabularies, and what layers of one's own save."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers as L


def take_weights(twin: keras.Layer, layer: keras.Layer, without: type[L.Wrapper] | None = None) -> None:
    """Give a layer or model all that another of the same make holds: weights, and what follows from them or is none.

    An adapted `Normalization` computes with constants that it made of its weights. The vocabulary of a `StringLookup`,
    an `IntegerLookup` or a `TextVectorization` is no weight. What a layer of one's own saves by `save_own_variables`
    and `save_assets` is handed over by these.

    Args:
        twin: What is given it.
        layer: What has it.
        without: Wrappers that `layer` has and its twin lacks.

    Example:
        >>> layer, twin = keras.layers.StringLookup(), keras.layers.StringLookup()
        >>> layer.adapt([["red"], ["blue"], ["red"]])
        >>> take_weights(twin, layer)
        >>> [str(word) for word in twin.get_vocabulary()]
        ['[UNK]', 'red', 'blue']
    """
    for new, old in pairs(twin, layer, without):
        for variable, value in zip(own_weights(new), own_weights(old), strict=True):
            variable.assign(value)
    for new, old in pairs(twin, layer, without):
        take_rest(new, old)


def take_rest(new: Any, old: keras.Layer) -> None:
    """Give a layer what another holds beside its weights; of what is inside the layer nothing.

    Example:
        >>> old, new = keras.layers.IntegerLookup(), keras.layers.IntegerLookup()
        >>> old.adapt([[7], [5], [7]])
        >>> take_rest(new, old)
        >>> new(keras.ops.array([5, 7, 9])).numpy().tolist()
        [2, 1, 0]
    """
    if isinstance(old, L.StringLookup | L.IntegerLookup):
        _take_vocabulary(new, old)
    elif isinstance(old, L.Normalization):
        new.finalize_state()
    else:
        _take_saved(new, old)


def freeze_like(twin: keras.Layer, layer: keras.Layer, without: type[L.Wrapper] | None = None) -> None:
    """Freeze of a layer or model what is frozen of another of the same make, single weights too."""
    for new, old in pairs(twin, layer, without):
        new.trainable = old.trainable  # from the outside in, for it sets that of what is inside
    for new, old in pairs(twin, layer, without):
        for variable, other in zip(own_weights(new), own_weights(old), strict=True):
            variable.trainable = other.trainable


def pairs(
    twin: keras.Layer, layer: keras.Layer, without: type[L.Wrapper] | None = None
) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Give each layer inside a layer or model with that in its place inside another, from the outside in.

    Example:
        >>> one, other = (keras.layers.TimeDistributed(keras.layers.Dense(2, name="d")) for _ in range(2))
        >>> [new.name for new, _ in pairs(keras.Sequential([other]), keras.Sequential([one]), keras.layers.Wrapper)]
        Traceback (most recent call last):
        ...
        ValueError: It holds 3 layers, and 2 were expected.
    """
    new, old = bare(twin), bare(layer, without)
    if len(new) != len(old):
        raise ValueError(f"It holds {len(new)} layers, and {len(old)} were expected.")
    return zip(new, old, strict=True)


def bare(layer: keras.Layer, without: type[L.Wrapper] | None = None) -> list[keras.Layer]:
    """List a layer or model and all inside it, from the outside in and in order, save wrappers of a class.

    Example:
        >>> inner = keras.Sequential([keras.layers.Dense(1, name="a"), keras.layers.Dense(1, name="b")], name="net")
        >>> [one.name for one in bare(keras.layers.TimeDistributed(inner), keras.layers.Wrapper)]
        ['net', 'a', 'b']
    """
    found: dict[int, keras.Layer] = {}
    waiting = [layer]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += reversed(one._layers)
    return [one for one in found.values() if without is None or not isinstance(one, without)]


def own_weights(layer: keras.Layer) -> list[keras.Variable]:
    """List the weights that a layer holds itself, not in a layer inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _take_vocabulary(new: Any, old: Any) -> None:
    if not old.get_vocabulary(include_special_tokens=False):
        return  # neither adapted nor told one
    words = old.get_vocabulary()
    if old.output_mode == "tf_idf":
        new.set_vocabulary(words, old.idf_weights_const.numpy()[: len(words)])  # may be padded to max_tokens
    else:
        new.set_vocabulary(words)


def _take_saved(new: keras.Layer, old: keras.Layer) -> None:
    """Hand over what a layer of one's own saves in its own way."""
    if save := _own(old, "save_own_variables"):
        store: dict[str, Any] = {}
        save(store)
        new.load_own_variables(store)
    if save := _own(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            save(folder)
            new.load_assets(folder)


def _own(layer: keras.Layer, name: str) -> Callable[..., Any] | None:
    """Give a method of a layer where its class does not have it from Keras."""
    method = getattr(layer, name, None)
    return method if callable(method) and (method.__module__ or "").partition(".")[0] != "keras" else None
