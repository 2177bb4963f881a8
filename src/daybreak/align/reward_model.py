"""Reward models: a decoder with one number for its head, as a folder that transformers opens as well."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.config import CONFIG, read_config, saved_config
from daybreak.checkpoint.fill import matched
from daybreak.checkpoint.opened import with_tokenizer
from daybreak.checkpoint.save import save_folder, to_json
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.model.heads import Scorer, scorer_of
from daybreak.rules import Rule
from daybreak.text.tokenizer import Tokenizer

SHIFT = "reward_shift"
"""The key of config.json that holds what is added to every score; transformers has no place for it."""
HEAD = Rule("score.weight", "head.weight")
TASK = re.compile(r"(LMHeadModel|ForCausalLM)$")
OWN = ("num_labels", "id2label", "label2id", SHIFT)


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
        own = self.decoder.tokens.weight.dtype
        texts = {CONFIG: to_json(self._config(str(own).removeprefix("torch.")))}
        if self.tokenizer is not None:
            texts.update(self.tokenizer.files)
        save_folder(folder, _with_score(self.family), self.decoder, texts)

    def _config(self, dtype: str) -> dict[str, Any]:
        told = {key: value for key, value in self.config.items() if key not in OWN}
        return {
            **saved_config(self.family, self.architecture, told, dtype),
            "architectures": _classes(self.family),
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": self._padding(),
            SHIFT: self.shift,
        }

    def _padding(self) -> int:
        """transformers reads a text at its last token that is not this one, so it must not be one that texts
        end with."""
        known = self.tokenizer
        ends = {self.config.get("eos_token_id"), None if known is None else known.eos_id}
        pads = (self.config.get("pad_token_id"), None if known is None else known.pad_id)
        return next((pad for pad in pads if pad is not None and pad not in ends), 0)


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
    folder = Path(folder)
    config = read_config(folder)
    labels = config.get("num_labels", len(config.get("id2label", {0: 0, 1: 1})))
    found = files.weights(folder)
    if HEAD.theirs not in found or labels != 1:
        many = labels if HEAD.theirs in found else "no"
        raise DaybreakError(
            f"{folder} is no reward model, as it has {many} scores per text; give a folder that "
            "`daybreak align reward` wrote"
        )
    plain = {key: value for key, value in config.items() if key not in OWN}
    family = families.by_model_type(plain["model_type"])
    architecture, tokenizer = with_tokenizer(folder, family, plain)
    with torch.device("meta"):
        decoder = Scorer(architecture, labels)
    state: dict[str, Tensor] = {}
    for use in matched(_with_score(family), decoder, found, folder):
        parts = use.rule.layout.split(use.land(torch.float32, torch.device(device)), architecture)
        state.update(zip(use.rule.names, parts, strict=True))
    decoder.load_state_dict(state, assign=True)
    return RewardModel(family, decoder.eval(), tokenizer, plain, shift=float(config.get(SHIFT, 0.0)))


def _with_score(family: Family) -> Family:
    """The family's names, with the score in the head's place."""
    kept = tuple(rule for rule in family.rules if not rule.names[0].startswith("head."))
    older = tuple(rule for rule in family.older_rules if not rule.names[0].startswith("head."))
    return dataclasses.replace(family, rules=(*kept, HEAD), older_rules=older)


def _classes(family: Family) -> list[str]:
    """What transformers calls such a model; nothing where it does not know the family."""
    name, count = TASK.subn("ForSequenceClassification", family.hf_class)
    return [name] if count else []
