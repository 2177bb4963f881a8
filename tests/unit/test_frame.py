"""What stands around a text with blanks, for a family whose text is closed unless it ends in a blank."""

from __future__ import annotations

import pytest

import daybreak
from daybreak import DaybreakError, families
from daybreak.architecture import Blanks
from daybreak.engine.frame import Frame
from daybreak.engine.prompts import prepare
from daybreak.text.blank_tokens import settled
from daybreak.text.train_tokenizer import train_tokenizer
from tests.unit.blank_models import SHAPE, TEXT

MARKS = ["[MASK]", "[gMASK]", "[sMASK]", "eop", "sop", "</s>"]


@pytest.fixture
def model() -> daybreak.LanguageModel:
    tokenizer = train_tokenizer([TEXT], 290, marks=MARKS)
    mask, rest, sentence, end, start = range(290, 295)
    blanks = Blanks(start, end, mask, rest, sentence, runs_on=True)
    model = daybreak.create("glm_130b", vocabulary=304, blanks=blanks, **SHAPE)
    model.tokenizer = tokenizer
    return model


def test_the_closing_token_stands_behind_a_text_that_does_not_end_in_a_blank(
    model: daybreak.LanguageModel,
) -> None:
    frame, tokenizer = Frame.of(model), model.tokenizer
    assert tokenizer is not None
    close, start, mask = (tokenizer.special_id(text) for text in ("</s>", "sop", "[MASK]"))
    inside, behind = tokenizer.encode("a[MASK]b"), tokenizer.encode("a[MASK]")
    assert frame.prompt(inside) == [*inside, close, start]
    assert frame.prompt(behind) == [*behind, start]
    assert frame.prompt([*inside, close]) == [*inside, close, start]
    assert behind[-1] == mask


def test_ids_are_not_half_guessed(model: daybreak.LanguageModel) -> None:
    """A vocabulary of a published size whose tokenizer spells its mask in another way."""
    architecture = families.by_name("glm").architecture("glm-2b")
    spellings = {"start": "sop", "end": "eop", "mask": "<mask>", "rest": "[gMASK]", "sentence": "[x]"}
    with pytest.raises(DaybreakError, match=r"spells sop but has no <mask>.*mask_token_id"):
        settled(architecture, model.tokenizer, spellings, said=False)
    known = settled(architecture, model.tokenizer, {**spellings, "mask": "[MASK]"}, said=False).blanks
    assert known is not None and known.sentence is None and known.mask == 290


def test_a_prompt_goes_on_in_its_blank(model: daybreak.LanguageModel) -> None:
    assert model.tokenizer is not None
    (prompt,) = prepare(model, "a b")
    rest, start = (model.tokenizer.special_id(text) for text in ("[gMASK]", "sop"))
    assert prompt.tokens[-2:] == (rest, start)


def test_the_closing_token_ends_a_piece(model: daybreak.LanguageModel) -> None:
    assert model.tokenizer is not None
    assert model.tokenizer.special_id("</s>") in Frame.of(model).endings()
