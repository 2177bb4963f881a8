"""Chat templates run in a process of their own, which ends with whatever time and memory they take.

Jinja's sandbox bounds neither: a text doubled forty times fills any memory. One process serves all
renderings of this one, a line of JSON each way, and is started anew after it had to be ended.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from daybreak.errors import DaybreakError

SECONDS = 10.0
"""Of one rendering at most."""
MEMORY = 1 << 30
"""Bytes of the process's address space at most, where the system keeps such a bound (Linux does)."""
_START = "import sys; sys.path[:] = {path!r}; from daybreak.text.template_process import serve; serve()"
_REMEDY = "give shorter messages, or a template of your own"


def ask(source: str, variables: Mapping[str, Any]) -> str:
    """The text that a template writes. Raises `DaybreakError` where it fails or goes beyond the bounds."""
    return _of(os.getpid()).ask(source, variables)


@functools.cache
def _of(process: int) -> _Child:
    """A process that was forked off cannot share its parent's."""
    return _Child()


class _Child:
    """The other end: started with the first template, ended with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self._end)

    def ask(self, source: str, variables: Mapping[str, Any]) -> str:
        request = json.dumps([source, variables]).encode() + b"\n"
        with self._lock:
            answer = self._exchange(request)
        kind, text = json.loads(answer)
        if kind == "error":
            raise DaybreakError(text)
        return str(text)

    def _exchange(self, request: bytes) -> bytes:
        answer, late = b"", threading.Event()
        try:
            process = self._started()
            timer = threading.Timer(SECONDS, _stop, (process, late))
            timer.start()
            try:
                answer = _asked(process, request)
            finally:
                timer.cancel()
                timer.join()
        finally:
            if not answer.endswith(b"\n") or late.is_set():  # also where somebody pressed Ctrl-C
                self._end()
        if late.is_set():
            raise DaybreakError(f"the chat template takes more than {SECONDS:g} seconds; {_REMEDY}")
        if not answer.endswith(b"\n"):
            raise DaybreakError(
                f"the chat template needs more than {MEMORY >> 20:,} MiB of memory; {_REMEDY}"
            )
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            command = [sys.executable, "-I", "-c", _START.format(path=[str(entry) for entry in sys.path])]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            if not _asked(self._process, b""):
                raise DaybreakError(
                    f"chat templates run in a process of their own, and {sys.executable} does not start one; "
                    "install daybreak and Jinja2 for it"
                )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.stdout.close()  # type: ignore[union-attr]
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            process.wait()


def _asked(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that comes back; without a line break where the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError:
        return b""
    if os.name == "posix":
        # In turns: a Ctrl-C that comes just before a long wait begins would be heard only at its end.
        while not select.select([process.stdout], [], [], 0.2)[0]:
            pass
    return process.stdout.readline()


def _stop(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


# In the process itself -----------------------------------------


def serve() -> None:
    """Answer requests until there are no more, or one runs out of memory; then another process follows."""
    from daybreak.text import template_program

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for those who asked
    template_program.prepare()
    _bound()
    _reply("ready", "")
    for line in sys.stdin.buffer:
        _alarm(int(SECONDS) + 1)
        try:
            _reply("text", template_program.run(*json.loads(line)))
        except DaybreakError as error:
            _reply("error", str(error))
        except MemoryError:
            break
        _alarm(0)


def _alarm(seconds: int) -> None:
    """The end of this process, should those who asked be gone by then; 0: none."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _reply(kind: str, text: str) -> None:
    line = json.dumps([kind, text])
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _bound() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
