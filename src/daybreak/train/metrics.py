"""The figures of a run: metrics.jsonl, TensorBoard's files, and the trackers that are installed."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from daybreak.errors import DaybreakError
from daybreak.train.settings import LogSettings

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SECONDS = 1.0
"""No line waits longer before the system has it; from then on it survives the end of the process."""
BLOCK = 1 << 20

CURVES = (
    "loss",
    "lr",
    "gradient_norm",
    "embedding_gradient_norm",
    "loss_scale",
    "tokens",
    "tokens_per_second",
)
"""What of a step is shown elsewhere."""

_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class Metrics:
    """Writes what a run measures. Of several processes only rank 0 is `active`; the others' calls do nothing.

    `kept` is the last step that holds: what an earlier session wrote of later ones, after the checkpoint that
    this one continues from, is removed, so that every step stands in the file once. `run` is the run's id,
    under which trackers continue it. Raises `DaybreakError` for a tracker that is not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: LogSettings,
        *,
        kept: int,
        run: str,
        configuration: Mapping[str, Any],
        active: bool = True,
    ) -> None:
        self.file = folder / FILE
        self._sinks: list[_Sink] = []
        self._active = active
        self._every = settings.every
        self._last: Mapping[str, Any] = {}
        if not active:
            return
        for tracker in settings.trackers:  # before anything is changed: it may be missing
            self._sinks.append(_TRACKERS[tracker](settings.project, folder, run, configuration))
        if settings.tensorboard:
            self._sinks.append(_TensorBoard(folder / TENSORBOARD, kept))
        self._cut(kept)

    def step(self, values: Mapping[str, Any]) -> None:
        """A step's line: `step` and what was measured. What is not finite becomes null. TensorBoard and
        trackers get every `log.every`th step, and those with an event: a step there costs as much as twenty
        lines."""
        self._line(values)
        self._last, step = values, int(values["step"])
        if self._sinks and (step % self._every == 0 or values.get("event")):
            self._send(step, {f"train/{name}": values.get(name) for name in CURVES})

    def evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Figures of the validation split, by source or `all`."""
        self._line({"step": step, "evaluation": results})
        flat = {f"{source}/{name}": x for source, figures in results.items() for name, x in figures.items()}
        self._send(step, {f"evaluation/{name}": value for name, value in flat.items()})

    def sample(self, step: int, prompt: str, text: str) -> None:
        """What the model wrote behind a prompt."""
        self._line({"step": step, "sample": {"prompt": prompt, "text": text}})
        for sink in self._sinks:
            sink.text(step, prompt, text)

    def started(self, step: int, session: int, time: str) -> None:
        """A session began, after `step` steps."""
        self._line({"step": step, "session": session, "time": time})

    def rolled_back(self, step: int, to: int, event: str) -> None:
        """The run is back at the checkpoint of step `to`: later lines go, and this is noted instead, with
        what `step` had read."""
        if self._active:
            read = {name: self._last.get(name) for name in ("position", "sequences")}
            self.flush()
            self._stream.close()
            self._cut(to)
            for sink in self._sinks:
                sink.back(to)
            self._line({"step": to, "rolled_back": {"from": step, "event": event, **read}})

    def flush(self) -> None:
        """What was written so far is on the disk when this returns: call it before a checkpoint is saved."""
        if self._active:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            for sink in self._sinks:
                sink.flush()

    def close(self) -> None:
        """The last lines, and the trackers' goodbye."""
        if self._active:
            self.flush()
            self._stream.close()
            for sink in self._sinks:
                sink.close()
            self._active = False

    def _cut(self, kept: int) -> None:
        cut(self.file, kept)
        self._stream = self.file.open("a", encoding="utf-8")
        self._flushed = time.monotonic()

    def _line(self, values: Mapping[str, Any]) -> None:
        if not self._active:
            return
        try:
            line = _JSON.encode(values)
        except ValueError:
            line = _JSON.encode(_finite(values))
        self._stream.write(line + "\n")
        if time.monotonic() - self._flushed >= SECONDS:
            self._stream.flush()
            self._flushed = time.monotonic()

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        for sink in self._sinks:
            sink.numbers(step, numbers)


