"""Answers that people liked or not, each for itself.

    {"prompt": ..., "completion": ..., "label": true}             liked; false: not
    {"messages": [...], "answers": [...], "ratings": [1, null]}   above 0: liked, below: not; null: not rated

Rankings and pairs, and ratings of several answers of which none is below 0, are taken apart: what is nearer
to the best of its prompt is liked, what is nearer to the worst is not, and the middle says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak.data.rankings import Prompt, answer_of, prompt_in, ranking_of, rated
from daybreak.data.rows import rows
from daybreak.errors import DaybreakError

FORMS = "prompt with completion and label, messages with answers and ratings, or rankings"


@dataclass(frozen=True)
class Judged:
    """An answer, and whether it was liked."""

    prompt: Prompt
    answer: str
    liked: bool
    where: str = ""
    """File and row, for errors."""


def read_judged(file: Path) -> list[Judged]:
    """The judged answers in a file of JSON lines, CSV or parquet, in order. Raises `DaybreakError`, which
    names file and row, for what is none."""
    found = [one for where, row in rows(file) for one in judged_of(row, where)]
    if not found:
        raise DaybreakError(f"{file} holds no answer that was liked or not; give a file with rows of {FORMS}")
    return found


def judged_of(row: Mapping[str, Any], where: str) -> Iterator[Judged]:
    """The judged answers in a row; `where` names it in errors. Raises `DaybreakError` for what is none."""
    if row.get("label") is not None or row.get("completion") is not None:
        yield _labelled(row, where)
        return
    if row.get("ratings") is not None:
        prompt, answers, ratings = rated(row, where)
        if len(ratings) == 1 or min(ratings, default=0.0) < 0:
            for answer, rating in zip(answers, ratings, strict=True):
                if rating:
                    yield Judged(prompt, answer, rating > 0, where)
            return
        if len(set(ratings)) < 2:
            return
    ranking = ranking_of(row, where)
    middle = (max(ranking.values) + min(ranking.values)) / 2
    for answer, value in zip(ranking.answers, ranking.values, strict=True):
        if value != middle:
            yield Judged(ranking.prompt, answer, value > middle, where)


def _labelled(row: Mapping[str, Any], where: str) -> Judged:
    label = {"true": True, "false": False}.get(str(row.get("label")).lower())
    if label is None or row.get("completion") is None:
        raise DaybreakError(
            f"{where} has the columns {', '.join(map(str, row))} and the label {row.get('label')!r}; it "
            "needs a completion, and true or false for a label"
        )
    return Judged(prompt_in(row, where), answer_of(row["completion"], where), label, where)
