"""Where a model comes from: a function by its name, or a file."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
from pydantic import BaseModel, ConfigDict, model_validator

from kpipe.data import Dataset
from kpipe.errors import KpipeError
from kpipe.loading import holds_code, load_model
from kpipe.registry import nearest


class ModelSource(BaseModel):
    """Name a model: `{factory: "module:function"}` or `{load: "my.keras"}`.

    A factory is called with `input_shape` and `classes` of the data, each where its signature takes it. With
    `safe_mode: false`, functions that are stored as code, as those of Lambda layers are, are loaded and so run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str | None = None
    load: str | None = None
    safe_mode: bool = True

    @model_validator(mode="after")
    def _one(self) -> "ModelSource":
        if (self.factory is None) == (self.load is None):
            raise KpipeError('give either factory: "module:function" or load: a path to a .keras file')
        return self


_HOMES: dict[str, Path] = {}
"""Top-level module -> the folder that `importable` let it be imported from."""


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules of a folder and of the working directory be imported while the block runs.

    Modules stay loaded afterwards, for models that are made of their classes. A module that another folder gave under
    the same name is forgotten first, so that each folder gets its own.

    Args:
        folder: The folder; it goes before the working directory.
    """
    added = list(dict.fromkeys([folder.resolve(), Path.cwd()]))
    _forget_others(added)
    kept, before = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(path) for path in added if str(path) not in sys.path]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = kept
        for name in {name.partition(".")[0] for name in set(sys.modules) - before} - before:
            home = next((path for path in added if _holds(path, name)), None)
            if home is not None and _lies_in(sys.modules.get(name), home):
                _HOMES[name] = home


def _forget_others(folders: list[Path]) -> None:
    for name, home in list(_HOMES.items()):
        if next((path for path in folders if _holds(path, name)), None) != home:
            del _HOMES[name]
            for loaded in [other for other in sys.modules if other.partition(".")[0] == name]:
                del sys.modules[loaded]


def _holds(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


def _lies_in(module: ModuleType | None, folder: Path) -> bool:
    """Tell whether a top-level module is a file, or a package, directly in a folder."""
    if module is None or module.__spec__ is None:
        return False
    places = module.__spec__.submodule_search_locations or [module.__spec__.origin or ""]
    return any(Path(place).resolve().parent == folder for place in places)


def function_named(name: str) -> Callable[..., Any]:
    """Import a function by "module:function".

    Args:
        name: The module's dotted name and the function's, with a colon between.

    Returns:
        The function.

    Raises:
        KpipeError: When there is no such module or function, or the module cannot be imported.

    Example:
        >>> function_named("math:sqrt")(9.0)
        3.0
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise KpipeError(f'received {name!r}; expected "module:function", such as "kpipe.models:digits_cnn"')
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise KpipeError(
            f"module {module!r} cannot be imported ({error}). Looked on Python's path, in the recipe's folder and in "
            f"{Path.cwd()}"
        ) from error
    except Exception as error:  # an import runs the user's code: anything may come out of it
        raise KpipeError(f"module {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(imported, attribute, None)
    if found is None:
        raise KpipeError(f"module {module!r} has no {attribute!r}{nearest(attribute, vars(imported))}")
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
        KpipeError: When the source is not found, fails, or gives no built Keras model that takes the data's samples.
    """
    with importable(folder):
        if source.load is None:
            model = _built(str(source.factory), data)
        else:
            model = load_model(locate(source.load, folder), source.safe_mode)
    what = source.load or source.factory
    if not isinstance(model, keras.Model):
        raise KpipeError(f"{what} gives {type(model).__name__}; expected a keras.Model")
    if not model.built or not getattr(model, "inputs", None):
        raise KpipeError(f"the model of {what} is not built; give it a keras.Input, or call model.build(shape)")
    _check_shape(f"the model of {what}", model, data)
    if source.safe_mode and holds_code(model):
        raise KpipeError(
            f"the model of {what} holds functions that are saved as code, as those of Lambda layers are: the steps of "
            "a run load what the ones before saved, and loading runs such code. Say safe_mode: false under model, or "
            "register the functions with keras.saving.register_keras_serializable"
        )
    return model


def _built(name: str, data: Dataset) -> Any:
    factory = function_named(name)
    offered = {"input_shape": data.input_shape, "classes": data.classes}
    try:
        taken = inspect.signature(factory).parameters
        return factory(**{key: value for key, value in offered.items() if key in taken})
    except Exception as error:  # the function is the user's: anything may come out of it
        raise KpipeError(f"{name} failed: {type(error).__name__}: {error}") from error


def _check_shape(what: str, model: keras.Model, data: Dataset) -> None:
    if len(model.inputs) != 1:
        raise KpipeError(f"{what} has {len(model.inputs)} inputs; a recipe takes models with one input")
    expected = tuple(model.inputs[0].shape[1:])
    fits = len(expected) == len(data.input_shape) and all(
        size is None or size == given for size, given in zip(expected, data.input_shape, strict=True)
    )
    if not fits:
        raise KpipeError(
            f"{what} takes samples of shape {expected}, but those of the data {data.name!r} have shape "
            f"{data.input_shape}; change the model's input or the data"
        )


def fingerprint(source: ModelSource, folder: Path) -> str:
    """Give what identifies a model source before it is made: the SHA-256 of the file, or the function's name.

    What a function builds goes into a step's key when the run begins.
    """
    if source.load is None:
        return str(source.factory)
    return hashlib.sha256(locate(source.load, folder).read_bytes()).hexdigest()