def cut(file: Path, kept: int) -> None:
    """Remove the lines of steps after `kept`, and a last line that was cut off. Lines stand in the order of
    their steps, so that what goes is the file's end: it is read backwards, and goes in one piece."""
    try:
        with file.open("rb+") as stream:
            end = stream.seek(0, os.SEEK_END)
            for start, line in lines_backwards(file):
                values = parsed(line)
                if values is not None and values["step"] <= kept:
                    break
                end = start
            stream.truncate(end)
            os.fsync(stream.fileno())
    except FileNotFoundError:
        pass


def lines_backwards(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from the last to the first: (where it begins, the line with its line break, which
    the very last may lack)."""
    with file.open("rb") as stream:
        place = stream.seek(0, os.SEEK_END)
        rest = b""  # the end of a line that begins in an earlier block
        while place > 0:
            start = max(0, place - BLOCK)
            stream.seek(start)
            block = stream.read(place - start) + rest
            first = block.find(b"\n") + 1 if start > 0 else 0
            position = start + len(block)
            # A block in the middle of one long line has no beginning of a line at all.
            for line in reversed(
                re.findall(rb"[^\n]*\n|[^\n]+", block[first:] if first or not start else b"")
            ):
                position -= len(line)
                yield position, line
            rest, place = block[:first] if first or not start else block, start


def parsed(line: bytes) -> dict[str, Any] | None:
    """What a line says; None: it was cut off or is damaged."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Sink(Protocol):
    """Where figures go beside the file."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, step: int, prompt: str, text: str) -> None: ...
    def back(self, step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _tag(prompt: str) -> str:
    return f"samples/{re.sub(r'[^0-9A-Za-z]+', '_', prompt)[:40]}"


class _TensorBoard:
    """Event files; what earlier ones say of steps after `kept` is no longer shown."""

    def __init__(self, folder: Path, kept: int) -> None:
        module: Any = importlib.import_module("tensorboardX")
        self._writer = module.SummaryWriter(str(folder), purge_step=kept + 1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, prompt: str, text: str) -> None:
        quoted = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text(_tag(prompt), quoted, step)

    def back(self, step: int) -> None:
        events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        start = events.SessionLog(status=events.SessionLog.START)
        self._writer.file_writer.add_event(events.Event(session_log=start), step + 1)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases. Their own count of steps only goes up; ours is a figure of its own, so that a run may
    go back."""

    def __init__(self, project: str, folder: Path, run: str, configuration: Mapping[str, Any]) -> None:
        module = _tracker(lambda: importlib.import_module("wandb"), "wandb")
        self._run = module.init(
            project=project,
            name=folder.resolve().name,
            id=run,
            resume="allow",
            config=dict(configuration),
            dir=str(folder),
        )
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def text(self, step: int, prompt: str, text: str) -> None:
        self._run.log({"step": step, _tag(prompt): text})

    def back(self, step: int) -> None:
        """Its curves show both ways: what it was sent stays."""

    def flush(self) -> None:
        """It sends in the background."""

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio, whose runs are continued by name."""

    def __init__(self, project: str, folder: Path, run: str, configuration: Mapping[str, Any]) -> None:
        module = _tracker(lambda: importlib.import_module("trackio"), "trackio")
        name = f"{folder.resolve().name}-{run}"
        self._run = module.init(project=project, name=name, resume="allow", config=dict(configuration))
        self._finish = module.finish

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, prompt: str, text: str) -> None:
        self._run.log({_tag(prompt): text}, step=step)

    def back(self, step: int) -> None:
        """Its curves show both ways: what it was sent stays."""

    def flush(self) -> None:
        """It sends in the background."""

    def close(self) -> None:
        self._finish()


_TRACKERS: dict[str, Callable[[str, Path, str, Mapping[str, Any]], _Sink]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def _tracker(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise DaybreakError(
            f"log.trackers names {name}, which is not installed; `pip install {name}`, or leave it out"
        ) from None
