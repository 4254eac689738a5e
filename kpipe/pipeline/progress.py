"""Who listens to a run while it goes on."""

from typing import Any, Protocol


class Progress(Protocol):
    """Be told what a run does. The command line shows bars; the default, `Quiet`, shows nothing."""

    def begin(self, name: str, index: int, total: int) -> None:
        """Hear that step `index` of `total` (from 1) has begun."""

    def tell(self, text: str, done: float) -> None:
        """Hear what the step is at, and the fraction of it that is done, in [0, 1]."""

    def end(self, entry: dict[str, Any], reused: bool) -> None:
        """Hear that the step has ended with this entry, or was found finished from an earlier run."""


class Quiet:
    """Say nothing."""

    def begin(self, name: str, index: int, total: int) -> None:
        """Say nothing."""

    def tell(self, text: str, done: float) -> None:
        """Say nothing."""

    def end(self, entry: dict[str, Any], reused: bool) -> None:
        """Say nothing."""
