"""What a fine-tuned model says of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daybreak.data.labelled import TEXTS, Columns, Item, read_items
from daybreak.errors import DaybreakError
from daybreak.train.task_model import TaskModel


@dataclass(frozen=True)
class Answer:
    """Of one item."""

    label: str
    """The class, the option's text, or the number."""
    probability: float | None
    """Of the label; None where it is a number."""
    scores: dict[str, float]
    """By class, or by option, counted from 0: their probabilities; of a number, the number itself."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"label": self.label, "probability": self.probability, "scores": self.scores}


def answers(model: TaskModel, items: Sequence[Item]) -> Iterator[Answer]:
    """In the order of the items."""
    for item, scores in zip(items, model.score(items), strict=True):
        if model.numbers:
            value = scores[0].item()
            yield Answer(f"{value:.4f}", None, {model.labels[0]: value})
            continue
        shares = scores.softmax(0).tolist()
        best = max(range(len(shares)), key=shares.__getitem__)
        choice = model.layout.task == "choice"
        names = list(map(str, range(len(shares)))) if choice else model.labels
        label = item.options[best] if choice else model.labels[best]
        yield Answer(label, shares[best], dict(zip(names, shares, strict=True)))


def items_of(model: TaskModel, texts: Sequence[str]) -> list[Item]:
    """One item of texts from the command line. Raises `DaybreakError` for another number of them."""
    task = model.layout.task
    if task == "choice":
        before = len(model.columns.get("texts", [""]))
        if len(texts) < before + 2:
            raise DaybreakError(
                f"give what stands before ({before} texts) and at least two options to choose from"
            )
        return [Item(tuple(texts[:before]), tuple(texts[before:]))]
    if len(texts) != TEXTS[task]:
        raise DaybreakError(f"{task} reads {TEXTS[task]} texts, and {len(texts)} are given")
    return [Item(tuple(texts))]


def rows_of(
    model: TaskModel, file: Path, texts: Sequence[str] | None, options: Sequence[str] | None
) -> list[Item]:
    """The items in a file, whose columns are called as in the file that the model learned from unless others
    are named. Raises `DaybreakError` for a row that lacks one."""
    names = tuple(texts or model.columns.get("texts", ()))
    columns = Columns(model.layout.task, names, None, tuple(options or model.columns.get("options", ())))
    return read_items(file, columns)
