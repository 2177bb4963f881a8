"""What a run trains: the model that its settings and its data describe, and the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from daybreak import families
from daybreak.architecture import Architecture, Blanks, Learned, Rotary
from daybreak.data.token_shards import TokenSet
from daybreak.engine.frame import Frame
from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.language_model import LanguageModel, create, load
from daybreak.objectives.batch import Objective
from daybreak.objectives.blank_infilling import (
    ALL_THREE,
    PACKED_SPANS_AND_REST,
    SPANS,
    SPANS_AND_DOCUMENTS,
    SPANS_AND_SENTENCES,
    BlankInfilling,
)
from daybreak.objectives.causal import Causal
from daybreak.objectives.sentences import Sentences
from daybreak.text.tokenizer import Tokenizer
from daybreak.train.settings import ModelSettings, Settings

MIXTURES = {
    "spans": SPANS,
    "sentences": SPANS_AND_SENTENCES,
    "documents": SPANS_AND_DOCUMENTS,
    "all": ALL_THREE,
    "packed": PACKED_SPANS_AND_REST,
}
SPARE = 1024
"""A published table of embeddings is kept where it has at most so many rows more than the tokenizer."""
ROUND = 64
"""Other tables are rounded up to a multiple of this: matrix products are faster so."""
PROBE = "The sun  rose.\n\tdef f(x): return x**2  # naïve – 日本語, 1234567\n"
"""A text that tokenizers disagree about."""


def architecture(settings: Settings, data: TokenSet | None) -> Architecture:
    """Of the model before there is one: what `--dry-run` needs to know. Without data it is as published."""
    if settings.model.start is not None:
        return _whole(settings.model).architecture
    page = families.by_name(settings.model.family)
    changes = _spelled(settings.model.changes) if data is None else _changes(page, settings, data)
    return page.architecture(settings.model.size, **changes)


def model_of(settings: Settings, data: TokenSet) -> LanguageModel:
    """With fresh weights or those of the checkpoint that `model.start` names, in float32 on the CPU, and with
    the tokenizer of the data.

    Raises `DaybreakError` for a model that cannot read the data: a smaller vocabulary, another tokenizer, a
    shorter table of positions.
    """
    tokenizer = data.tokenizer()
    if settings.model.start is not None:
        model = _started(settings.model, tokenizer)
    else:
        page = families.by_name(settings.model.family)
        changes = _changes(page, settings, data)
        model = create(page.name, settings.model.size, seed=settings.seed, **changes)
    _check(model.architecture, settings, data)
    model.tokenizer = tokenizer
    return model


def context_of(settings: Settings, shape: Architecture, data: TokenSet | None) -> int:
    """Tokens of a training sequence."""
    most = shape.context if data is None else min(data.context, shape.context)
    return settings.data.context or most


def objective_of(settings: Settings, model: LanguageModel) -> Objective:
    """What `settings.objective` names. Raises `DaybreakError` for one that the design has no place for."""
    blanks, name = model.architecture.blanks, settings.objective
    if name == "auto":
        name = "causal" if blanks is None else "packed" if blanks.sentence is None else "all"
    if name == "causal":
        return Causal(blanks)
    if name not in MIXTURES:
        raise DaybreakError(f"objective is {name!r}; it must be one of auto, causal, {', '.join(MIXTURES)}")
    if blanks is None:
        raise DaybreakError(
            f"{model.family.title} has no blanks to fill; its objective is causal, not {name}"
        )
    assert model.tokenizer is not None
    frame, mixture = Frame.of(model), MIXTURES[name]
    units = Sentences.of(model.tokenizer) if mixture.sentences else None
    return BlankInfilling(blanks, mixture, units, (frame.opening, frame.closing), settings.seed)


def _started(settings: ModelSettings, tokenizer: Tokenizer) -> LanguageModel:
    if settings.changes or settings.size:
        raise DaybreakError(
            f"model.start is {settings.start}, whose shape is fixed; leave model.size and model.changes out"
        )
    model = _whole(settings)
    own = model.tokenizer
    if own is not None and own.encode(PROBE, bos=False) != tokenizer.encode(PROBE, bos=False):
        raise DaybreakError(
            f"the data was made with another tokenizer than {settings.start} has; build it again with "
            f"tokenizer: {settings.start} in its recipe"
        )
    return model


def _whole(settings: ModelSettings) -> LanguageModel:
    """The model that `start` names, if it can be trained."""
    assert settings.start is not None
    model = load(settings.start, settings.revision)
    if is_quantised(model.decoder):
        raise DaybreakError(
            f"model.start is {settings.start}, whose weights are quantised and cannot be trained; name the "
            "checkpoint that it was made from"
        )
    return model


def _changes(page: Family, settings: Settings, data: TokenSet) -> dict[str, Any]:
    """The fields that differ from the size's (or the base's), those that follow from others with them."""
    changes = _spelled(settings.model.changes)
    wanted = page.architecture(settings.model.size)
    if "vocabulary" not in changes:
        own, published = data.vocabulary, wanted.vocabulary
        fits = own <= published <= own + SPARE
        changes["vocabulary"] = published if fits else -(-own // ROUND) * ROUND
    if "context" not in changes and settings.model.size is None:
        changes["context"] = settings.data.context or data.context
    if isinstance(wanted.positions, Rotary) and "positions" not in changes:
        changes["positions"] = _turning(wanted, changes)
    if wanted.blanks is not None and "blanks" not in changes:
        changes["blanks"] = _blanks(page, wanted.blanks, data.tokenizer())
    return changes


def _spelled(changes: Mapping[str, Any]) -> dict[str, Any]:
    """YAML has lists where the architecture has tuples and sets."""
    kinds: dict[str, Any] = {"windows": tuple, "biases": frozenset}
    return {
        name: kinds[name](value) if name in kinds and isinstance(value, list) else value
        for name, value in changes.items()
    }


def _turning(wanted: Architecture, changes: Mapping[str, Any]) -> Rotary:
    """The same share of each head turns as in the design."""
    assert isinstance(wanted.positions, Rotary)
    head = changes.get("width", wanted.width) // changes.get("heads", wanted.heads)
    width = max(2, wanted.positions.width * head // wanted.head_width // 2 * 2)
    return dataclasses.replace(wanted.positions, width=width)


def _blanks(page: Family, base: Blanks, tokenizer: Tokenizer) -> Blanks:
    """The tokens of blanks as the data's tokenizer numbers them."""
    spelled = page.blank_tokens
    ids: dict[str, Any] = {field: tokenizer.special_id(text) for field, text in spelled.items()}
    missing = [spelled[field] for field, number in ids.items() if number is None]
    if missing:
        raise DaybreakError(
            f"the tokenizer of the data does not know {missing[0]!r}, and {page.title} needs it; train it "
            f"with the special tokens {' '.join(spelled.values())}"
        )
    return dataclasses.replace(base, **{"sentence": None, **ids})


def _check(shape: Architecture, settings: Settings, data: TokenSet) -> None:
    if data.vocabulary > shape.vocabulary:
        raise DaybreakError(
            f"the data's tokenizer has {data.vocabulary} entries, the model {shape.vocabulary}; build the "
            "data with the model's tokenizer, or leave vocabulary out of model.changes"
        )
    context = context_of(settings, shape, data)
    if isinstance(shape.positions, Learned) and context > shape.context:
        raise DaybreakError(
            f"data.context is {context} tokens, the model's table of positions ends at {shape.context}; "
            f"give --data.context {shape.context} or fewer"
        )
