"""A classifier: texts in, labels out; fresh from a language model, or from a folder.

How a text is laid out is Radford et al. 2018's (section 3.3, figure 1) or the plain one:

    classification   start text extract                   text
    entailment       start premise delimiter hypothesis extract      premise, line break, hypothesis
    similarity       as entailment
    choice           start context delimiter option extract       context, line break, option

Similarity reads both orders and adds their states; a choice is a softmax over the options' scores.

The state at the last token is what the classifier reads. Start, delimiter and extract are rows of the
embedding that no text can spell; config.json tells their ids.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.checkpoint.scored import ScoredFolder, load_scored, save_scored
from daybreak.data.labelled import Item, Task
from daybreak.engine.prompts import special_tokens
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.heads import Scorer
from daybreak.objectives.classification import choice_scores
from daybreak.text.tokenizer import Tokenizer

KEY = "daybreak_task"
"""The key of config.json that says what the scores are of, and how texts are laid out."""
APART = "\n"
"""Between two texts that are read as one, without a delimiter."""


@dataclass(frozen=True)
class Layout:
    """How the texts of an item become sequences of tokens."""

    task: Task
    before: tuple[int, ...] = ()
    """What every sequence begins with."""
    between: tuple[int, ...] = ()
    """Behind the first of two texts."""
    behind: tuple[int, ...] = ()
    """What every sequence ends with."""
    context: int = 512
    """Tokens of a sequence at most."""

    def sequences(self, texts: Sequence[list[int]], options: Sequence[list[int]] = ()) -> list[list[int]]:
        """What is read of an item: one sequence, or two orders, or one for each option."""
        if self.task == "choice":
            joined = [token for text in texts for token in text]
            return [self._framed([joined, option] if joined else [option]) for option in options]
        if self.task == "similarity":
            return [self._framed(texts), self._framed(texts[::-1])]
        return [self._framed(texts)]

    def is_cut(self, texts: Sequence[list[int]], options: Sequence[list[int]] = ()) -> bool:
        """Is one of them longer than there is room for?"""
        longest = max(map(len, options), default=0) + sum(map(len, texts))
        parts = (1 if options and texts else 0) + (1 if options else len(texts))
        return longest > self._room(parts)

    def _framed(self, texts: Sequence[list[int]]) -> list[int]:
        first, *rest = self._cut(texts)
        return [
            *self.before,
            *first,
            *(token for one in rest for token in (*self.between, *one)),
            *self.behind,
        ]

    def _room(self, texts: int) -> int:
        return self.context - len(self.before) - (texts - 1) * len(self.between) - len(self.behind)

    def _cut(self, texts: Sequence[list[int]]) -> list[list[int]]:
        """Texts that do not fit lose their ends, the longest ones first."""
        left, kept = self._room(len(texts)), list(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for done, place in enumerate(order):
            kept[place] = texts[place][: left // (len(texts) - done)]
            left -= len(kept[place])
        return kept


@dataclass(eq=False)
class TaskModel:
    """A scorer, with all that says what its scores mean."""

    family: Family
    decoder: Scorer
    tokenizer: Tokenizer
    layout: Layout
    labels: tuple[str, ...]
    """Classes by their numbers; of numbers and choices, one name."""
    numbers: bool = False
    """The score is a number and no class."""
    columns: dict[str, Any] = field(default_factory=dict)
    """Of the file that it learned from: `texts` and `options`."""
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Any:
        return self.decoder.architecture

    def tokens(self, item: Item) -> tuple[tuple[tuple[int, ...], ...], bool]:
        """The sequences of an item, and whether its texts are cut. What looks like a special token in a text
        is text like any other."""
        texts = [self.tokenizer.encode(text, bos=False, special=False) for text in item.texts]
        options = [self.tokenizer.encode(text, bos=False, special=False) for text in item.options]
        found = self.layout.sequences(texts, options)
        return tuple(map(tuple, found)), self.layout.is_cut(texts, options)

    def states(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden [rows, length, width], tokens [rows, length], and the last place of each row [rows]."""
        device = self.decoder.tokens.weight.device
        lengths = torch.tensor([len(one) for one in sequences], device=device)
        tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.int64)
        for row, one in enumerate(sequences):
            tokens[row, : len(one)] = torch.tensor(one)
        tokens = tokens.to(device)
        # Padding on the right is seen by nobody before it: causality is all the mask that is needed.
        return self.decoder(self.decoder.reading(tokens)), tokens, lengths - 1

    def scores(self, pooled: Tensor, counts: Sequence[int]) -> Tensor:
        """What the classifier reads at the last place of each sequence [sequences, width], of items with
        `counts` sequences each -> [items, classes or options] float32."""
        if self.layout.task == "similarity":
            pooled = torch.stack([own.sum(0) for own in torch.split(pooled, list(counts))])
        found = self.decoder.unembed(pooled).float()
        return choice_scores(found[:, 0], list(counts)) if self.layout.task == "choice" else found

    @torch.no_grad()
    def score(self, items: Sequence[Item], batch: int = 32) -> list[Tensor]:
        """The scores of each item, [classes or options] on the CPU; items of similar lengths are read
        together."""
        read = [self.tokens(item)[0] for item in items]
        order = sorted(range(len(read)), key=lambda place: max(map(len, read[place])))
        found: list[Tensor] = [torch.empty(0)] * len(read)
        for first in range(0, len(order), batch):
            places = order[first : first + batch]
            every = [one for place in places for one in read[place]]
            hidden, _, last = self.states(every)
            pooled = hidden[torch.arange(len(every)), last]
            scores = self.scores(pooled, [len(read[place]) for place in places]).cpu()
            for place, own in zip(places, scores, strict=True):
                found[place] = own[: len(read[place])] if self.layout.task == "choice" else own
        return found

    def save(self, folder: Path) -> None:
        """Write a folder that `load_task_model` opens, and transformers as
        AutoModelForSequenceClassification."""
        task = {**dataclasses.asdict(self.layout), "numbers": self.numbers, "columns": self.columns}
        kind = "regression" if self.numbers else "single_label_classification"
        keys: dict[str, Any] = {KEY: task, "problem_type": kind}
        pad = self._padding()
        if pad is not None:
            keys["pad_token_id"] = pad
        save_scored(folder, self.family, self.decoder, self.tokenizer, self.config, self.labels, **keys)

    def _padding(self) -> int | None:
        """transformers reads a row at its last token that is not this one."""
        own = self.config.get("pad_token_id")
        for pad in (own, self.tokenizer.pad_id, *special_tokens(self, "eos")):  # type: ignore[arg-type]
            if isinstance(pad, int) and 0 <= pad < self.decoder.architecture.vocabulary:
                return pad
        return None


