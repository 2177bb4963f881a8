"""Supervised fine-tuning: learning answers from demonstrations (InstructGPT, arXiv 2203.02155, section 3.5).

The loss is that of the answers' tokens alone, each answer's end among them; all answers of a step weigh by
their tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from daybreak.align.encoding import before, check_known
from daybreak.align.sft_settings import SftData, SftSettings
from daybreak.data.conversations import Demonstration, read_demonstrations
from daybreak.data.order import draw
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.few_bits import numel
from daybreak.objectives.batch import UNSCORED, Batch
from daybreak.objectives.summed import scored_loss_sum
from daybreak.text.answers import Lesson, check_end, continued, keep_template, lessons
from daybreak.train.tuning import Job, Scored


@dataclass(frozen=True)
class Taught:
    """All demonstrations of a file, in token ids."""

    lessons: list[Lesson]
    rows: int
    cut: int = 0
    """Lessons that lack their end."""
    left_out: int = 0
    """Lessons that are too long."""

    def told(self, limit: int) -> str:
        """In words."""
        words = f"{self.rows:,} rows, {len(self.lessons):,} texts of at most {limit:,} tokens"
        words += f", of which {sum(one.predicted for one in self.lessons):,} are learned"
        words += f"; {self.cut:,} cut at their end" if self.cut else ""
        return words + (f"; {self.left_out:,} too long and left out" if self.left_out else "")


def taught(model: LanguageModel, rows: Sequence[Demonstration], data: SftData) -> Taught:
    """The demonstrations in token ids, none longer than the settings and the model allow. Raises
    `DaybreakError`, which names the row, for one that cannot be read or is longer and may not be."""
    limit = limit_of(model, data)
    found: list[Lesson] = []
    cut = left_out = 0
    for row in rows:
        for lesson in _lessons(model, row):
            _check(model, lesson)
            if len(lesson.tokens) <= limit:
                found.append(lesson)
                continue
            if data.longer == "refuse":
                raise DaybreakError(
                    f"{lesson.where} has {len(lesson.tokens)} tokens, more than {limit}; shorten it, or say "
                    "--data.longer cut or leave_out"
                )
            shorter = lesson.cut(limit) if data.longer == "cut" else None
            if shorter is None:
                left_out += 1
            else:
                cut += 1
                found.append(shorter)
    return Taught(found, len(rows), cut, left_out)


def limit_of(model: LanguageModel, data: SftData) -> int:
    """Tokens of an example at most."""
    return min(data.context or model.architecture.context, model.architecture.context)


def _check(model: LanguageModel, lesson: Lesson) -> None:
    try:
        check_known(model, lesson.tokens)
    except DaybreakError as error:
        raise DaybreakError(f"{lesson.where}: {error}") from None


def _lessons(model: LanguageModel, row: Demonstration) -> list[Lesson]:
    tokenizer = model.tokenizer
    assert tokenizer is not None
    try:
        if row.text is None:
            return lessons(tokenizer, row.messages, row.where)
        read = before(model, row.text[0])
    except DaybreakError as error:
        raise DaybreakError(f"{row.where}: {error}") from None
    after = [*continued(tokenizer, row.text[1]), check_end(tokenizer)]
    span = (len(read), len(read) + len(after))
    return [Lesson(array("i", read + after), (span,), row.where)]


def apart(rows: Sequence[Demonstration], share: float) -> tuple[list[Demonstration], list[Demonstration]]:
    """The rows in two: those to learn from, and about this share of them kept apart. What is asked decides,
    so that no question stands on both sides, and the same ones are apart in every run."""
    sides: tuple[list[Demonstration], list[Demonstration]] = ([], [])
    for row in rows:
        asked = row.text[0] if row.text else next(m["content"] for m in row.messages if m["role"] != "system")
        sides[draw("held out", asked) < share * 2**64].append(row)
    return sides if sides[0] else (list(rows), [])


class Sft(Job[Lesson]):
    """The job of `daybreak.train.tuning`."""

    def __init__(
        self,
        model: LanguageModel,
        examples: Sequence[Lesson],
        held_out: Sequence[Lesson] = (),
        packing: bool = True,
        told: str = "",
    ) -> None:
        super().__init__(model.decoder, examples, held_out)
        self.model, self._packing, self._told = model, packing, told

    def parts(self, examples: Sequence[Lesson], micro: int) -> Iterator[list[list[Lesson]]]:
        """At most `micro` rows of lessons; lessons of similar lengths stand together."""
        rows = packed(examples) if self._packing else [[one] for one in _longest_first(examples)]
        for first in range(0, len(rows), micro):
            yield rows[first : first + micro]

    def loss(self, part: Sequence[Sequence[Lesson]]) -> Scored:
        """Of rows of lessons."""
        every = [lesson for row in part for lesson in row]
        total = scored_loss_sum(self.model.decoder, batch_of(self.model, part))
        return Scored(total, sum(one.predicted for one in every), sum(len(one.tokens) for one in every))

    def save(self, folder: Path) -> None:
        assert self.model.tokenizer is not None
        self.model.save(folder)

    def about(self) -> dict[str, str]:
        shape, family = self.model.architecture, self.model.family
        return {
            "model": f"{family.title}, {shape.layers} layers of width {shape.width}",
            "data": self._told,
        }

    def facts(self) -> dict[str, Any]:
        count = numel(self.model.decoder)
        return {"family": self.model.family.name, "size": None, "parameters": count}

    def fingerprint(self) -> str:
        digest = blake2b(digest_size=16)
        for one in self.examples:
            digest.update(one.tokens.tobytes() + repr(one.answers).encode())
        return digest.hexdigest()


def _longest_first(examples: Sequence[Lesson]) -> list[Lesson]:
    return sorted(examples, key=lambda one: len(one.tokens), reverse=True)


def packed(examples: Sequence[Lesson]) -> list[list[Lesson]]:
    """Rows no longer than the longest lesson: each lesson goes into the first row that has room for it, the
    longest first (first fit decreasing, which needs at most 11/9 of the fewest rows possible)."""
    ordered = _longest_first(examples)
    rows: list[list[Lesson]] = []
    room = _Room(len(ordered), max((len(one.tokens) for one in ordered), default=0))
    for one in ordered:
        place = room.take(len(one.tokens))
        if place == len(rows):
            rows.append([])
        rows[place].append(one)
    return rows


class _Room:
    """What is left of each row, as a tree of maxima: held-out lessons by the ten thousand are packed at once,
    and asking row after row would take minutes."""

    def __init__(self, rows: int, length: int) -> None:
        self._leaves = 1 << max(0, rows - 1).bit_length()
        self._most = [length] * (2 * self._leaves)  # the children of node n are 2 n and 2 n + 1

    def take(self, length: int) -> int:
        """Take so much of the first row that has it; which one that is."""
        node = 1
        while node < self._leaves:
            node = 2 * node + (self._most[2 * node] < length)
        found = node - self._leaves
        self._most[node] -= length
        while node > 1:
            node //= 2
            self._most[node] = max(self._most[2 * node], self._most[2 * node + 1])
        return found


def batch_of(model: LanguageModel, rows: Sequence[Sequence[Lesson]]) -> Batch:
    """Rows of lessons, one behind another and each by itself, with the answers' tokens for targets."""
    longest = max(sum(len(one.tokens) for one in row) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    targets = torch.full((len(rows), longest), UNSCORED)
    for place, row in enumerate(rows):
        begin = 0
        for lesson in row:
            ids = torch.tensor(lesson.tokens, dtype=torch.int64)
            tokens[place, begin : begin + len(ids)] = ids
            for first, end in lesson.answers:
                targets[place, begin + first - 1 : begin + end - 1] = ids[first:end]
            begin += len(ids)
    device = model.decoder.tokens.weight.device
    lengths = None
    if any(len(row) > 1 for row in rows):
        lengths = [[len(one.tokens) for one in row] for row in rows]
    # One lesson in each row: padding on the right is seen by nobody before it, and needs no mask.
    return Batch(model.decoder.reading(tokens.to(device), lengths=lengths), targets.to(device))


def pieces(model: LanguageModel, lesson: Lesson) -> list[tuple[bool, str, int]]:
    """A lesson as (is it learned?, its text, how many tokens), for people to look at."""
    assert model.tokenizer is not None
    found, place = [], 0
    for first, end in (*lesson.answers, (len(lesson.tokens), len(lesson.tokens))):
        for learned, begin, after in ((False, place, first), (True, first, end)):
            if after > begin:
                text = model.tokenizer.decode(lesson.tokens[begin:after], skip_special=False)
                found.append((learned, text, after - begin))
        place = end
    return found


def job_of(model: LanguageModel, settings: SftSettings) -> Sft:
    """The job that the settings describe, with their data read. Raises `DaybreakError` for a model that
    cannot be taught so, and for data that does not fit."""
    data = settings.data
    check(model)
    assert model.tokenizer is not None
    if data.file is None:
        raise DaybreakError("no data is named; give a file of conversations or of prompts and completions")
    rows = read_demonstrations(data.file, data.form, data.columns)
    if any(row.text is None for row in rows):
        keep_template(model.tokenizer)
    if data.validation is not None:
        others = read_demonstrations(data.validation, data.form, data.columns)
    else:
        rows, others = apart(rows, data.held_out)
    training, held_out = taught(model, rows, data), taught(model, others, data)
    if not training.lessons:
        limit = limit_of(model, data)
        raise DaybreakError(
            f"{data.file}: no answer begins within {limit} tokens, so none is left; shorten the prompts, or "
            "take a longer context"
            if data.longer == "cut"
            else f"{data.file}: all examples are longer than {limit} tokens, so none is left; set "
            "--data.longer cut, or take a longer context"
        )
    told = f"{data.file}: {training.told(limit_of(model, data))}; {len(held_out.lessons):,} held out"
    return Sft(model, training.lessons, held_out.lessons, data.packing, told)


def check(model: LanguageModel) -> None:
    """Raises `DaybreakError` for a model that conversations cannot be read by from left to right."""
    if model.tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read text; take one that has")
    if model.architecture.blanks is not None:
        raise DaybreakError(
            f"{model.family.title} fills blanks, and its answers are pieces of a text that it reads in both "
            "directions; fine-tuning on demonstrations is for models that read from left to right"
        )
