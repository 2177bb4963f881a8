"""What a tuning run tells of itself, in the files that a pretraining run has."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from daybreak import settings as reading
from daybreak.train.logbook import Logbook
from daybreak.train.machine import machine
from daybreak.train.metrics import Metrics
from daybreak.train.records import RECENT, Point, Screen
from daybreak.train.run_status import Ending, RunFile
from daybreak.train.settings import LogSettings
from daybreak.train.stop import ending_by, reason


class Logged(Protocol):
    """Settings of a run."""

    @property
    def log(self) -> LogSettings:
        """Where figures go."""


class TuningRecords:
    """The logbook, the figures, run.json and the screen."""

    def __init__(self, folder: Path, settings: Logged, screen: Screen) -> None:
        self._folder, self._settings, self._screen = folder, settings, screen
        self._logbook: Logbook | None = None
        self._early: list[str] = []
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=RECENT)
        """Loss, seconds and tokens of the last steps."""
        self._tokens = 0
        self.last_scores: dict[str, float] = {}

    @property
    def loss(self) -> float | None:
        """Mean of the last steps; None if this session made none."""
        return sum(loss for loss, _, _ in self._recent) / len(self._recent) if self._recent else None

    def begin(
        self,
        step: int,
        steps: int,
        changes: Mapping[str, tuple[Any, Any]],
        facts: Mapping[str, Any],
        about: Mapping[str, str],
    ) -> None:
        """The session begins, at `step`; with the first word of the logbook."""
        self._steps = steps
        self._run = RunFile(self._folder, facts, steps, step)
        session, id_ = self._run.status.session, self._run.status.id
        self._logbook = Logbook(self._folder)
        self._logbook.start(
            session=session,
            step=step,
            settings=reading.to_yaml(self._settings, comments=False),
            about={**machine(), **about},
            before=self._run.before,
            changes=changes,
        )
        tree = reading.to_tree(self._settings)
        self._metrics = Metrics(self._folder, self._settings.log, kept=step, run=id_, configuration=tree)
        self._metrics.started(step, session, self._run.status.started)
        for line in self._early:
            self._logbook.note(line)
        self._screen.phase("tuning")

    def note(self, line: str) -> None:
        """A sentence for the logbook and the screen."""
        self._screen.say(line)
        if self._logbook is None:
            self._early.append(line)
        else:
            self._logbook.note(line)

    def step(
        self,
        step: int,
        figures: Mapping[str, float],
        norm: float,
        lr: float,
        tokens: int,
        seconds: float,
        total: int,
    ) -> None:
        """`step` steps are done, which read `total` tokens; the last one read `tokens` in so many seconds and
        cost `figures` per prediction."""
        self._tokens = total
        speed = tokens / seconds
        values = {"step": step, **figures, "gradient_norm": norm, "lr": lr, "tokens": total}
        self._metrics.step({**values, "seconds": seconds, "tokens_per_second": speed})
        self._run.at(step)
        self._recent.append((figures["loss"], seconds, tokens))
        if step % self._settings.log.every == 0 or step == self._steps:
            self._screen.point(self._point(step, lr))

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """The held-out examples were scored."""
        assert self._logbook is not None
        self.last_scores = scores
        self._metrics.evaluation(step, {"held out": scores})
        self._logbook.evaluation(step, {"held out": scores})

    def saving(self, step: int) -> None:
        """A checkpoint is about to be written: all that is known so far goes to the disk first."""
        self._metrics.flush()
        if self._recent and self._logbook is not None:
            point = self._point(step, 0.0)
            self._logbook.progress(step, self._steps, point.loss, self._tokens, point.tokens_per_second)

    def ended(self, step: int, ending: Ending, signal: int | None) -> None:
        """The session is over; `signal` says what stopped it."""
        self._close(ending, step, reason(signal))

    def failed(self, step: int, error: BaseException) -> None:
        """The session ends with an error."""
        ending, told = ending_by(error)
        self._close(ending, step, told)

    def _close(self, ending: Ending, step: int, reason: str | None) -> None:
        if self._logbook is None:
            return
        self._logbook.end(ending, step, self._run.seconds, reason)
        self._run.status = dataclasses.replace(self._run.status, step=step)
        self._run.end(ending, reason)
        with contextlib.suppress(OSError):  # a full disk: what it does not take is not worth another error
            self._metrics.close()

    def _point(self, step: int, lr: float) -> Point:
        seconds, tokens = (sum(values) for values in list(zip(*self._recent, strict=True))[1:])
        assert self.loss is not None
        left = (self._steps - step) * seconds / len(self._recent)
        return Point(step, self._steps, self.loss, lr, tokens / seconds, left)
