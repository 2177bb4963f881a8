"""Reward models: a decoder with one number for its head, as a folder that transformers opens as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak.architecture import Architecture
from daybreak.checkpoint.scored import load_scored, save_scored
from daybreak.engine.prompts import special_tokens
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.model.heads import Scorer, scorer_of
from daybreak.text.chat import own_template, turn_end
from daybreak.text.tokenizer import Tokenizer

SHIFT = "reward_shift"
"""The key of config.json that holds what is added to every score; transformers has no place for it."""


@dataclass(eq=False)
class RewardModel:
    """What says how good a text is: larger is better; only differences have a meaning of their own."""

    family: Family
    decoder: Decoder
    """A `Scorer`."""
    tokenizer: Tokenizer | None
    config: dict[str, Any] = field(default_factory=dict)
    """config.json of the model that it began as."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Nothing: it writes no text."""
    shift: float = 0.0
    """Added to what the head says, so that demonstrations are worth 0 on average (InstructGPT, section 3.5).
    """

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    @property
    def scorer(self) -> Scorer:
        assert isinstance(self.decoder, Scorer)
        return self.decoder

    @classmethod
    def of(cls, model: LanguageModel, seed: int = 0) -> RewardModel:
        """A fresh one from a language model, whose weights it shares. Raises `DaybreakError` for a design
        with blanks."""
        return cls(model.family, scorer_of(model.decoder, 1, seed), model.tokenizer, model.config)

    def rewards(self, texts: Sequence[Sequence[int]], batch: int = 32) -> Tensor:
        """[texts] float32: what each list of token ids is worth, read at its last token; on the CPU, without
        gradients. Texts of a similar length are read together, `batch` at a time."""
        found = torch.empty(len(texts))
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        with torch.no_grad():
            for first in range(0, len(order), batch):
                rows = order[first : first + batch]
                found[rows] = scores(self.scorer, [texts[row] for row in rows]).cpu() + self.shift
        return found

    def save(self, folder: Path) -> None:
        """Write a folder that `load_reward_model` opens, and transformers as
        AutoModelForSequenceClassification (whose scores lack the shift)."""
        keys = {"pad_token_id": self._padding(), SHIFT: self.shift}
        save_scored(folder, self.family, self.scorer, self.tokenizer, self.config, ("reward",), **keys)

    def _padding(self) -> int:
        """transformers reads a text at its last token that is not this one, so it must not be one that texts
        end with."""
        known = self.tokenizer
        ends: set[int | None] = {None, *special_tokens(self, "eos")}
        pads: list[int | None] = [self.config.get("pad_token_id")]
        if known is not None:
            template = own_template(known)
            ends |= {known.eos_id, None if template is None else turn_end(known, template)}
            pads.append(known.pad_id)
        # Without one of its own the first that ends nothing: 0 is the end of texts in GPT-NeoX's vocabulary.
        pads += range(self.architecture.vocabulary)
        return next(pad for pad in pads if pad is not None and pad not in ends)


def scores(decoder: Scorer, texts: Sequence[Sequence[int]]) -> Tensor:
    """[texts] float32, with gradients: the first label of each list of token ids, at its last token."""
    device = decoder.tokens.weight.device
    lengths = torch.tensor([len(text) for text in texts], device=device)
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
    # Padding on the right is seen by nobody before it, so causality alone is all the mask that is needed.
    return decoder.scores(decoder.reading(tokens.to(device)), lengths - 1)[:, 0]


def load_reward_model(folder: Path | str, device: str = "cpu") -> RewardModel:
    """The reward model in a folder that `save` wrote, or transformers, with one label. Raises
    `DaybreakError` for what is none."""
    opened = load_scored(folder, device)
    if len(opened.labels) != 1:
        raise DaybreakError(
            f"{folder} is no reward model, as it has {len(opened.labels)} scores per text; give a folder "
            "that `daybreak align reward` wrote"
        )
    shift = float(opened.config.get(SHIFT, 0.0))
    return RewardModel(opened.family, opened.decoder, opened.tokenizer, opened.config, shift=shift)
