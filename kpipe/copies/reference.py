"""Functions and classes of one's own in the configuration of a model: as they are, not as their code."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import keras

from kpipe.errors import KpipeError

_LOCK = threading.RLock()
"""Held while functions and attributes are not what they were."""

_NUMBERS = itertools.count()

_OF_KERAS = {"build", "quantize", "train_function", "test_function", "predict_function"}
"""Functions that Keras hangs on layers and models."""


@contextmanager
def by_reference(layer: keras.Layer) -> Iterator[None]:
    """Let the configurations of a layer or model and all inside it stand for the very functions and classes they hold.

    Within it `get_config` and `from_config` give layers that call the same functions: those of a `Lambda`, activations
    and what layers of one's own are told. Nothing has to be registered with Keras. Outside, Keras takes a lambda for
    code that it may not run, and looks others up by a name that several may bear.

    Raises:
        KpipeError: When two classes that are not registered have the same name.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
        >>> with by_reference(net):
        ...     twin = keras.Sequential.from_config(net.get_config())
        >>> twin(keras.ops.ones((1, 2))).numpy().tolist(), twin.layers[0].function is net.layers[0].function
        ([[2.0, 2.0]], True)
    """
    layers = list(layer._flatten_layers())
    with _LOCK, ExitStack() as undo:
        for name, value, holder in [found for one in layers for found in _nameless(one)]:
            holder.__dict__[name] = _stand_in(value)
            undo.callback(holder.__dict__.__setitem__, name, value)
        for one in layers:
            if isinstance(one, keras.Model) and "get_compile_config" not in vars(one):
                one.__dict__["get_compile_config"] = lambda: None  # a copy is not compiled, nor is a model inside it
                undo.callback(one.__dict__.pop, "get_compile_config")
        held = [value for one in layers for value in _held(vars(one))]
        functions = {id(value): value for value in held if isinstance(value, FunctionType)}
        for function in _mistakable(functions.values()):
            undo.callback(setattr, function, "__name__", function.__name__)
            function.__name__ = f"function_{next(_NUMBERS)}"
        known = {function.__name__: getattr(function, "stands_for", function) for function in functions.values()}
        undo.enter_context(keras.saving.custom_object_scope({**own_classes(layer), **known}))
        yield


def own_classes(layer: keras.Layer) -> dict[str, type]:
    """Give the classes of one's own of a model's layers, and of what they hold, by name, for `custom_object_scope`.

    Those that are registered with Keras are not among them: Keras finds these itself.

    Raises:
        KpipeError: When two have the same name.

    Example:
        >>> own_classes(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        {}
    """
    found: dict[str, type] = {}
    for inside in layer._flatten_layers():
        kinds = [value for value in _held(vars(inside)) if isinstance(value, type)]
        for kind in (kind for kind in (type(inside), *kinds) if _own(kind)):
            if found.setdefault(kind.__name__, kind) is not kind:
                several = f"{kind.__name__!r}, of {found[kind.__name__].__module__!r} and {kind.__module__!r}"
                raise KpipeError(
                    f"In {layer.name!r} ({type(layer).__name__}) two classes are named {several}: tell them apart by "
                    "@keras.saving.register_keras_serializable(package=...)."
                )
    return found


def _own(value: Any) -> bool:
    """Say whether a function or class is neither of Keras nor registered with it."""
    registered = keras.saving.get_registered_name(value) != value.__name__
    return not registered and (value.__module__ or "").partition(".")[0] != "keras"


def _held(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Give the functions of one's own, and the classes of objects with a `get_config`, that a value is made of."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    inside: Any = ()
    if isinstance(value, FunctionType):
        if value.__name__ == "<lambda>" or _own(value):  # one that was loaded from a file says that it is of Keras
            yield value
    elif isinstance(value, Mapping):
        inside = [item for name, item in value.items() if name not in _OF_KERAS]
    elif isinstance(value, list | tuple | set):
        inside = value
    elif not isinstance(value, type | keras.Layer) and callable(getattr(value, "get_config", None)):
        yield type(value)
        inside = [] if type(value).__module__.partition(".")[0] == "keras" else [getattr(value, "__dict__", {})]
    for item in inside:
        yield from _held(item, seen)


def _nameless(layer: keras.Layer) -> list[tuple[str, Any, keras.Layer]]:
    """List the attributes of a layer that are called but are no functions, such as `functools.partial` makes them."""
    return [
        (name, value, layer)
        for name, value in vars(layer).items()
        if callable(value)
        and not isinstance(value, FunctionType | type | keras.Layer)
        and not callable(getattr(value, "get_config", None))
        and name not in _OF_KERAS
    ]


def _stand_in(value: Callable) -> Callable:
    """Give a function that does what a callable object does, and tells which it stands for."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return value(*args, **kwargs)

    call.__name__ = f"{type(value).__name__}_{next(_NUMBERS)}"
    call.__dict__["stands_for"] = value
    return call


def _mistakable(functions: Any) -> list[FunctionType]:
    """List the functions that Keras would take for code or for another: lambdas, namesakes, and names of its own."""
    named: dict[str, list[FunctionType]] = defaultdict(list)
    for function in functions:
        named[function.__name__].append(function)
    return [
        function
        for name, several in named.items()
        for function in several
        if name == "<lambda>" or len(several) > 1 or _of_keras(name)
    ]


def _of_keras(name: str) -> bool:
    try:
        return keras.activations.get(name) is not None
    except ValueError:
        return False
