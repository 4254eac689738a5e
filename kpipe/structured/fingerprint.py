"""Values told as text: those that compute otherwise are told otherwise, and the same in every process."""

import hashlib
from collections.abc import Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import keras
import numpy as np

from kpipe.errors import KpipeError

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))


def told(value: Any, around: tuple[Any, ...] = ()) -> str:
    """Tell a value as text.

    A function is told by its name and a digest of its code, of its constants, defaults and what it closes over, and of
    the functions and constants of its own module that it names. What it calls of other modules counts by name.

    Args:
        value: Plain data, arrays, functions, and objects by their class with their configuration or attributes.
        around: What it lies in: a function may name itself.

    Raises:
        KpipeError: For an object that nothing can be told of.

    Example:
        >>> told({"seed": 0, "shape": (2, 3)}), told(max)
        ("{'seed': 0, 'shape': [2, 3]}", 'builtins.max')
        >>> told(lambda y: y > 0.5) == told(lambda y: y > 0.4)
        False
    """
    if any(value is one for one in around):
        return "itself"
    inside = (*around, value)
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(told(one, inside) for one in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(told(one, inside) for one in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{told(name, inside)}: {told(one, inside)}' for name, one in value.items())}}}"
    if isinstance(value, (np.ndarray, keras.Variable)) or keras.ops.is_tensor(value):
        array = np.asarray(keras.ops.convert_to_numpy(value))
        content = told(array.tolist(), inside).encode() if array.dtype == object else array.tobytes()
        return f"array of {array.dtype} {array.shape} {_digest(content)}"
    return _of_object(value, inside)


def _of_object(value: Any, inside: tuple[Any, ...]) -> str:
    """Tell what is no data."""
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {told(value.co_consts, inside)} {told(value.co_names, inside)}"
    if isinstance(value, FunctionType):
        return f"{_name(value)} {_digest(_of_function(value, inside).encode())}"
    if isinstance(value, MethodType):
        return f"{told(value.__func__, inside)} of {told(value.__self__, inside)}"
    if isinstance(value, partial):
        return f"partial {told([value.func, value.args, value.keywords], inside)}"
    if isinstance(value, (type, ModuleType)) or isinstance(getattr(value, "__name__", None), str):
        return _name(value)
    settings = getattr(value, "get_config", None)
    held = settings() if callable(settings) else getattr(value, "__dict__", None)
    if held is None:
        raise KpipeError(
            f"{value!r} cannot be told from others of its kind, so that a file could not say what it is about. Give a "
            "plain function in its place, or no path."
        )
    return f"{_name(type(value))} {told(held, inside)}"


def _of_function(function: FunctionType, inside: tuple[Any, ...]) -> str:
    """Tell all that a function computes with, as far as its own module goes."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    known = function.__globals__
    named = [known[name] for name in sorted(_names(function.__code__)) if name in known]
    own = [
        one
        for one in named
        if isinstance(one, PLAIN) or (isinstance(one, FunctionType) and one.__module__ == function.__module__)
    ]
    return told([function.__code__, function.__defaults__, function.__kwdefaults__, cells, own], inside)


def _names(code: CodeType) -> set[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # the name is not assigned yet
        return False
    return True


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or value.__name__
    module = getattr(value, "__module__", None)
    return name if module is None or isinstance(value, ModuleType) else f"{module}.{name}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
