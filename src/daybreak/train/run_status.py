"""run.json: what a run is, who trains it, and how far it is; so that the next start, and `daybreak runs`, can
tell how the last one ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from daybreak.errors import DaybreakError

FILE = "run.json"
TIME = "%Y-%m-%d %H:%M:%S"
SECONDS = 5.0
"""Between two notes of the step."""

Ending = Literal["finished", "stopped", "failed"]
State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class RunStatus:
    """A run's last session, as the file tells it. Times are UTC, to the second."""

    id: str
    """Of the run, the same in all sessions."""
    session: int
    """Starts of the run so far."""
    status: State
    reason: str | None
    """Why it is no longer running."""
    pid: int
    process: str
    """When the process began, and under which start of the machine: process numbers come again."""
    host: str
    started: str
    updated: str
    step: int
    steps: int | None
    """Planned."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a list of runs shows beside: family, size, parameters."""

    @classmethod
    def read(cls, folder: Path) -> RunStatus | None:
        """None: there is no file, or it is no longer one."""
        try:
            found = json.loads((folder / FILE).read_bytes())
            known = {one.name for one in dataclasses.fields(cls)}
            return cls(**{name: value for name, value in found.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        partial = folder / f"{FILE}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(self), file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / FILE)

    @property
    def alive(self) -> bool | None:
        """Does its process run? None: it is on another machine, where this one cannot look."""
        if self.status != "running":
            return False
        if self.host != socket.gethostname():
            return None
        return _process(self.pid) == self.process

    @property
    def now(self) -> str:
        """The status in a word, with `killed` for a run whose process is gone."""
        return "killed" if self.status == "running" and self.alive is False else self.status

    def ended(self) -> str:
        """How the session ended, in words."""
        where = f"at step {self.step:,}"
        if self.status == "finished":
            return f"session {self.session} finished {where}"
        if self.status == "stopped":
            return f"session {self.session} was stopped {where} ({self.reason})"
        if self.status == "failed":
            return f"session {self.session} failed {where}: {self.reason}"
        if self.host != socket.gethostname():
            return f"session {self.session} has told no end; it ran on {self.host}, last heard of {where}"
        restarted = self.process.partition("/")[0] != _boot()
        why = "the machine was restarted" if restarted else "by SIGKILL, for want of memory, or a crash"
        return f"session {self.session} was killed without a word ({why}), last heard of {where}"


class RunFile:
    """run.json of the run that this process trains."""

    def __init__(
        self, folder: Path, about: Mapping[str, Any], steps: int | None, step: int = 0, active: bool = True
    ) -> None:
        """Takes the run over at `step`; `before` is how the last session left it. Only rank 0 is `active`.

        Raises `DaybreakError` if another process of this machine trains it.
        """
        self.folder = folder
        self.before = RunStatus.read(folder)
        self._active = active
        if active and self.before is not None and self.before.alive:
            raise DaybreakError(
                f"{folder} is being trained by process {self.before.pid} since {self.before.started}; "
                "end that one first, or name another folder"
            )
        now = _now()
        self.status = RunStatus(
            id=self.before.id if self.before else secrets.token_hex(4),
            session=self.before.session + 1 if self.before else 1,
            status="running",
            reason=None,
            pid=os.getpid(),
            process=_process(os.getpid()) or "",
            host=socket.gethostname(),
            started=now,
            updated=now,
            step=step,
            steps=steps,
            about=dict(about),
        )
        self._began = self._noted = time.monotonic()
        self._write()

    @property
    def seconds(self) -> float:
        """Since this session began."""
        return time.monotonic() - self._began

    def at(self, step: int) -> None:
        """The run has done `step` steps; noted every few seconds."""
        self.status = dataclasses.replace(self.status, step=step)
        if time.monotonic() - self._noted >= SECONDS:
            self._noted = time.monotonic()
            self._write()

    def end(self, status: Ending, reason: str | None = None) -> None:
        """The last word. A disk that does not take it is not worth another error: the next start sees that
        the process is gone."""
        self.status = dataclasses.replace(self.status, status=status, reason=reason)
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        self.status = dataclasses.replace(self.status, updated=_now())
        if self._active:
            self.status.write(self.folder)


def _now() -> str:
    return datetime.now(UTC).strftime(TIME)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _process(pid: int) -> str | None:
    """What tells a living process from others that have or had its number; None: there is none."""
    try:
        # The command's name stands in parentheses, and may hold any letters; state and start come after it.
        after = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        state, start = after.split()[0], after.split()[19]
        return None if state in "ZX" else f"{_boot()}/{start}"
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
