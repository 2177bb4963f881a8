"""logbook.md: the story of a run, written as it goes, for people.

Entries are only ever appended, each in one piece that is on the disk before training goes on. An entry has no
empty line inside and one behind it: so the next start sees whether the last one was cut off, and closes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from daybreak.train.run_status import Ending, RunStatus
from daybreak.train.watch import Action, Event

FILE = "logbook.md"
NAMED = 20
"""Documents of a batch that are named."""
REPEATED = 3
"""Events in a row that name so many; those after them name as few as this."""
CUT_OFF = "(this entry was cut off)"

_DONE = {
    "go": "The step was taken.",
    "skip": "The step was not taken: weights and optimizer are as before, and the batch is passed over.",
    "roll_back": "The step was not taken, and the run goes back.",
    "stop": "The step was not taken, and the run ends.",
}


class _Document(Protocol):
    """Where a document is from: `daybreak.data`'s."""

    @property
    def file(self) -> str: ...
    @property
    def place(self) -> int: ...
    @property
    def id(self) -> str: ...


class Part(Protocol):
    """A part of a document that a batch held: what the loader's `documents` gives."""

    @property
    def sequence(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def document(self) -> _Document: ...
    @property
    def tokens(self) -> int: ...


class Logbook:
    """The file in a run's folder. Of several processes only rank 0 is `active`; the others' calls do
    nothing."""

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.file = folder / FILE
        self._active = active
        self._lock = threading.Lock()  # checkpoints are written, and told of, in the background
        self._last_event: tuple[str, int, int] = ("", 0, 0)
        if active:
            _close_last_entry(self.file)

    def start(
        self,
        *,
        session: int,
        step: int,
        settings: str,
        about: Mapping[str, str],
        before: RunStatus | None = None,
        changes: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        """A session begins, at `step`. `settings` is the configuration as YAML, which the first session shows
        whole; later ones show `changes`, each with the value before and the new one. `about` is what else is
        worth a line: the machine, the model, the data."""
        if session == 1:
            self._append(f"# Logbook of {self.file.parent.resolve().name}")
        self._append(f"## Session {session}: {_time()} UTC")
        if session > 1:
            ended = before.ended() if before is not None else "how the session before ended is not known"
            where = f"goes on from the checkpoint of step {step:,}" if step else "begins anew, at step 0"
            self._append(f"{ended[:1].upper()}{ended[1:]}. This one {where}.")
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        rows = {"command": f"`{command}`", **about}
        self._append("\n".join(f"- {name}: {_line(value)}" for name, value in rows.items()))
        if session == 1:
            self._append("Configuration:", fenced(settings, "yaml"))
        elif changes:
            lines = (f"- `{name}`: {_line(was)} → {_line(now)}" for name, (was, now) in changes.items())
            self._append("Changed in the configuration:", *lines)
        else:
            self._append("The configuration is as before.")

    def note(self, text: str) -> None:
        """Anything else, in a sentence: a damaged checkpoint, an export."""
        self._append(f"{_time()}: {_line(text)}")

    def event(self, event: Event, action: Action, documents: Sequence[Part]) -> None:
        """A spike, what was done, and what the step had read."""
        kind, step, count = self._last_event
        count = count + 1 if (event.kind, event.step) == (kind, step + 1) else 1
        self._last_event = (event.kind, event.step, count)
        self._append(f"### Step {event.step:,}: {event.kind}")
        said = f"{event.text[:1].upper()}{event.text[1:]}"
        self._append(f"{_time()}: {_line(said)}. {_DONE[action]}")
        if documents:
            self._append(*self._documents(documents, event.step, NAMED if count <= REPEATED else REPEATED))

    def rolled_back(
        self, step: int, to: int, first: int, last: int, lr_factor: float, why: str | None = None
    ) -> None:
        """Back from `step` to the checkpoint of step `to`: the sequences from `first` to `last` are passed
        over, and the schedule's learning rate is multiplied by `lr_factor` from there on."""
        self._append(
            f"{_time()}: back from step {step:,} to the checkpoint of step {to:,}. Sequences {first:,} to "
            f"{last:,} are not read again, and the learning rate is {lr_factor:.4g} times the schedule's."
            + (f" {_line(why)}" if why else "")
        )

    def evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Figures of the validation split, by source or `all`: {"all": {"loss": 3.1}}."""
        columns = list(dict.fromkeys(name for figures in results.values() for name in figures))
        head = [f"step {step:,}, {_time()}", *(name.replace("_", " ") for name in columns)]
        rows = [
            [_cell(source), *(_number(figures.get(name)) for name in columns)]
            for source, figures in results.items()
        ]
        self._append(*(f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * len(columns)], *rows)))

    def samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """What the model wrote: (prompt, continuation)."""
        for prompt, text in samples:
            self._append(f"Step {step:,}, a continuation of {_code(prompt)}:", fenced(text, "text"))

    def progress(
        self, step: int, steps: int | None, loss: float, tokens: int, tokens_per_second: float
    ) -> None:
        """How it goes, in a line; for every checkpoint or so."""
        of = f" of {steps:,}" if steps else ""
        self._append(
            f"{_time()}: step {step:,}{of}, loss {loss:.4g}, {tokens:,} tokens read, "
            f"{tokens_per_second:,.0f} tokens/s."
        )

    def end(self, status: Ending, step: int, seconds: float, reason: str | None = None) -> None:
        """The session's last words, if the disk takes them."""
        why = f" ({_line(reason)})" if reason else ""
        with contextlib.suppress(OSError):
            self._append(f"{_time()}: {status} at step {step:,}, after {duration(seconds)}{why}.")

    def _documents(self, parts: Sequence[Part], step: int, most: int) -> list[str]:
        """The documents in the order of reading, each once."""
        tokens: Counter[tuple[str, int, str, int, str]] = Counter()
        for part in parts:
            found = part.document
            tokens[part.source, part.epoch, found.file, found.place, found.id] += part.tokens
        sequences = [part.sequence for part in parts]
        documents = "document" if len(tokens) == 1 else "documents"
        lines = [
            f"It had read {len(tokens):,} {documents} in sequences {min(sequences):,} to {max(sequences):,}:"
        ]
        for (source, epoch, file, place, name), count in list(tokens.items())[:most]:
            known = "" if name in ("", f"{file}:{place}") else f", id {_code(name)}"
            lines.append(
                f"- {_line(source)}: {_code(file)}, place {place:,}{known}, epoch {epoch}: {_tokens(count)}"
            )
        if len(tokens) > most:
            left = Counter(source for source, *_ in list(tokens)[most:])
            counted = ", ".join(f"{count:,} of {_line(source)}" for source, count in left.items())
            lines.append(f"- and {counted}: `daybreak data replay {self.file.parent} --step {step}`")
        return lines

    def _append(self, *lines: str) -> None:
        if not self._active:
            return
        entry = "\n".join(lines)
        assert "\n\n" not in entry, f"an entry has an empty line: {entry}"
        with self._lock:
            _write(self.file, f"{entry}\n\n".encode("utf-8", errors="replace"))


def fenced(text: str, language: str) -> str:
    """A text as a quoted block of code, whatever is in it; a line of the block is never empty."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    lines = [_printable(line) for line in text.rstrip("\n").splitlines()]
    return "\n".join(f"> {line}" for line in (f"{fence}{language}", *lines, fence))


def duration(seconds: float) -> str:
    """3 h 20 min, 2 min 5 s, 7.1 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _write(file: Path, entry: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(handle).st_size
        try:
            rest = memoryview(entry)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, before)  # a full disk: no half of an entry
            raise
    finally:
        os.close(handle)


def _close_last_entry(file: Path) -> None:
    """An entry whose writing was cut off is closed: half a letter goes, a block is ended, and it is said."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return
    whole = text.decode("utf-8", errors="ignore").encode()
    torn = text[text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0 :]
    if not torn:
        return
    if text.startswith(whole) and len(whole) < len(text):
        os.truncate(file, len(whole))
        torn = torn[: len(torn) - (len(text) - len(whole))]
    end = "" if not torn or torn.endswith(b"\n") else "\n"
    lines = torn.decode("utf-8", errors="replace").splitlines()
    fences = [match[0] for line in lines if (match := re.match("> ```+", line))]
    if fences and not any(line == fences[0] for line in lines[1 + _first(lines, fences[0]) :]):
        end += f"{fences[0]}\n"
    _write(file, f"{end}{CUT_OFF}\n\n".encode())


def _first(lines: Sequence[str], start: str) -> int:
    return next(place for place, line in enumerate(lines) if line.startswith(start))


def _time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text.replace("\t", "    "))


def _line(value: Any) -> str:
    return _printable(" ".join(str(value).split())) or "nothing"


def _code(text: str) -> str:
    return f"`{_line(text).replace('`', chr(39))}`"


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
