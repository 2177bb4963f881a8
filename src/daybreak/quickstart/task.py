"""What a run learns: the design in the run's sizes, its tokens of blanks, and the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from daybreak import families
from daybreak.architecture import Blanks, Rotary
from daybreak.engine.frame import Frame
from daybreak.language_model import LanguageModel, create
from daybreak.objectives.batch import Objective
from daybreak.objectives.blank_infilling import SPANS, BlankInfilling, Mixture
from daybreak.objectives.causal import Causal
from daybreak.objectives.sentences import Lines
from daybreak.quickstart.settings import Settings

MIXTURE = Mixture(spans=0.1, sentences=0.5, rest=0.4, least=0.15, most=0.5, shortest_rest=0.5)
"""Of the kinds of blanks; what was tried is in the decision records."""


def fresh(settings: Settings) -> LanguageModel:
    """The family's design in the sizes of `settings`, with the weights its paper would draw."""
    base = families.by_name(settings.family).base
    changes: dict[str, Any] = {}
    if isinstance(base.positions, Rotary):
        head = settings.width // settings.heads
        whole = base.positions.width == base.head_width
        changes["positions"] = dataclasses.replace(base.positions, width=head if whole else head // 4 * 2)
    if base.blanks is not None:
        changes["blanks"] = _blanks(settings, base.blanks)
    return create(
        settings.family,
        seed=settings.seed,
        vocabulary=settings.vocabulary + len(marks(settings)),
        context=settings.context,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
        **changes,
    )


def marks(settings: Settings) -> list[str]:
    """How the family spells its tokens of blanks, in the order of their ids; none for most families."""
    return list(families.by_name(settings.family).blank_tokens.values())


def _blanks(settings: Settings, base: Blanks) -> Blanks:
    fields = families.by_name(settings.family).blank_tokens
    ids: dict[str, Any] = {field: settings.vocabulary + number for number, field in enumerate(fields)}
    return dataclasses.replace(base, **{"sentence": None, **ids})


def objective(settings: Settings, model: LanguageModel) -> Objective:
    """What the model is to learn. Before it has a tokenizer, one whose batches have the same shapes."""
    blanks = model.architecture.blanks
    if blanks is None or not settings.infilling:
        return Causal(blanks)
    if model.tokenizer is None:
        return BlankInfilling(blanks, SPANS)
    frame = Frame.of(model)
    return BlankInfilling(
        blanks, MIXTURE, Lines.of(model.tokenizer), (frame.opening, frame.closing), settings.seed
    )


def numbers(step: int, rows: int) -> list[int]:
    """Which sequences of the run the rows of a step are, for what the objective draws.

    They are not counted through: the halves of 64 bits are the row and the step, so that the blanks are those
    with which what the documentation says was measured.
    """
    return [(row << 32) + step for row in range(rows)]


def prompt(settings: Settings, model: LanguageModel, beginning: Sequence[int]) -> list[int]:
    """What a model trained so reads to go on from the ids of a beginning."""
    blanks = model.architecture.blanks
    if blanks is None:
        return list(beginning)
    if not settings.infilling:
        return [blanks.rest, blanks.start, *beginning]
    return Frame.of(model).prompt([*beginning, blanks.rest])


def readable(settings: Settings, model: LanguageModel) -> int:
    """Tokens of a text that such a model reads at most while it is scored: a blank, or the start of a piece,
    takes a place as well."""
    return settings.context if model.architecture.blanks is None else max(1, settings.context - 1)
