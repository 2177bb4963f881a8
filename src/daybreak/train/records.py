"""What a run tells of itself: the logbook, the figures, run.json and the screen, all from one place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from daybreak import settings as reading
from daybreak.language_model import LanguageModel
from daybreak.train.course import Course
from daybreak.train.evaluation import Score
from daybreak.train.logbook import Logbook, Part
from daybreak.train.machine import machine
from daybreak.train.metrics import Metrics
from daybreak.train.run_status import RunFile
from daybreak.train.settings import Settings
from daybreak.train.stop import ending_by, reason
from daybreak.train.watch import Seen, Verdict
from daybreak.train.world import World

if TYPE_CHECKING:
    from daybreak.train.session import Progress

RECENT = 20
"""Steps over which the loss and the speed that people see are averaged."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Where training stands."""

    step: int
    """Steps done."""
    steps: int
    loss: float
    """Nats per predicted token, mean of the last steps."""
    lr: float
    tokens_per_second: float
    seconds_left: float


class Screen(Protocol):
    """Who watches."""

    def phase(self, name: str) -> None:
        """Something begins that takes a while."""

    def point(self, point: Point) -> None:
        """So many steps are done."""

    def say(self, line: str) -> None:
        """Something that a person should see."""

    def quiet(self) -> None:
        """This process is not the one that speaks."""


