"""Where a model comes from: a function by its name, or a file."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from pydantic import BaseModel, ConfigDict, model_validator

from kpipe.data import Dataset
from kpipe.errors import KpipeError


class ModelSource(BaseModel):
    """Name a model: `{factory: "module:function"}` or `{load: "my.keras"}`.

    A factory is called with `input_shape` and `classes` of the data, each where its signature takes it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str | None = None
    load: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "ModelSource":
        if (self.factory is None) == (self.load is None):
            raise KpipeError('give either factory: "module:function" or load: a path to a .keras file')
        return self


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder and of the working directory be imported while the block runs."""
    added = [str(folder.resolve()), str(Path.cwd())]
    kept = list(sys.path)
    sys.path[:0] = [path for path in added if path not in sys.path]
    try:
        yield
    finally:
        sys.path[:] = kept


def function_named(name: str) -> Callable[..., Any]:
    """Import a function by "module:function".

    Args:
        name: The module's dotted name and the function's, with a colon between.

    Returns:
        The function.

    Raises:
        KpipeError: When there is no such module or function.

    Example:
        >>> function_named("math:sqrt")(9.0)
        3.0
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise KpipeError(f'received {name!r}; expected "module:function", such as "kpipe.models:digits_cnn"')
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise KpipeError(
            f"module {module!r} cannot be imported ({error}). Looked on Python's path, in the recipe's folder and in "
            f"{Path.cwd()}"
        ) from error
    except AttributeError:
        raise KpipeError(f"module {module!r} has no {attribute!r}") from None
    if not callable(found):
        raise KpipeError(f"{name!r} is not a function")
    return found


def locate(path: str, folder: Path) -> Path:
    """Find a file named in a recipe: as it stands (from the working directory), else beside the recipe.

    Raises:
        KpipeError: When it is in neither place; the message names both.
    """
    tried = [Path(path).expanduser(), folder / path]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    looked = dict.fromkeys(str(candidate.resolve()) for candidate in tried)
    raise KpipeError(f"file {path!r} not found. Looked at: {', '.join(looked)}")


def make_model(source: ModelSource, data: Dataset, folder: Path) -> keras.Model:
    """Build or load a model.

    Args:
        source: Where it comes from.
        data: The data set that it is for.
        folder: The recipe's folder, where files and modules are looked for too.

    Returns:
        The model, built.

    Raises:
        KpipeError: When the source is not found, fails, or gives no built Keras model.
    """
    if source.load is not None:
        path = locate(source.load, folder)
        try:
            model = keras.models.load_model(path, compile=False)
        except Exception as error:  # Keras raises many kinds for a file that is no model
            raise KpipeError(f"{path} is not a Keras model file that can be loaded: {error}") from error
    else:
        with importable(folder):
            factory = function_named(str(source.factory))
        offered = {"input_shape": data.input_shape, "classes": data.classes}
        taken = inspect.signature(factory).parameters
        model = factory(**{name: value for name, value in offered.items() if name in taken})
    what = source.load or source.factory
    if not isinstance(model, keras.Model):
        raise KpipeError(f"{what} gives {type(model).__name__}; expected a keras.Model")
    if not model.built or not getattr(model, "inputs", None):
        raise KpipeError(f"the model of {what} is not built; give it a keras.Input, or call model.build(shape)")
    return model


def fingerprint(source: ModelSource, folder: Path) -> str:
    """Give what identifies a model source: the SHA-256 of the file, or the function's name."""
    if source.load is None:
        return str(source.factory)
    return hashlib.sha256(locate(source.load, folder).read_bytes()).hexdigest()
