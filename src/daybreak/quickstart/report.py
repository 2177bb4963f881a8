"""What a run of the quickstart reports, and who looks on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from daybreak.data.compression import Compressed
from daybreak.quickstart.infilling import Example, Infilled
from daybreak.quickstart.loop import Point
from daybreak.quickstart.sample import Completion, Parsed
from daybreak.quickstart.settings import Settings


@dataclass(frozen=True)
class Report:
    """What a run came to."""

    folder: Path
    finished: bool
    """False: it was interrupted, so nothing was scored or sampled."""
    settings: Settings
    parameters: int
    steps: int
    tokens: int
    """Learned from, repetitions counted."""
    training: Mapping[str, int]
    """Files, bytes and tokens of the training text."""
    validation: Mapping[str, int]
    """The same of the validation text."""
    seconds: Mapping[str, float]
    """Wall time by phase."""
    uncompiled: str | None = None
    """Why the training step was not compiled; None if it was, or was not to be."""
    bits_per_byte: float | None = None
    """Of the validation files, every byte of them."""
    xz: Compressed | None = None
    parsed: Parsed | None = None
    completions: Sequence[Completion] = ()
    infilled: Infilled | None = None
    """Deleted lines of validation files; only where the objective is blank infilling."""
    examples: Sequence[Example] = ()
    """Some of these lines."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        data = dataclasses.asdict(self)
        source = self.settings.source
        data["folder"] = str(self.folder)
        data["settings"] |= {
            "stride": self.settings.stride,
            "source": None if source is None else str(source),
        }
        return data


class Watch(Protocol):
    """Whoever looks on."""

    def phase(self, name: str) -> None:
        """A new phase begins."""

    def progress(self, done: int, total: int) -> None:
        """So much of it is done."""

    def point(self, point: Point) -> None:
        """Training went on."""


class Clock:
    """Seconds since `began` (a reading of `time.perf_counter`), and by phase."""

    def __init__(self, watch: Watch, began: float | None = None) -> None:
        self._began = time.perf_counter() if began is None else began
        self._watch = watch
        self.phases: dict[str, float] = {"starting": self.elapsed}

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._watch.phase(name)
        before = self.elapsed
        yield
        self.phases[name] = self.phases.get(name, 0.0) + self.elapsed - before
