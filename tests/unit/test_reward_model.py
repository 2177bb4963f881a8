"""A decoder with one number for its head: saved, loaded, and read by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import daybreak
from daybreak import families
from daybreak.align.reward_model import RewardModel, load_reward_model
from daybreak.architecture import Architecture
from daybreak.checkpoint.fill import empty_decoder
from daybreak.checkpoint.scored import save_scored
from daybreak.compare.redraw import redraw
from daybreak.errors import DaybreakError
from daybreak.families.trials import trials
from daybreak.language_model import LanguageModel
from daybreak.model.heads import scorer_of
from tests.unit.test_chat import with_template
from tests.unit.tiny_models import speaking

SCORED = [
    (name, label)
    for name in families.NAMES
    for label, shape in trials(name).items()
    if not shape.has_blocks and families.by_name(name).hf_class
]
TEXTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [9], [3, 1, 4, 1, 5]]


def reward_model(name: str, shape: Architecture) -> RewardModel:
    decoder = empty_decoder(shape).to_empty(device="cpu")
    redraw(decoder, 1)
    model = RewardModel.of(LanguageModel(families.by_name(name), decoder))
    model.shift = 0.75
    return model


@pytest.mark.parametrize("name, label", SCORED, ids=str)
def test_transformers_reads_the_same_reward(name: str, label: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = reward_model(name, trials(name)[label])
    model.save(tmp_path)
    ours = model.rewards(TEXTS, batch=3)
    assert ours.std() > 1e-3
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and theirs.config.num_labels == 1
    longest = max(map(len, TEXTS))
    ids = torch.full((len(TEXTS), longest), theirs.config.pad_token_id)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)] = torch.tensor(text)
    mask = torch.arange(longest) < torch.tensor([[len(text)] for text in TEXTS])
    with torch.no_grad():
        found = theirs.eval()(input_ids=ids, attention_mask=mask.long()).logits[:, 0]
    torch.testing.assert_close(ours - 0.75, found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load_reward_model(tmp_path).rewards(TEXTS), ours)


def test_gpt_3_has_one_as_well_for_ourselves(tmp_path: Path) -> None:
    model = RewardModel.of(daybreak.create("gpt3", vocabulary=40, context=32, layers=2, width=16, heads=2))
    model.save(tmp_path)
    torch.testing.assert_close(load_reward_model(tmp_path).rewards(TEXTS), model.rewards(TEXTS))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=12), min_size=1, max_size=6), st.integers(1, 4)
)
def test_a_text_is_worth_the_same_in_any_company(texts: list[list[int]], batch: int) -> None:
    model = RewardModel.of(daybreak.create("bloom", vocabulary=40, context=32, layers=2, width=16, heads=2))
    together = model.rewards(texts, batch)
    alone = torch.cat([model.rewards([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_reward_is_read_at_the_last_token() -> None:
    model = RewardModel.of(daybreak.create("gpt2", vocabulary=40, context=32, layers=2, width=16, heads=2))
    ids = torch.tensor([[5, 6, 7]])
    hidden = model.decoder(model.decoder.reading(ids))[0, -1]
    assert model.rewards([[5, 6, 7]]).item() == pytest.approx((model.decoder.head.weight[0] @ hidden).item())
    assert model.rewards([[7, 6, 7]]).item() != pytest.approx(model.rewards([[5, 6, 7]]).item())


def test_padding_is_never_what_texts_end_with(tmp_path: Path) -> None:
    """Readers that look for the last token that is no padding would else pass over the end."""
    model = RewardModel.of(speaking("gpt2"))
    assert model.tokenizer is not None
    model.config = {"pad_token_id": model.tokenizer.eos_id, "eos_token_id": model.tokenizer.eos_id}
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pad_token_id"] != model.tokenizer.eos_id
    assert load_reward_model(tmp_path).tokenizer is not None


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"eos_token_id": 0}, 1),  # as GPT-NeoX's vocabulary has it
        ({"eos_token_id": [0, 1, 7], "pad_token_id": 7}, 2),  # as Llama 3's config.json has it
        ({"eos_token_id": 5, "pad_token_id": 7}, 7),
        ({}, 0),
    ],
    ids=str,
)
def test_whatever_ends_texts_padding_is_another(told: dict[str, Any], wanted: int, tmp_path: Path) -> None:
    model = RewardModel.of(daybreak.create("gpt2", vocabulary=40, context=32, layers=1, width=16, heads=2))
    model.config = told
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == wanted


def test_padding_is_no_mark_behind_a_turn(tmp_path: Path) -> None:
    model = with_template()
    tokenizer = model.tokenizer
    assert tokenizer is not None
    tokenizer.pad_id = tokenizer.special_id("<|end|>")
    assert tokenizer.pad_id is not None and tokenizer.pad_id != tokenizer.eos_id
    RewardModel.of(model).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] != tokenizer.pad_id


def test_fresh_heads_are_drawn_by_the_seed() -> None:
    model = daybreak.create("gpt2", vocabulary=40, context=32, layers=1, width=16, heads=2)
    first, again, other = (RewardModel.of(model, seed).decoder.head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    wide = daybreak.create("gpt2", vocabulary=40, context=32, layers=1, width=1024, heads=2)
    assert RewardModel.of(wide).decoder.head.weight.std().item() == pytest.approx(1 / 32, rel=0.1)


def test_designs_with_blanks_have_none() -> None:
    with pytest.raises(DaybreakError, match="reads a text in both directions"):
        RewardModel.of(daybreak.create("glm", layers=1, width=16, heads=2, vocabulary=120))


def test_folders_that_hold_none_are_refused(tmp_path: Path) -> None:
    model = daybreak.create("gpt2", vocabulary=40, context=32, layers=1, width=16, heads=2)
    model.save(tmp_path / "plain")
    with pytest.raises(DaybreakError, match="plain holds no scores"):
        load_reward_model(tmp_path / "plain")
    RewardModel.of(model).save(tmp_path / "scored")
    with pytest.raises(DaybreakError, match=r"score\.weight"):
        daybreak.load(tmp_path / "scored")
    save_scored(tmp_path / "two", model.family, scorer_of(model.decoder, 2), None, {}, ("a", "b"))
    with pytest.raises(DaybreakError, match="is no reward model, as it has 2 scores"):
        load_reward_model(tmp_path / "two")
