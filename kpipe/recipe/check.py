"""Read recipes from YAML, and tell all their faults at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kpipe.data import SOURCES, load
from kpipe.errors import KpipeError, RecipeError
from kpipe.pipeline import STAGES, ModelSource, Stage, order_faults
from kpipe.pipeline.source import function_named, importable, locate
from kpipe.recipe.faults import parse
from kpipe.recipe.schema import Head, Recipe, model_sources
from kpipe.recipe.together import accuracy_faults, delivery_faults, precision_faults
from kpipe.registry import nearest


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file.

    Returns:
        The recipe, checked: every key, name and value, the order of the stages, and the files that it names.

    Raises:
        RecipeError: With all the faults at once, each with its path in the file.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path} (looked in {path.resolve().parent}).{_beside(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}. Expected a YAML text file.") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return parse_recipe(document, path.resolve().parent, name=path.stem)
    except RecipeError as error:
        raise RecipeError(f"The recipe {path} cannot run:\n{error}") from None


def parse_recipe(document: Any, folder: str | Path = ".", name: str | None = None) -> Recipe:
    """Check a recipe given as plain data.

    Args:
        document: What the YAML file holds.
        folder: Where files and modules that it names are looked for, besides the working directory.
        name: The name of a recipe that does not say its own.

    Returns:
        The recipe.

    Raises:
        RecipeError: With all the faults at once, one a line, each with its path.

    Example:
        >>> parse_recipe({"name": "a", "data": {"source": "digits"}, "model": {"factory": "kpipe.models:digits_cnn"},
        ...     "stages": [{"stage": "trian"}, {"stage": "quantize", "epoch": 3}]})
        Traceback (most recent call last):
        ...
        kpipe.errors.RecipeError:
          stages[0].stage: unknown stage 'trian'. Known: ... Did you mean 'train'?
          stages[1].epoch: unknown key. Known: ... Did you mean 'epochs'?
    """
    folder = Path(folder)
    if not isinstance(document, Mapping):
        raise RecipeError(f"  received {type(document).__name__}; expected a mapping with data, model and stages")
    given = {"name": name, **document} if name else dict(document)
    stages, faults = _parse_stages(given.pop("stages", None))
    head, head_faults = parse(Head, given, "", more=("stages",))
    faults = head_faults + faults
    if isinstance(head, Head):
        faults += _source_faults(head, folder)
    faults += _file_faults(stages, folder)
    if all(stage is not None for stage in stages):
        faults += [f"stages[{index}]: {fault}" for index, fault in order_faults([s for s in stages if s])]
        faults += precision_faults([s for s in stages if s])
        faults += accuracy_faults([s for s in stages if s])
        if isinstance(head, Head):
            faults += delivery_faults([s for s in stages if s], head.name)
    if faults or not isinstance(head, Head):
        raise RecipeError("\n".join(f"  {fault}" for fault in ["", *faults]).removeprefix("  "))
    return Recipe(head=head, stages=tuple(stage for stage in stages if stage), folder=folder)


def _parse_stages(listed: Any) -> tuple[list[Stage | None], list[str]]:
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        what = "nothing" if listed is None else repr(listed)
        return [], [f"stages: received {what}; expected a list of stages, such as [{{stage: train, epochs: 5}}]"]
    stages: list[Stage | None] = []
    faults: list[str] = []
    for index, item in enumerate(listed):
        path = f"stages[{index}]"
        stage = None
        if not isinstance(item, Mapping) or "stage" not in item:
            faults.append(f"{path}: received {item!r}; expected a mapping with `stage`. Known: {', '.join(STAGES)}")
        elif not isinstance(item["stage"], str) or item["stage"] not in STAGES:
            hint = nearest(str(item["stage"]), STAGES)
            faults.append(f"{path}.stage: unknown stage {item['stage']!r}. Known: {', '.join(STAGES)}.{hint}")
        else:
            stage, found = parse(STAGES[item["stage"]], item, path)
            faults += found
        stages.append(stage if isinstance(stage, Stage) else None)
    return stages, faults


def _source_faults(head: Head, folder: Path) -> list[str]:
    faults = []
    source = head.data.source
    if source.endswith(".npz"):
        faults += _attempt("data.source", lambda: locate(source, folder))
    elif ":" in source:
        faults += _attempt("data.source", lambda: _importing(source, folder))
    elif source not in SOURCES:
        faults += _attempt("data.source", lambda: load(source))
    return faults + _model_faults(head.model, "model", folder)


def _model_faults(source: ModelSource, path: str, folder: Path) -> list[str]:
    if source.load is not None:
        name = source.load
        return _attempt(f"{path}.load", lambda: locate(name, folder))
    return _attempt(f"{path}.factory", lambda: _importing(str(source.factory), folder))


def _file_faults(stages: Sequence[Stage | None], folder: Path) -> list[str]:
    return [
        fault
        for index, stage in enumerate(stages)
        for field, source in (model_sources(stage) if stage else ())
        for fault in _model_faults(source, f"stages[{index}].{field}", folder)
    ]


def _importing(name: str, folder: Path) -> None:
    with importable(folder):
        function_named(name)


def _attempt(path: str, check: Callable[[], Any]) -> list[str]:
    try:
        check()
    except KpipeError as error:
        return [f"{path}: {error}"]
    return []


def _beside(path: Path) -> str:
    """Name the recipe with the nearest name in the same folder or in `recipes/`."""
    folders = [folder for folder in (Path("recipes"), path.parent) if folder.is_dir()]
    known = {found.name: found for folder in folders for found in folder.glob("*.yaml")}
    hint = nearest(path.name, known)
    return hint or (f" Known here: {', '.join(str(found) for found in sorted(known.values()))}." if known else "")
