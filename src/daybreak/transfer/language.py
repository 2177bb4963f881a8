"""Language modelling with an LSTM: windows one after another with the state carried on, and the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.errors import DaybreakError
from daybreak.model.awd_lstm import (
    AwdLstm,
    State,
    activation_penalty,
    detached,
    rows_of,
    slowness_penalty,
)
from daybreak.recurrent_model import RecurrentModel
from daybreak.transfer.loop import Task, fingerprint, seed_of
from daybreak.transfer.schedule import discriminative, slanted_triangle
from daybreak.transfer.settings import LanguageSettings
from daybreak.transfer.texts import Text

READ_AT_ONCE = 256
"""Tokens of a window while scoring; it changes no figure."""
BESIDE = 32
"""Texts that are scored beside each other; the same."""


def tokens_of(model: RecurrentModel, texts: Sequence[Text]) -> list[list[int]]:
    """The ids of each text in the order in which the model reads them."""
    assert model.tokenizer is not None
    found = [model.tokenizer.encode(text.text) for text in texts]
    backward = model.architecture.direction == "backward"
    return [ids[::-1] for ids in found] if backward else found


class LanguageTask(Task):
    """Predict each next token of texts that are read one after another."""

    figure, higher = "loss", False

    def __init__(
        self,
        model: RecurrentModel,
        texts: Sequence[Text],
        held_out: Sequence[Text],
        settings: LanguageSettings,
    ) -> None:
        self.language, self._settings = model, settings
        self.model: AwdLstm = model.decoder
        self.model.dropouts = model.family.language_dropouts.times(settings.dropout)
        self._texts, self._held_out = tokens_of(model, texts), held_out
        self._fingerprint = fingerprint(self._texts)
        total = sum(map(len, self._texts))
        self._batch = max(1, min(settings.batch, total // (settings.window + 1)))
        self._columns = total // self._batch
        if self._columns < 2:
            raise DaybreakError(
                f"the texts have {total} tokens in all, and nothing to predict; give more text"
            )
        self.epoch_steps = math.ceil((self._columns - 1) / settings.window)
        self._epoch, self._rows = -1, torch.empty(0, dtype=torch.int64)
        # The state is changed in place, so that a checkpoint's tree is always of the same tensors.
        self._state: State = [(h.clone(), c.clone()) for h, c in self.model.fresh(self._batch)]
        named = [(f"{kind}.{layer}", part) for layer, pair in enumerate(self._state)
                 for kind, part in zip(("state", "cell"), pair, strict=True)]  # fmt: skip
        self.carried = dict(named)

    @property
    def settings(self) -> LanguageSettings:
        return self._settings

    def groups(self) -> list[list[nn.Parameter]]:
        """Each layer, then the embedding, which is the head: new words are learned fast (fastai's order)."""
        layers = [list(layer.parameters()) for layer in self.model.layers]
        return [*layers, [*self.model.tokens.parameters(), self.model.head_bias]]

    def rates(self, step: int) -> list[float | None]:
        settings = self.settings
        share = slanted_triangle(step, self.steps, settings.cut, settings.ratio)
        return [share * rate for rate in discriminative(settings.lr, len(self.groups()), settings.factor)]

    def loss(self, step: int) -> tuple[Tensor, int]:
        epoch, number = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._epoch, self._rows = epoch, self._shuffled(epoch)
        if number == 0:
            for part in self.carried.values():
                part.zero_()
        first = number * self.settings.window
        window = self._rows[:, first : first + self.settings.window + 1]  # [batch, window + 1]
        read = self.model(window[:, :-1], [(hidden.clone(), cell.clone()) for hidden, cell in self._state])
        logits = self.model.unembed(read.dropped)  # [batch, window, vocabulary]
        loss = functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        loss = loss + activation_penalty(read, self.settings.activation)
        loss = loss + slowness_penalty(read, self.settings.slowness)
        for kept, reached in zip(self._state, detached(read.state), strict=True):
            for old, new in zip(kept, reached, strict=True):
                old.copy_(new)
        return loss, window[:, 1:].numel()

    def _shuffled(self, epoch: int) -> Tensor:
        """All texts one behind another in an order of the epoch's, cut into [batch, columns]."""
        generator = torch.Generator().manual_seed(seed_of("order", self.settings.seed, epoch))
        order = torch.randperm(len(self._texts), generator=generator).tolist()
        stream = torch.tensor([token for number in order for token in self._texts[number]])
        return stream[: self._batch * self._columns].view(self._batch, self._columns)

    def evaluate(self) -> dict[str, float]:
        return score(self.language, self._held_out).figures() if self._held_out else {}

    def save(self, folder: Path) -> None:
        self.language.save(folder)

    def facts(self) -> dict[str, Any]:
        shape = self.model.shape
        return {
            "family": self.language.family.name,
            "words": shape.vocabulary,
            "parameters": sum(one.numel() for one in self.model.parameters()),
            "texts": len(self._texts),
            "tokens": sum(map(len, self._texts)),
        }

    def fingerprint(self) -> str:
        return self._fingerprint


@dataclass(frozen=True)
class LanguageScore:
    """What texts cost, each read by itself from its start."""

    nats: float
    tokens: int
    """Predicted ones: all but the first one of each text."""
    unknown: int
    """Predicted tokens that stand for words which the vocabulary lacks."""
    bytes: int
    """Of the texts, in UTF-8."""

    def figures(self) -> dict[str, float]:
        """`loss` (nats per token), `perplexity`, `bits_per_byte`, and the share of words that are `unknown`.
        An unknown word costs the same whatever its letters are, so bits per byte flatter a small vocabulary.
        """
        loss = self.nats / max(1, self.tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": self.nats / math.log(2) / max(1, self.bytes),
            "unknown": self.unknown / max(1, self.tokens),
        }


@torch.no_grad()
def score(model: RecurrentModel, texts: Sequence[Text]) -> LanguageScore:
    """Score every text by itself; in whichever order, beside whichever others, the figures are the same."""
    assert model.tokenizer is not None
    ids = tokens_of(model, texts)
    mode = model.decoder.training
    model.decoder.eval()
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    nats = 0.0
    for first in range(0, len(order), BESIDE):
        nats += _nats(model.decoder, [ids[number] for number in order[first : first + BESIDE]])
    model.decoder.train(mode)
    targets = [token for text in ids for token in text[1:]]
    size = sum(len(text.text.encode()) for text in texts)
    return LanguageScore(nats, len(targets), targets.count(model.tokenizer.unknown_id), size)


def _nats(model: AwdLstm, texts: Sequence[Sequence[int]]) -> float:
    """Of texts of falling lengths."""
    state: State | None = None
    total = 0.0
    for first in range(0, len(texts[0]) - 1, READ_AT_ONCE):
        parts = [text[first : first + READ_AT_ONCE + 1] for text in texts if len(text) > first + 1]
        lengths = [len(part) - 1 for part in parts]
        ids = torch.tensor([[*part, *[0] * (lengths[0] + 1 - len(part))] for part in parts])
        read = model(ids[:, :-1], None if state is None else rows_of(state, slice(len(parts))))
        state = read.state
        counted = torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
        logits = model.unembed(read.dropped[counted]).float()
        total += float(functional.cross_entropy(logits, ids[:, 1:][counted], reduction="sum"))
    return total
