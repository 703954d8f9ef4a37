"""Progress of long work in the terminal: a bar for the current step, one line for each finished one."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """A context that shows progress bars if the output is a terminal, and lines everywhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task, self._what = self._bars.add_task("starting", total=None), ""

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` of ``what`` is finished."""
        name = what.split(", ", maxsplit=1)[0]  # what follows is a value, such as the loss
        if name != self._what:
            self._what = name
            self._bars.reset(self._task, total=total)
        self._bars.update(self._task, description=what, completed=done, total=total)

    def tell(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, highlight=False)