def load_task_model(folder: Path | str, device: str = "cpu") -> TaskModel:
    """The classifier in a folder that `TaskModel.save` wrote, or transformers. Raises `DaybreakError` for
    another."""
    found = load_scored(folder, device)
    if found.tokenizer is None:
        raise DaybreakError(f"{folder} has no tokenizer, so it cannot read text; put its files there")
    told = dict(found.config.get(KEY) or {})
    numbers = told.pop("numbers", False) if told else _gives_a_number(found, folder)
    columns = told.pop("columns", {})
    own = found.decoder.architecture.context
    layout = plain_layout(found.tokenizer, "classification", own)
    if told:
        lists = {name: tuple(told[name]) for name in ("before", "between", "behind")}
        layout = Layout(told["task"], context=min(told["context"], own), **lists)
    return TaskModel(
        found.family,
        found.decoder,
        found.tokenizer,
        layout,
        found.labels,
        bool(numbers),
        columns,
        found.config,
    )


def _gives_a_number(found: ScoredFolder, folder: Path | str) -> bool:
    """Of transformers' classifiers: one score is a number where config.json does not say otherwise, as there.
    Raises `DaybreakError` for several numbers, and for labels of which a text may have several."""
    problem, count = found.config.get("problem_type"), len(found.labels)
    if problem == "multi_label_classification" or (problem == "regression" and count > 1):
        raise DaybreakError(
            f"{folder} has problem_type {problem!r} with {count} labels, which is not supported; take a "
            "model that gives a text one label or one number"
        )
    return problem == "regression" or (problem is None and count == 1)


def plain_layout(tokenizer: Tokenizer, task: Task, context: int) -> Layout:
    """Texts as they are, a line break between two."""
    before = (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
    between = tuple(tokenizer.encode(APART, bos=False, special=False))
    return Layout(task, before, between, context=context)
