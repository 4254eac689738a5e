"""What pydantic finds wrong, in our words: the path, what was received, what was expected, the nearest name."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from kpipe.registry import nearest


def parse(
    schema: type[BaseModel], given: Any, path: str, more: tuple[str, ...] = ()
) -> tuple[BaseModel | None, list[str]]:
    """Make a schema's object from plain data, or say all that is wrong with it.

    Args:
        schema: The pydantic class.
        given: The data.
        path: Where the data stands in the file.
        more: Keys that are known at the top besides the schema's own.

    Returns:
        The object or None, and the faults.

    Example:
        >>> class Point(BaseModel, extra="forbid"):
        ...     height: int
        >>> print(*parse(Point, {"hight": 1}, "at")[1], sep=" | ")
        at.height: missing; give it a value | at.hight: unknown key. Known: height. Did you mean 'height'?
    """
    try:
        return schema.model_validate(given), []
    except ValidationError as error:
        return None, [_fault(schema, path, dict(item), more) for item in error.errors()]


def _fault(schema: type[BaseModel], root: str, error: dict[str, Any], more: tuple[str, ...]) -> str:
    """Say a fault that pydantic found in our words: path, what was received, what was expected."""
    path = root
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    path = path.removeprefix(".")
    if error["type"] == "extra_forbidden":
        known = [*_keys(schema, error["loc"][:-1]), *(more if len(error["loc"]) == 1 else ())]
        return f"{path}: unknown key. Known: {', '.join(known)}.{nearest(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{path}: missing; give it a value"
    if error["type"] == "value_error":
        return f"{path or 'recipe'}: {error['ctx']['error']}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{path}: received {error['input']!r}; {message.replace('input ', 'it ')}"


def _keys(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Give the keys that a schema knows at a place inside it."""
    for part in location:
        field = schema.model_fields.get(str(part))
        nested = [kind for kind in _kinds(field.annotation) if issubclass(kind, BaseModel)] if field else []
        if not nested:
            return []
        schema = nested[0]
    return list(schema.model_fields)


def _kinds(annotation: Any) -> list[type]:
    """Give the classes in an annotation such as `Optimizer | None`."""
    if isinstance(annotation, type):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _kinds(part)]