class Records:
    """Of several processes only rank 0 writes; the others may call everything."""

    def __init__(
        self, folder: Path, settings: Settings, model: LanguageModel, here: World, screen: Screen
    ) -> None:
        self._folder, self._settings, self._model, self._world = folder, settings, model, here
        self._screen = screen
        if not here.main:
            screen.quiet()
        self._early: list[str] = []
        self._logbook: Logbook | None = None
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=RECENT)
        """Loss, seconds and tokens of the last steps."""
        self._tokens = 0
        self.last_scores: dict[str, Score] = {}

    @property
    def loss(self) -> float | None:
        """Mean of the last steps; None if this session made none."""
        return sum(loss for loss, _, _ in self._recent) / len(self._recent) if self._recent else None

    def begin(self, course: Course, step: int, changes: Mapping[str, tuple[Any, Any]]) -> None:
        """The session begins, at `step`; with the first word of the logbook."""
        self._course, main = course, self._world.main
        self._run = RunFile(self._folder, self._facts(), course.steps, step, main)
        session = self._run.status.session
        self._logbook = Logbook(self._folder, main)
        self._logbook.start(
            session=session,
            step=step,
            settings=reading.to_yaml(self._settings, comments=False),
            about={**machine(), **self._about()},
            before=self._run.before,
            changes=changes,
        )
        self._metrics = Metrics(
            self._folder,
            self._settings.log,
            kept=step,
            run=self._run.status.id,
            configuration=reading.to_tree(self._settings),
            active=main,
        )
        self._metrics.started(step, session, self._run.status.started)
        for line in self._early:
            self._logbook.note(line)
        self._screen.phase("training")

    def note(self, line: str) -> None:
        """A sentence for the logbook and the screen."""
        if not self._world.main:
            return
        self._screen.say(line)
        if self._logbook is None:
            self._early.append(line)
        else:
            self._logbook.note(line)

    def step(
        self, seen: Seen, verdict: Verdict, numbers: range, progress: Progress, lr: float, seconds: float
    ) -> None:
        """A step is done that read the sequences `numbers`."""
        course, tokens = self._course, len(numbers) * self._course.context
        event = None if verdict.event is None else verdict.event.kind
        self._metrics.step(
            {
                "step": seen.step,
                "position": numbers.start,
                "sequences": len(numbers),
                "tokens": course.before(progress.step) * course.context,
                "loss": seen.loss,
                "gradient_norm": seen.gradient_norm,
                "embedding_gradient_norm": seen.embedding_gradient_norm,
                "lr": lr,
                "loss_scale": seen.loss_scale,
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "event": event,
            }
        )
        self._run.at(progress.step)
        if verdict.action == "go":
            self._recent.append((seen.loss, seconds, tokens))
        if progress.step % self._settings.log.every == 0 and self.loss is not None:
            self._screen.point(self._point(progress.step, lr))

    def event(self, verdict: Verdict, documents: Sequence[Part]) -> None:
        """The watcher saw something in a step that read these documents."""
        assert verdict.event is not None and self._logbook is not None
        self._logbook.event(verdict.event, verdict.action, documents)
        if self._world.main:
            self._screen.say(f"step {verdict.event.step:,}: {verdict.event.text} ({verdict.action})")

    def rolled_back(self, before: Progress, now: Progress, event: str) -> None:
        """The run has gone back from `before` to the checkpoint of `now`."""
        assert self._logbook is not None
        first = self._course.before(now.step) + before.position - self._course.before(before.step)
        self._logbook.rolled_back(before.step, now.step, first, before.position - 1, now.rate)
        self._recent.clear()
        self._metrics.rolled_back(before.step, now.step, event)

    def scores(self, step: int, scores: dict[str, Score]) -> None:
        """Held-out text was scored."""
        assert self._logbook is not None
        self.last_scores = scores
        figures = {
            name: {"loss": score.loss, "bits_per_byte": score.bits_per_byte} for name, score in scores.items()
        }
        self._metrics.evaluation(step, figures)
        self._logbook.evaluation(step, figures)

    def samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """The model wrote on behind prompts."""
        assert self._logbook is not None
        self._logbook.samples(step, samples)
        for prompt, text in samples:
            self._metrics.sample(step, prompt, text)

    def saving(self, step: int, lr: float) -> None:
        """A checkpoint is about to be written: all that is known so far goes to the disk first."""
        self._metrics.flush()
        if self._recent and self._logbook is not None:
            point = self._point(step, lr)
            tokens = self._course.before(step) * self._course.context
            self._logbook.progress(step, point.steps, point.loss, tokens, point.tokens_per_second)

    def ended(self, progress: Progress, ending: Any, signal: int | None) -> None:
        """The session is over; `signal` says what stopped it."""
        self._close(ending, progress.step, reason(signal))

    def failed(self, progress: Progress, error: BaseException) -> None:
        """The session ends with an error."""
        ending, told = ending_by(error)
        self._close(ending, progress.step, told)

    def _close(self, ending: Any, step: int, reason: str | None) -> None:
        if self._logbook is None:
            return
        self._logbook.end(ending, step, self._run.seconds, reason)
        self._run.status = dataclasses.replace(self._run.status, step=step)
        self._run.end(ending, reason)
        with contextlib.suppress(OSError):  # a full disk: what it does not take is not worth another error
            self._metrics.close()

    def _point(self, step: int, lr: float) -> Point:
        seconds = sum(one for _, one, _ in self._recent)
        tokens = sum(one for _, _, one in self._recent)
        speed = tokens / seconds
        left = (self._course.sequences - self._course.before(step)) * self._course.context / speed
        assert self.loss is not None
        return Point(step, self._course.steps, self.loss, lr, speed, left)

    def _facts(self) -> dict[str, Any]:
        return {
            "family": self._model.family.name,
            "size": self._settings.model.size,
            "parameters": sum(one.numel() for one in self._model.decoder.parameters()),
            "processes": self._world.size,
        }

    def _about(self) -> dict[str, str]:
        model, here = self._model, self._world
        shape, count = model.architecture, sum(one.numel() for one in model.decoder.parameters())
        begun = f", begun with {self._settings.model.start}" if self._settings.model.start else ""
        cuts = f", {here.data_ranks} read different data, {here.tensor_ranks} cut a matrix"
        cuts = cuts if here.size > 1 else ""
        return {
            "model": f"{model.family.title}, {count:,} parameters, {shape.layers} layers of width "
            f"{shape.width}{begun}",
            "data": f"{self._settings.data.folder}, sequences of {self._course.context:,} tokens",
            "processes": f"{here.size} ({here.device.type}){cuts}",
        }
