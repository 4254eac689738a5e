"""Name -> object, filled by a decorator on the definition."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from kpipe.errors import KpipeError

T = TypeVar("T")
S = TypeVar("S")


def nearest(name: str, known: Iterable[str]) -> str:
    """Phrase the closest known name as a hint, or nothing when none is close.

    Example:
        >>> nearest("tailor", ["taylor", "l1"])
        " Did you mean 'taylor'?"
        >>> nearest("zzz", ["taylor", "l1"])
        ''
    """
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


class Registry(Generic[T]):
    """Hold the named objects of one kind, in the order in which they were defined.

    Example:
        >>> SHAPES = Registry("shape")
        >>> @SHAPES("square", sides=4)
        ... def square(a):
        ...     return a * a
        >>> SHAPES["square"](3), SHAPES.facts("square")["sides"], list(SHAPES)
        (9, 4, ['square'])
        >>> SHAPES["sqare"]
        Traceback (most recent call last):
        ...
        kpipe.errors.KpipeError: Unknown shape 'sqare'. Known: square. Did you mean 'square'?
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._objects: dict[str, T] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def __call__(self, name: str, **facts: Any) -> Callable[[S], S]:
        """Register the decorated object under `name`, with what else is to be known of it; its own type stays."""

        def register(item: S) -> S:
            if name in self._objects and self._objects[name] is not item:
                raise KpipeError(f"The {self.kind} {name!r} is registered already. Choose another name.")
            self._objects[name] = item  # type: ignore[assignment]
            self._facts[name] = facts
            return item

        return register

    def __getitem__(self, name: str) -> T:
        self._check(name)
        return self._objects[name]

    def facts(self, name: str) -> dict[str, Any]:
        """Give what was said of `name` when it was registered."""
        self._check(name)
        return self._facts[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)

    def _check(self, name: str) -> None:
        if name not in self:
            known = ", ".join(self._objects) or "none"
            if not isinstance(name, str):
                raise KpipeError(f"Received {type(name).__name__} for a {self.kind}; expected one of {known}.")
            raise KpipeError(f"Unknown {self.kind} {name!r}. Known: {known}.{nearest(name, self._objects)}")
