"""A training run on the terminal; silent where there is none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daybreak.train.records import Point


class TrainingScreen:
    """One line with step, loss, speed and the time left; events stand above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        self.speaks = True
        """This process is the one that speaks for the run."""
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self._task: Any = None

    def __enter__(self) -> TrainingScreen:
        self._progress.start()
        self.phase("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=None, facts="")

    def point(self, point: Point) -> None:
        facts = f"loss {point.loss:.3f}  {point.tokens_per_second:,.0f} tokens/s  {_left(point.seconds_left)}"
        self._progress.update(self._task, completed=point.step, total=point.steps, facts=facts)

    def say(self, line: str) -> None:
        if self.speaks and sys.stderr.isatty():
            self._progress.console.print(line, markup=False, highlight=False)
        elif self.speaks:
            print(line, file=sys.stderr)

    def quiet(self) -> None:
        self.speaks = False
        self._progress.stop()


def _left(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 7200 else f"{seconds / 3600:.1f} h left"
