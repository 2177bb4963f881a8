"""A shape from its weights to its figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.inference.configurations import Configuration
from benchmarks.inference.figures import COLD, LOAD, MEMORY, Measured, Record
from benchmarks.inference.process import Failed, Process
from benchmarks.inference.roof import Roof
from benchmarks.inference.rounds import Drawn, Plan, Rounds, Side, noted
from benchmarks.inference.shapes import Shape

LARGE = 2
"""Shapes that cost this much more than GPT-2 small write fewer tokens."""
STARTS = 0.2
"""Of the time, for starts from nothing when the rounds are over."""
READ = 1 << 24
"""Bytes at a time."""
SPARE = 1 << 30
"""Bytes of memory that stay free whatever is started."""


@dataclass
class Bench:
    """What all shapes have in common."""

    plan: Plan
    roof: Roof
    folder: Path | None
    """Where the weights are written; None: where the system puts such files."""
    say: Callable[[str], None]

    def measure(self, shape: Shape, chosen: list[Configuration], until: float) -> Measured:
        """Until about `until` of time.monotonic. What fails stands in what is returned, with its reason."""
        plan = self.plan if shape.cost < LARGE else self.plan.slower()
        records = [Record(one.key, one.title, one.exact, one.timed) for one in chosen]
        found = Measured(shape.name, shape.title, records, list(plan.new))
        try:
            self._fill(found, shape, chosen, plan, until)
        except Exception as problem:  # the other shapes are worth more than a clean end
            found.problem = f"{type(problem).__name__}: {problem}"
        return found

    def _fill(
        self, found: Measured, shape: Shape, chosen: list[Configuration], plan: Plan, until: float
    ) -> None:
        records = found.records
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.folder) as name:
            self.say("writing the weights in every format")
            told = prepared(shape, Path(name), chosen)
            starts = Starts(plan, told, dict(zip(found.keys, chosen, strict=True)))
            for record in records:
                record.problem, record.read = told[record.key].get("problem"), told[record.key].get("read", 0)
            self.say("starting")
            with starts.all(records) as sides:
                rounds = Rounds(sides, plan, starts.drawn)
                now = time.monotonic()
                self._rounds(rounds, plan, found, Path(name), until - STARTS * max(0.0, until - now))
            for number in range(plan.cold):
                began = time.monotonic()
                if began < until:
                    self.say(f"cold starts, {number + 2} of {plan.cold + 1}")
                    starts.and_end(records)
                until -= time.monotonic() - began  # the next ones have to fit, too

    def _rounds(self, rounds: Rounds, plan: Plan, found: Measured, folder: Path, until: float) -> None:
        self.say("comparing")
        rounds.compare()
        if plan.warm:
            self.say("warming up")
            rounds.warm_up()
        fewest, most = plan.rounds
        while found.rounds < most:
            began = time.monotonic()
            self.say(f"round {found.rounds + 1}")
            read_all(folder)
            found.roofs.append(self.roof.bytes_per_second())
            rounds.one()
            found.rounds += 1
            now = time.monotonic()
            if found.rounds >= fewest and now + (now - began) > until:
                break


def prepared(shape: Shape, folder: Path, chosen: list[Configuration]) -> dict[str, dict[str, Any]]:
    """What `prepare` writes and says, in a process of its own. Raises `Failed` where nothing was written."""
    command = [sys.executable, "-m", "benchmarks.inference.prepare", shape.name, str(folder)]
    done = subprocess.run([*command, *(one.key for one in chosen)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Failed(f"the weights were not written: {lines[-1]}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def read_all(folder: Path) -> None:
    """So that the files are in the page cache: there are machines that push out what lay idle for a minute,
    and an engine that maps its weights would wait for the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while stream.read(READ):
                    pass


class Starts:
    """Starts processes, each of which is one sample of what a start costs."""

    def __init__(
        self, plan: Plan, told: dict[str, dict[str, Any]], configurations: dict[str, Configuration]
    ) -> None:
        self._plan, self._told, self._configurations = plan, told, configurations
        self.drawn = Drawn(told["model"]["vocabulary"])

    def one(self, record: Record) -> Side:
        needed = self._told["model"]["bytes"] + SPARE
        if (left := available_memory()) is not None and left < needed:
            raise Failed(f"only {left / 2**30:.1f} GiB of memory were left beside the others")
        prompt = self.drawn.prompts(1, self._plan.prompt)[0]
        path, one = self._told[record.key]["path"], self._configurations[record.key]
        process = Process(one, path, prompt, self._plan.threads)
        if record.timed:
            record.add(LOAD, process.load)
            record.add(COLD, process.cold)
        return Side(record, process)

    def and_end(self, records: list[Record]) -> None:
        for record in records:
            if record.problem is None and record.timed:
                with noted(record):
                    self.one(record).process.close()

    @contextmanager
    def all(self, records: list[Record]) -> Iterator[list[Side]]:
        """At once; ended at the end, when it is known what they took of memory."""
        sides: list[Side] = []
        try:
            for record in records:
                if record.problem is None:
                    with noted(record):
                        sides.append(self.one(record))
            yield sides
        finally:
            for side in sides:
                side.process.close()
                if side.record.timed:
                    side.record.add(MEMORY, side.process.memory)


def available_memory() -> int | None:
    """Bytes that can be had without pushing out what others use; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
