"""The live display of a run on the terminal; silent where there is none."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daybreak.quickstart.loop import Point


class Live:
    """One line per phase: what is being done, how far it is, and while training the loss, the speed and the
    time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(file=sys.stderr)
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
            disable=not sys.stderr.isatty(),
        )
        self._task: Any = None

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def phase(self, name: str) -> None:
        self._finish()
        self._task = self._progress.add_task(name, total=None, facts="")

    def progress(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def point(self, point: Point) -> None:
        left = f"{point.seconds_left:.0f} s left"
        facts = f"loss {point.loss:.2f}  {point.tokens_per_second:,.0f} tokens/s  {left}"
        self._progress.update(self._task, completed=point.fraction, total=1.0, facts=facts)

    def _finish(self) -> None:
        if self._task is not None:
            total = self._progress.tasks[self._task].total or 1
            self._progress.update(self._task, completed=total, total=total)
