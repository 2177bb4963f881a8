"""An engine's process, seen from outside: start it, ask it, and say why where it does not answer."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from benchmarks.inference.configurations import Configuration

PATIENCE = 600.0
"""Seconds for an answer."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CT2_VERBOSE": "-3"}


class Failed(Exception):
    """The engine cannot do it; the text is for the table."""


class Process:
    """One engine with its weights loaded and the first token written."""

    def __init__(self, one: Configuration, path: str, prompt: Sequence[int], threads: int) -> None:
        began = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            self.command(one, threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(threads)},
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.memory = 0
        try:
            self.load = self.ask(load=path)["seconds"]
            self.ask(prompts=[list(prompt)], new=1)
        except BaseException:
            self.close()
            raise
        self.cold = time.perf_counter() - began
        """Seconds from nothing to the first token: the interpreter, the imports, the weights, the prompt."""

    @staticmethod
    def command(one: Configuration, threads: int) -> list[str]:
        return [sys.executable, "-m", "benchmarks.inference.worker", one.engine, one.format, str(threads)]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request. Raises `Failed` with the engine's reason, or that it died or took too long."""
        assert self._process.stdin is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._answers.get(timeout=PATIENCE)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            raise Failed(f"no answer in {PATIENCE:.0f} s") from None
        if not line:
            self._answers.put("")  # whoever asks again hears the same
            raise Failed(f"the process ended with {self._process.wait()}: {self._last_line()}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise Failed(_short(answer["problem"]))
        self.memory = answer["memory"]
        return answer

    def _last_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return _short(lines[-1]) if lines else "it said nothing"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(OSError):  # a request that the process did not live to read
                    stream.close()


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
