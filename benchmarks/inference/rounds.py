"""The turns: every figure of every round is taken of one engine after another, with the same prompts."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from benchmarks.inference.figures import BATCHES, FIRST, PREFILL, Record, decode, leading
from benchmarks.inference.process import Failed, Process

PAUSE = 0.05
"""Seconds between turns, in which the threads of the last engine go to sleep."""
LEAST = 0.1
"""Of the time of a call that writes several tokens, what writing them takes at least."""
WARM = 4
"""Tokens that are written where nothing is measured yet."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    threads: int
    prompt: int = 128
    """Tokens of a prompt."""
    together: int = 32
    """Tokens of each prompt of a batch: reading 16 long ones would take most of the time, and the noise of
    that time would be the noise of what is left when it is taken off."""
    prefill: int = 512
    """Tokens of the long prompt."""
    new: tuple[int, ...] = (64, 24, 16)
    """Tokens that are written after each prompt, for each of BATCHES."""
    warm: bool = True
    """Whether there is a round before the first that counts."""
    rounds: tuple[int, int] = (2, 7)
    """At least and at most; in between the time decides."""
    cold: int = 2
    """Starts from nothing, beside the one whose process stays, if there is time."""

    def slower(self) -> Plan:
        """For a large shape: fewer tokens, and shorter prompts in front of them."""
        return replace(self, new=tuple(max(3, new // 3) for new in self.new), together=self.together // 4)

    def length(self, batch: int) -> int:
        return self.prompt if batch == 1 else self.together


@dataclass
class Side:
    """A configuration that takes part: its process, and what was measured of it."""

    record: Record
    process: Process


class Answer(NamedTuple):
    """Of a side, to one call."""

    seconds: float
    tokens: list[list[int]]


Answers = dict[str, Answer]
"""By the keys of the sides."""


class Drawn:
    """Random prompts, new ones for every call, so that no engine finds one in a cache."""

    def __init__(self, vocabulary: int) -> None:
        self._draw, self._vocabulary = random.Random(0), vocabulary

    def prompts(self, batch: int, length: int) -> list[list[int]]:
        return [[self._draw.randrange(10, self._vocabulary) for _ in range(length)] for _ in range(batch)]


@contextmanager
def noted(record: Record) -> Iterator[None]:
    """What fails inside is written into the record, and everything else goes on."""
    try:
        yield
    except Failed as problem:
        record.problem = str(problem)


class Rounds:
    """The sides of one shape, taking turns."""

    def __init__(self, sides: list[Side], plan: Plan, drawn: Drawn) -> None:
        self._sides, self._plan, self._drawn = sides, plan, drawn

    def compare(self) -> None:
        """Greedy tokens with those of daybreak in float32, or of whoever is exact without it. Who only takes
        part in that is sent home."""
        batch = BATCHES[-1]
        found = self._answered(self._turn(batch, self._plan.length(batch), self._plan.new[-1]))
        reference = min((record.place, answer.tokens) for record, answer in found)[1] if found else []
        for record, answer in found:
            record.same = leading(answer.tokens, reference)
        for side in self._sides:
            if not side.record.timed:
                side.process.close()
        self._sides = [side for side in self._sides if side.record.timed]

    def warm_up(self) -> None:
        """The other calls that will be measured, with fewer tokens: memory is taken, code compiled."""
        self._turn(1, self._plan.prefill, 1)
        for batch in BATCHES[:-1]:
            self._turn(batch, self._plan.length(batch), WARM)

    def one(self) -> None:
        """A round. The next one has the opposite order, for a machine that slows down or speeds up."""
        firsts = self._turn(1, self._plan.prompt, 1)
        for record, answer in self._answered(firsts):
            record.add(FIRST, answer.seconds)
        for record, answer in self._answered(self._turn(1, self._plan.prefill, 1)):
            record.add(PREFILL, self._plan.prefill / answer.seconds)
        for batch, new in zip(BATCHES, self._plan.new, strict=True):
            length = self._plan.length(batch)
            before = firsts if batch == 1 else self._turn(batch, length, 1)
            after = self._turn(batch, length, new)
            self._decoded(batch, new, before, after)
        self._sides.reverse()

    def _turn(self, batch: int, length: int, new: int) -> Answers:
        """The same call of every side that still runs, one after another."""
        prompts, answers = self._drawn.prompts(batch, length), {}
        for side in self._sides:
            if side.record.problem is not None:
                continue
            time.sleep(PAUSE)
            with noted(side.record):
                told = side.process.ask(prompts=prompts, new=new)
                answers[side.record.key] = Answer(told["seconds"], told["tokens"])
            if side.record.problem is not None:
                side.process.close()  # its memory is for the others
        return answers

    def _answered(self, answers: Answers) -> list[tuple[Record, Answer]]:
        return [(side.record, answers[side.record.key]) for side in self._sides if side.record.key in answers]

    def _decoded(self, batch: int, new: int, before: Answers, after: Answers) -> None:
        """Tokens a second of decoding alone: the time of the prompt, with its first token, is taken off."""
        tokens = batch * (new - 1)
        for record, answer in self._answered(after):
            seconds = answer.seconds - before[record.key].seconds
            if seconds > LEAST * answer.seconds:  # else the machine was busy while the prompt was read
                record.add(decode(batch), tokens / seconds)
