"""Folders of models that give a text a few scores: what transformers opens as
AutoModelForSequenceClassification.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daybreak import families
from daybreak.checkpoint import folder as files
from daybreak.checkpoint.config import CONFIG, read_config, saved_config
from daybreak.checkpoint.fill import matched
from daybreak.checkpoint.opened import with_tokenizer
from daybreak.checkpoint.save import save_folder, to_json
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.heads import Scorer
from daybreak.rules import Rule
from daybreak.text.tokenizer import Tokenizer

SCORE = Rule("score.weight", "head.weight")
TASK = re.compile(r"(LMHeadModel|ForCausalLM)$")
LABELS = ("num_labels", "id2label", "label2id", "problem_type")
"""Keys of config.json that speak of the scores."""


@dataclass(frozen=True, eq=False)
class ScoredFolder:
    """A folder, opened."""

    family: Family
    decoder: Scorer
    tokenizer: Tokenizer | None
    config: dict[str, Any]
    """As it was read."""
    labels: tuple[str, ...]
    """What each score stands for."""


def save_scored(
    folder: Path,
    family: Family,
    decoder: Scorer,
    tokenizer: Tokenizer | None,
    told: Mapping[str, Any],
    labels: tuple[str, ...],
    **keys: Any,
) -> None:
    """Write the folder. `told` is the config.json of the model that the scorer began as, `labels` what each
    score stands for, and `keys` are further ones for config.json."""
    dtype = str(decoder.tokens.weight.dtype).removeprefix("torch.")
    told = {key: value for key, value in told.items() if key not in LABELS}
    config = {
        **saved_config(family, decoder.architecture, told, dtype),
        "architectures": _classes(family),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        **keys,
    }
    texts = {CONFIG: to_json(config)}
    if tokenizer is not None:
        texts.update(tokenizer.files)
    save_folder(folder, with_score(family), decoder, texts)


def load_scored(folder: Path | str, device: str = "cpu") -> ScoredFolder:
    """The model in a folder that `save_scored` wrote, or transformers. Raises `DaybreakError` for another."""
    folder = Path(folder)
    config, found = read_config(folder), files.weights(folder)
    if SCORE.theirs not in found:
        raise DaybreakError(
            f"{folder} holds no scores ({SCORE.theirs}), so it is no classifier and no reward model; give a "
            "model that `daybreak finetune` or `daybreak align reward` wrote, or one of transformers' "
            "ForSequenceClassification"
        )
    plain = {key: value for key, value in config.items() if key not in LABELS}
    family = families.by_model_type(plain["model_type"])
    architecture, tokenizer = with_tokenizer(folder, family, plain)
    count = found[SCORE.theirs].shape[0]
    with torch.device("meta"):
        decoder = Scorer(architecture, count)
    state: dict[str, Tensor] = {}
    for use in matched(with_score(family), decoder, found, folder):
        parts = use.rule.layout.split(use.land(torch.float32, torch.device(device)), architecture)
        state.update(zip(use.rule.names, parts, strict=True))
    decoder.load_state_dict(state, assign=True)
    named = config.get("id2label") or {}
    labels = tuple(str(named.get(str(number), f"LABEL_{number}")) for number in range(count))
    return ScoredFolder(family, decoder.eval(), tokenizer, config, labels)


def _classes(family: Family) -> list[str]:
    """What transformers calls such a model; nothing where it does not know the family."""
    name, count = TASK.subn("ForSequenceClassification", family.hf_class)
    return [name] if count else []


def with_score(family: Family) -> Family:
    """The family's names, with the score in the head's place."""
    kept = tuple(rule for rule in family.rules if not rule.names[0].startswith("head."))
    older = tuple(rule for rule in family.older_rules if not rule.names[0].startswith("head."))
    return dataclasses.replace(family, rules=(*kept, SCORE), older_rules=older)
