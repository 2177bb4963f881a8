"""Fine-tuning for a task: a classifier on a language model (Radford et al. 2018, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from daybreak.data.labelled import (
    Columns,
    Item,
    apart,
    are_counted,
    classes_of,
    kind_of,
    name_of,
    number_of,
    read_items,
    right_option,
    with_all_classes,
)
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import FewBits, numel
from daybreak.model.heads import scorer_of
from daybreak.model.vocabulary import add_tokens
from daybreak.objectives import agreement
from daybreak.objectives.batch import UNSCORED
from daybreak.objectives.classification import LanguageHead, class_losses, language_losses, number_losses
from daybreak.train.task_model import Layout, TaskModel, plain_layout
from daybreak.train.task_settings import TaskData, TaskSettings
from daybreak.train.tuning import Job, Scored, means

STD = 0.02
"""Of the classifier's weights and of the new tokens' embeddings, as published."""


@dataclass(frozen=True)
class Labelled:
    """A row in token ids."""

    sequences: tuple[tuple[int, ...], ...]
    label: float
    """A number, or that of a class or an option."""
    where: str = ""


class TaskJob(Job[Labelled]):
    """The job of `daybreak.train.tuning`."""

    higher = True

    def __init__(
        self,
        model: TaskModel,
        language: LanguageHead,
        settings: TaskSettings,
        examples: Sequence[Labelled],
        held_out: Sequence[Labelled],
        told: str = "",
    ) -> None:
        modules = nn.ModuleDict({"scorer": model.decoder, "language": language})
        super().__init__(modules, examples, held_out)
        self.model, self._language, self._told = model, language, told
        self._weight, self._dropout = settings.language_weight, settings.head_dropout
        self.figure = "pearson" if model.numbers else "accuracy"

    def loss(self, part: Sequence[Labelled]) -> Scored:
        """Of rows, each of whose sequences is predicted as well where the auxiliary loss has a weight."""
        losses, figures, _ = self._losses(part)
        tokens = sum(len(one) for row in part for one in row.sequences)
        return Scored(losses.sum(), len(part), tokens, figures)

    def score(self, micro: int) -> dict[str, float]:
        """The loss, and what tables of results print of such a task."""
        parts, scores = [], []
        for part in self.parts(self.held_out, micro):
            losses, figures, found = self._losses(part)
            parts.append(Scored(losses.sum(), len(part), 0, figures))
            scores.append(found[:, 0] if self.model.numbers else found.argmax(1))
        labels = torch.tensor([one.label for one in self.held_out])
        predicted = torch.cat(scores).cpu()
        if self.model.numbers:
            return {**means(parts), **agreement.of_numbers(predicted, labels)}
        if self.model.layout.task == "choice":  # options are no classes: only how many are right is told
            return {**means(parts), "accuracy": float((predicted == labels.long()).float().mean())}
        return {**means(parts), **agreement.of_classes(predicted, labels.long(), len(self.model.labels))}

    def save(self, folder: Path) -> None:
        self.model.save(folder)

    def fresh(self) -> list[Tensor]:
        """The classifier, and the embedding where it has new rows."""
        decoder = self.model.decoder
        return [decoder.head.weight, *([decoder.tokens.weight] if self.model.layout.behind else [])]

    def spelled(self, sequence: Sequence[int]) -> str:
        """A sequence as people can read it, marks in brackets."""
        layout, known = self.model.layout, self.model.tokenizer.vocabulary
        marks = {"start": layout.before, "delimiter": layout.between, "extract": layout.behind}
        names = {ids[0]: f"[{name}]" for name, ids in marks.items() if ids and ids[0] >= known}
        text, run = "", list[int]()
        for token in (*sequence, None):
            if token is not None and token not in names:
                run.append(token)
                continue
            text += self.model.tokenizer.decode(run, skip_special=False) + names.get(token, "")  # type: ignore[arg-type]
            run = []
        return repr(text)

    def name_of(self, label: float) -> str:
        """Of a row's label."""
        plain = self.model.numbers or self.model.layout.task == "choice"
        return f"{label:g}" if plain else self.model.labels[int(label)]

    def about(self) -> dict[str, str]:
        shape, family = self.model.decoder.architecture, self.model.family
        return {
            "model": f"{family.title}, {shape.layers} layers of width {shape.width}",
            "task": f"{self.model.layout.task}, labels {', '.join(self.model.labels[:20])}",
            "data": self._told,
        }

    def facts(self) -> dict[str, Any]:
        count = numel(self.model.decoder)
        return {"family": self.model.family.name, "size": None, "parameters": count}

    def _losses(self, part: Sequence[Labelled]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """[rows] losses, figures to be summed, and the scores [rows, classes or options]."""
        counts = [len(row.sequences) for row in part]
        hidden, tokens, last = self.model.states([one for row in part for one in row.sequences])
        pooled = hidden[torch.arange(len(last), device=last.device), last]  # [sequences, width]
        scores = self.model.scores(self._dropped(pooled, counts), counts)
        labels = torch.tensor([row.label for row in part], device=scores.device)
        losses = number_losses(scores, labels) if self.model.numbers else class_losses(scores, labels.long())
        figures = {"task_loss": losses.detach().sum()}
        if self._weight:
            language = self._spoken(hidden, tokens, last, counts)
            figures["language_loss"] = language.detach().sum()
            losses = losses + self._weight * language
        return losses, figures, scores.detach()

    def _spoken(self, hidden: Tensor, tokens: Tensor, last: Tensor, counts: list[int]) -> Tensor:
        """[rows]: the mean loss per token of each sequence, and of these the mean over a row's sequences."""
        targets = torch.full_like(tokens, UNSCORED)
        targets[:, :-1] = tokens[:, 1:]
        targets[torch.arange(tokens.shape[1], device=tokens.device) >= last[:, None]] = UNSCORED
        own = language_losses(self.model.decoder, hidden, targets, self._language)
        return torch.stack([one.mean() for one in torch.split(own, counts)])

    def _dropped(self, pooled: Tensor, counts: list[int]) -> Tensor:
        """One mask for all sequences of a row, so that its options are compared in the same features."""
        if not self._dropout or not self.modules.training:
            return pooled
        masks = dropout(pooled.new_ones(len(counts), pooled.shape[1]), self._dropout)
        return pooled * masks.repeat_interleave(torch.tensor(counts, device=pooled.device), 0)


def job_of(model: LanguageModel, settings: TaskSettings) -> TaskJob:
    """The job that the settings describe, with their data read; the model's weights become the classifier's.
    Raises `DaybreakError` for data that does not fit the task or the model."""
    data = settings.data
    if model.tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read text; take one that has")
    columns = Columns(settings.task, data.text, data.label, data.choices)
    rows, others = _rows(data, columns)
    choice = settings.task == "choice"
    numbers = not choice and kind_of([*rows, *others], settings.task, data.labels) == "numbers"
    counted = choice and are_counted([*rows, *others], data.first)
    if not (choice or numbers or data.validation):
        rows, others = with_all_classes(rows, others)
    labels = ("score",) if choice or numbers else classes_of(rows)
    layout = _layout(model, settings)
    lm_head = _vocabulary_head(model.decoder)
    scorer = scorer_of(model.decoder, len(labels), settings.seed)
    with torch.no_grad():
        scorer.head.weight.normal_(0.0, STD, generator=torch.Generator().manual_seed(settings.seed))
    language = LanguageHead(lm_head)
    language.requires_grad_(settings.language_weight > 0)
    named = {"texts": list(data.text), "options": list(data.choices)}
    found = TaskModel(
        model.family, scorer, model.tokenizer, layout, labels, numbers, named, model.config, model.generation
    )
    sides, cut = [], 0
    for side in (rows, others):
        encoded = [found.tokens(item) for item in side]
        cut += sum(shorter for _, shorter in encoded)
        truths = [
            right_option(item, columns, data.first, counted) if choice else _label(item, labels, numbers)
            for item in side
        ]
        pairs = zip(encoded, truths, side, strict=True)
        sides.append([Labelled(read, truth, item.where) for (read, _), truth, item in pairs])
    told = f"{data.file}: {len(rows):,} rows to learn from, {len(others):,} held out"
    told += f"; {cut:,} have texts that are cut to {layout.context:,} tokens" if cut else ""
    return TaskJob(found, language, settings, sides[0], sides[1], told)


def _vocabulary_head(decoder: Decoder) -> nn.Module | None:
    """None: it is the token embedding, which has the new tokens, and few bits nowhere."""
    if not decoder.architecture.tied:
        return decoder.head
    return decoder.tied_head if isinstance(decoder.tokens, FewBits) else None


def _rows(data: TaskData, columns: Columns) -> tuple[list[Item], list[Item]]:
    if data.file is None:
        raise DaybreakError("no data is named; give a file of rows with texts and labels")
    rows = read_items(data.file, columns)
    if data.validation is not None:
        return rows, read_items(data.validation, columns)
    return apart(rows, data.held_out)


def _layout(model: LanguageModel, settings: TaskSettings) -> Layout:
    """Start, delimiter and extract tokens of their own, for which the model gets rows; or the plain text."""
    tokenizer, task = model.tokenizer, settings.task
    assert tokenizer is not None
    context = min(settings.data.context or model.architecture.context, model.architecture.context)
    if settings.head == "last":
        return plain_layout(tokenizer, task, context)
    start, delimiter, extract = add_tokens(model.decoder, tokenizer.vocabulary, 3, STD, settings.seed)
    return Layout(task, (start,), (delimiter,), (extract,), context)


def _label(item: Item, labels: tuple[str, ...], numbers: bool) -> float:
    if numbers:
        return number_of(item)
    name = name_of(item.label)
    if name not in labels:
        raise DaybreakError(
            f"{item.where}: the label {name!r} does not occur in the rows to learn from; they have "
            f"{', '.join(labels[:10])}"
        )
    return labels.index(name)
