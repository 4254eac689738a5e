"""Bars that show how a run goes on."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Live:
    """Show a bar a step on a terminal; elsewhere, a line when a step has ended."""

    def __init__(self, console: Console):
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[at]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._place = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, name: str, index: int, total: int) -> None:
        """Add the bar of a step."""
        self._place = f"[{index}/{total}]"
        self._task = self._bars.add_task(name, total=1.0, at="")

    def tell(self, text: str, done: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, at=text)

    def end(self, entry: dict[str, Any], reused: bool) -> None:
        """Fill the bar, and say what came out."""
        accuracy = entry["metrics"]["accuracy"]
        came = f"{entry['seconds']:.0f} s" if not reused else "done before"
        came += "" if accuracy is None else f", accuracy {accuracy:.4f}"
        self._bars.update(self._task, completed=1.0, at=came)
        self._bars.stop_task(self._task)
        if not self._console.is_terminal:
            self._console.print(f"{self._place} {entry['name']}: {came}", markup=False, soft_wrap=True)
        for note in entry["notes"]:
            self._console.print(f"  note: {note}", markup=False, soft_wrap=True)
