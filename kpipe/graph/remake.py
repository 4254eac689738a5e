"""A model made anew from the config of its graph, edited on the way, with each layer found again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import keras
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.serialization_lib import ObjectSharingScope, get_shared_object

from kpipe.copies import by_reference
from kpipe.errors import SurgeryError
from kpipe.graph.flow import functional, has_graph

PLAIN: dict[type, tuple[str, str]] = {
    Functional: ("keras.src.models.functional", "Functional"),
    keras.Sequential: ("keras", "Sequential"),
}
"""Class of models that are graphs and nothing else -> the module and the name by which a config tells it."""


def remake(model: keras.Model, edit: Callable[[dict[str, Any]], None]) -> tuple[keras.Model, dict[str, Any]]:
    """Build a model anew from the config of its graph.

    A model of a class of its own, the model itself or one in it, tells no graph, or cannot be made from one, where the
    class has an `__init__` of its own: it becomes a plain Functional or Sequential model. Layers that keep no name in
    their config get their old names too.

    Args:
        model: A built Functional or Sequential model; it is not changed.
        edit: Changes the config in place. Every entry of `layers` has a `name`, in Sequential models too.

    Returns:
        The new model, not compiled, its weights fresh; and path of each layer, operation and nested model of the old
        one that is still there -> the new one.

    Raises:
        SurgeryError: When it cannot be made from its config.

    Example:
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
        >>> twin, found = remake(net, lambda config: config["layers"][1]["config"].update(units=5))
        >>> twin.output_shape, found["d"] is twin.layers[0]
        ((None, 5), True)
    """
    maker: Any = keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
    marks: dict[str, int] = {}
    try:
        with by_reference(model), _told_as_graphs(model):
            config = _config_of(model)
            _mark(config, model, "", marks, count())
            edit(config)
            _forget_classes(config, {type(one) for one in _models(model) if not _can_be_made(one)})
            with ObjectSharingScope():
                made = maker.from_config(config)
                found = {path: get_shared_object(mark) for path, mark in marks.items()}
    except SurgeryError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError) as fault:
        raise SurgeryError(
            f"Model {model.name!r} cannot be rebuilt from its config: {_in_short(fault)}. A layer of your own needs a "
            "get_config that gives what its __init__ takes, and an __init__ that takes **kwargs for its parent's."
        ) from fault
    found = {path: one for path, one in found.items() if one is not None}
    for path, one in found.items():
        one.name = path.rpartition("/")[2]
    return made, found


def _in_short(fault: Exception) -> str:
    """Say what failed first and what came of it, without the configs that Keras writes between the two.

    Example:
        >>> _in_short(TypeError("<class 'Own'> could not be made. Please see to it.\\n\\nException encountered: no x"))
        "TypeError: <class 'Own'> could not be made: no x"
    """
    text = f"{type(fault).__name__}: {fault}"
    cause = text.rpartition("Exception encountered: ")[2].strip()
    return text.rstrip(".") if cause == text else f"{text.partition('. ')[0]}: {cause.rstrip('.')}"


def _models(model: keras.Model) -> Iterator[keras.Model]:
    """Give a model and all in it that have graphs."""
    yield from (one for one in model._flatten_layers() if has_graph(one))


def _can_be_made(model: Any) -> bool:
    """Say whether Keras can make a model of this class from the config of a graph."""
    if isinstance(model, keras.Sequential):
        return type(model).__init__ is keras.Sequential.__init__
    return functional_like_constructor(type(model))


@contextmanager
def _told_as_graphs(model: keras.Model) -> Iterator[None]:
    """Let `get_config` give the graph of each model, whatever its class tells instead."""
    with ExitStack() as undo:
        for one in _models(model):
            if "get_config" not in vars(one) and not (_can_be_made(one) and type(one) in PLAIN):
                one.__dict__["get_config"] = lambda one=one: _config_of(one)
                undo.callback(one.__dict__.pop, "get_config")
        yield


def _config_of(model: Any) -> dict[str, Any]:
    """Give the config of a graph."""
    if isinstance(model, keras.Sequential):
        return keras.Sequential.get_config(model)
    graph = functional(model)
    plain = graph if type(graph) is Functional else Functional(graph._inputs_struct, graph._outputs_struct, model.name)
    return {**Functional.get_config(plain), "trainable": model.trainable}


def _mark(config: dict[str, Any], model: Any, prefix: str, marks: dict[str, int], numbers: Iterator[int]) -> None:
    """Give each entry of a config its name, and a mark by which Keras finds what it makes of it."""
    sequential = isinstance(model, keras.Sequential)
    inside = keras.Model.layers.fget(model) if sequential else functional(model).operations  # type: ignore[attr-defined]
    for entry, one in zip(config["layers"], inside, strict=True):
        path, mark = prefix + one.name, next(numbers)
        entry["name"], entry["shared_object_id"], marks[path] = one.name, mark, mark
        if has_graph(one):
            _mark(entry["config"], one, f"{path}/", marks, numbers)


def _forget_classes(config: Any, classes: set[type]) -> None:
    """Write the plain class in the place of some, all through a config."""
    if isinstance(config, (list, tuple)):
        for item in config:
            _forget_classes(item, classes)
    if not isinstance(config, dict):
        return
    for one in classes:
        named = one.__name__, keras.saving.get_registered_name(one)
        if (config.get("class_name"), config.get("registered_name")) == named:
            plain = keras.Sequential if issubclass(one, keras.Sequential) else Functional
            config["module"], config["class_name"] = PLAIN[plain]
            config["registered_name"] = config["class_name"]
    for item in config.values():
        _forget_classes(item, classes)
