"""Reward models: encoded rankings, their report, the gate, and a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers

import daybreak
from daybreak import settings as reading
from daybreak.align.encoding import Answered, Compared, all_compared, answered, batch_of, compared, log_probs
from daybreak.align.preference_settings import RewardSettings
from daybreak.align.reward_model import RewardModel, load_reward_model
from daybreak.align.reward_report import (
    RewardReport,
    calibration,
    correlation,
    report,
    require_accuracy,
    write_report,
)
from daybreak.align.reward_training import RewardJob, beside, job_of, right
from daybreak.data.rankings import Ranking, ranking_of, read_rankings
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.objectives.batch import UNSCORED
from daybreak.text.chat import encode_chat
from daybreak.text.tokenizer import Tokenizer
from daybreak.train.tuning_run import TuningOutcome, tune
from tests.reference import preferences as slow
from tests.unit.test_chat import CHATML, with_template
from tests.unit.tiny_models import speaking
from tests.unit.tiny_rankings import written
from tests.unit.tiny_run import Silent, byte_tokenizer

ASKED = ({"role": "user", "content": "Hi"},)


# Texts ----------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_would_have_to_write() -> None:
    model = speaking()
    assert model.tokenizer is not None
    text = answered(model, "1 + 1 =", " 2")
    assert list(text.tokens) == [*model.tokenizer.encode("1 + 1 = 2"), model.tokenizer.eos_id]
    assert text.answer == (*model.tokenizer.encode(" 2"), model.tokenizer.eos_id)
    assert (text.prompt, text.length) == (7, 3)
    talk = answered(model, ASKED, "Hello")
    whole = model.tokenizer.decode(talk.tokens, skip_special=False)
    assert whole == "User: Hi\n\nAssistant: Hello<|endoftext|>"


def with_blanks(kind: str) -> Tokenizer:
    """A tokenizer that puts a blank before whatever it is given, in the two ways in which Llama's is
    published."""
    letters = ["<unk>", "<s>", "</s>", *"\u2581abcdefghijklmnopqrstuvwxyz.\n"]
    library = Library(
        models.BPE(vocab={one: place for place, one in enumerate(letters)}, merges=[], unk_token="<unk>")
    )
    if kind == "metaspace":
        library.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        library.normalizer = normalizers.Sequence(steps)
    return Tokenizer(library, bos="<s>", eos="</s>", adds_bos=True)


@pytest.mark.parametrize("kind", ["metaspace", "normalizer"])
@pytest.mark.parametrize("answer", [" paris", "paris", "\nparis", "  paris"])
def test_an_answer_has_the_blanks_that_it_has(kind: str, answer: str) -> None:
    model = speaking()
    model.tokenizer = tokenizer = with_blanks(kind)
    text = answered(model, "the capital is", answer)
    assert list(text.tokens) == [*tokenizer.encode("the capital is" + answer, bos=True), tokenizer.eos_id]


def test_an_answer_in_a_template_is_a_part_of_the_whole() -> None:
    model = with_template()
    assert model.tokenizer is not None
    talk = answered(model, ASKED, "Hello")
    whole = encode_chat(
        model.tokenizer,
        CHATML,
        [*ASKED, {"role": "assistant", "content": "Hello"}],
        add_generation_prompt=False,
    )
    assert list(talk.tokens) == whole


def test_nobody_s_answer_ends_its_own_turn() -> None:
    model = speaking()
    assert model.tokenizer is not None and model.tokenizer.eos_id is not None
    text = answered(model, "?", "<|endoftext|> more")
    assert text.tokens.count(model.tokenizer.eos_id) == 1 and text.tokens[-1] == model.tokenizer.eos_id


def test_what_is_longer_than_the_context_is_named() -> None:
    model = speaking()
    long = ranking_of({"prompt": "?", "answers": ["x" * 96, "y"], "ranks": [1, 2]}, "r.jsonl: line 7")
    with pytest.raises(DaybreakError, match=r"r.jsonl: line 7: prompt and answer have 1 and 97 tokens, .*96"):
        compared(model, long)
    short = ranking_of({"prompt": "?", "answers": ["x", "y"], "ranks": [1, 2]}, "r.jsonl: line 8")
    found, left = all_compared(model, [long, short], None, "leave_out")
    assert len(found) == 1 and left == 1
    with pytest.raises(DaybreakError, match="together more than 2"):
        all_compared(model, [short], 2)


def test_prompts_that_are_too_long_by_themselves_are_left_out_as_well() -> None:
    model = speaking()
    for prompt in ("x" * 200, [{"role": "user", "content": "x" * 200}]):
        long = ranking_of({"prompt": prompt, "answers": ["x", "y"], "ranks": [1, 2]}, "r.jsonl: line 7")
        with pytest.raises(DaybreakError, match=r"r.jsonl: line 7: prompt and answer have 2\d\d and"):
            compared(model, long)
        assert all_compared(model, [long], None, "leave_out") == ([], 1)


@pytest.mark.parametrize("prompt", ["a <|user|>", ASKED])
def test_tokens_that_the_model_lacks_are_named(prompt: Any) -> None:
    """And not found by an error in the middle of a run."""
    model = speaking()
    model.tokenizer = byte_tokenizer(("<|user|>",))
    template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    model.tokenizer.files["chat_template.jinja"] = template.encode()
    with pytest.raises(DaybreakError, match=r"line 7: the token '<\|user\|>' has id 257, .* 0 to 256"):
        answered(model, prompt, "x", "r.jsonl: line 7")


def test_what_the_template_refuses_is_named() -> None:
    model = with_template()
    assert model.tokenizer is not None
    refusing = "{{ raise_exception('no system messages') }}"
    model.tokenizer.files["chat_template.jinja"] = refusing.encode()
    with pytest.raises(DaybreakError, match=r"line 7: .*no system messages"):
        answered(model, ASKED, "x", "r.jsonl: line 7")


def test_answers_alone_have_targets() -> None:
    model = speaking()
    texts = [answered(model, "one", " 1"), answered(model, "two words", "x")]
    batch = batch_of(model.decoder, texts)
    for row, text in enumerate(texts):
        own = batch.targets[row]
        assert own[own != UNSCORED].tolist() == list(text.answer)
        places = (own != UNSCORED).nonzero()[:, 0] + 1
        assert batch.reading.tokens[row, places[:-1]].tolist() == list(text.answer[:-1])


def test_log_probs_are_those_of_each_text_alone() -> None:
    model = speaking()
    texts = [answered(model, "abc"[:n], "x" * (4 - n)) for n in (1, 3, 2)]
    found = log_probs(model.decoder, texts, batch=2)
    for text, own in zip(texts, found.tolist(), strict=True):
        table = model.logits(torch.tensor([text.tokens]))[0].double().log_softmax(-1)
        wanted = sum(table[place - 1, text.tokens[place]] for place in range(text.prompt, len(text.tokens)))
        assert own == pytest.approx(float(wanted), abs=1e-4)


# The report -----------------------------------------------------------------------------------------------


def rated(values: list[float], lengths: list[int]) -> Compared:
    return Compared(tuple(Answered((1,) * (n + 2), 2) for n in lengths), tuple(values))


def test_the_report_counts_pairs() -> None:
    rankings = [rated([2, 1, 1], [3, 1, 2]), rated([1, 0], [5, 5]), rated([0, 1], [4, 2])]
    found = report(rankings, [[2.0, 1.0, 3.0], [0.5, 0.5], [1.0, 2.0]])
    # (0, 1) right, (0, 2) wrong; equal rewards: half; right.
    assert (found.prompts, found.pairs, found.accuracy) == (3, 4, 2.5 / 4)
    assert found.by_answers == {"2": {"accuracy": 0.75, "pairs": 2}, "3": {"accuracy": 0.5, "pairs": 2}}
    assert found.length_accuracy == (2 + 0.5 + 0) / 4
    assert found.mean == pytest.approx(10 / 7)
    every = torch.tensor([2.0, 1, 3, 0.5, 0.5, 1, 2])
    lengths = torch.tensor([3.0, 1, 2, 5, 5, 4, 2])
    wanted = torch.corrcoef(torch.stack([every, lengths]))[0, 1].item()
    assert found.length_correlation == pytest.approx(wanted, abs=1e-6)
    assert sum(one.pairs for one in found.bins) == 4
    assert found.calibration_error == pytest.approx(
        sum(one.pairs / 4 * abs(one.sure - one.right) for one in found.bins)
    )


def test_who_is_as_often_right_as_sure_is_calibrated() -> None:
    odds = math.log(3)  # sure to three quarters
    bins = calibration([odds, odds, odds, -odds])
    assert len(bins) == 1 and bins[0].sure == pytest.approx(0.75) and bins[0].right == 0.75
    bins = calibration([9.0, 9.0, -9.0, 0.0])
    assert [one.pairs for one in bins] == [1, 3]
    assert bins[1].right == pytest.approx(2 / 3) and bins[1].sure > 0.99


def test_what_does_not_vary_is_correlated_with_nothing() -> None:
    assert correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert correlation([1.0, 2.0], [2.0, 4.0]) == pytest.approx(1)


def test_the_gate(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(DaybreakError, match=r"no config\.json, so it is no checkpoint; give .*/model"):
        require_accuracy(tmp_path)  # the run's folder, and not the model in it
    write_report(tmp_path, None)
    with pytest.raises(DaybreakError, match=r"does not say how good its rewards are.*--data\.validation"):
        require_accuracy(tmp_path)
    assert require_accuracy(tmp_path, anyway=True) is None
    bad = report([rated([1, 0], [1, 1])] * 2, [[1.0, 0.0], [0.0, 1.0]])
    write_report(tmp_path, bad)
    with pytest.raises(DaybreakError, match=r"right about 50.0% of held-out pairs, and 60.0% are asked for"):
        require_accuracy(tmp_path)
    assert require_accuracy(tmp_path, anyway=True) == require_accuracy(tmp_path, least=0.5) == 0.5
    write_report(tmp_path, report([rated([1, 0], [1, 1])], [[1.0, 0.0]]), shift=0.5)
    assert require_accuracy(tmp_path) == 1.0
    assert json.loads((tmp_path / "reward.json").read_text())["shift"] == 0.5


# Training -------------------------------------------------------------------------------------------------


@how(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=9), min_size=1, max_size=5))
def test_answers_stand_beside_each_other(rows: list[list[int]]) -> None:
    part = [rated([float(value) for value in row], [1] * len(row)) for row in rows]
    flat = torch.randn(sum(map(len, rows)), generator=torch.Generator().manual_seed(0))
    rewards, values, real = beside(part, flat)
    assert torch.equal(rewards[real], flat) and real.sum(1).tolist() == list(map(len, rows))
    shares = right(rewards, values, real)
    begin = 0
    for row, share in zip(rows, shares.tolist(), strict=True):
        own = flat[begin : begin + len(row)].tolist()
        begin += len(row)
        pairs = [own[a] > own[b] for a in range(len(row)) for b in range(len(row)) if row[a] > row[b]]
        assert share == pytest.approx(sum(pairs) / max(1, len(pairs)))


def job(model: LanguageModel, rankings: list[Ranking]) -> RewardJob:
    return RewardJob(RewardModel.of(model), all_compared(model, rankings)[0], [])


def test_the_job_s_loss_is_the_sum_over_prompts(tmp_path: Path) -> None:
    learned = job(speaking(), read_rankings(written(tmp_path / "r.jsonl", 5)))
    found = learned.loss(learned.examples)
    total = 0.0
    for one in learned.examples:
        own = learned.model.rewards([text.tokens for text in one.texts]).tolist()
        total += slow.ranking(own, one.values)
    assert found.loss.item() == pytest.approx(total, rel=1e-5) and found.count == 5
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert all(one.grad is not None for one in learned.modules.parameters())


def settings(folder: Path, **tree: Any) -> RewardSettings:
    if not (folder / "start").exists():
        speaking().save(folder / "start")
    base = {
        "start": str(folder / "start"),
        "data": {"file": str(written(folder / "r.jsonl", 220)), "held_out": 0.2},
        "optimizer": {"lr": 3e-3},
        "batch": {"examples": 16, "micro": 8},
        "epochs": 4,
        "device": "cpu",
    }
    return reading.build(RewardSettings, reading.merged(base, tree))


def trained(given_: RewardSettings, folder: Path) -> tuple[TuningOutcome, RewardReport | None]:
    own = job_of(daybreak.load(given_.start), given_)
    return tune(own, given_, folder, Silent()), own.report


def test_a_run_learns_what_people_preferred(tmp_path: Path) -> None:
    outcome, found = trained(settings(tmp_path), tmp_path / "run")
    assert outcome.ending == "finished" and found is not None
    assert found.accuracy > 0.8
    folder = tmp_path / "run" / "model"
    assert require_accuracy(folder) == found.accuracy
    told = json.loads((folder / "reward.json").read_text())
    assert told["held_out"]["pairs"] == found.pairs and set(told["held_out"]["by_answers"]) <= set("234")
    model = load_reward_model(folder)
    assert model.shift == told["shift"]
    learned, _ = all_compared(speaking(), read_rankings(tmp_path / "r.jsonl"))
    best = [one.texts[max(range(len(one.values)), key=one.values.__getitem__)].tokens for one in learned]
    assert model.rewards(best).mean().abs() < 0.35  # shifted on those that were learned from
    again, same = trained(settings(tmp_path), tmp_path / "run")
    assert again.step == outcome.step and same == found


def test_adapters_leave_the_weights_and_train_the_head(tmp_path: Path) -> None:
    given_ = settings(tmp_path, lora={"rank": 4, "targets": ["attention"]}, epochs=2)
    _, found = trained(given_, tmp_path / "run")
    model, start = load_reward_model(tmp_path / "run" / "model"), daybreak.load(given_.start)
    assert found is not None and found.accuracy > 0.6
    assert not torch.equal(model.scorer.head.weight, RewardModel.of(start).scorer.head.weight)
    for name, one in start.decoder.named_parameters():
        same = torch.equal(one, model.decoder.get_parameter(name))
        assert same == (".attention." not in name or name.endswith(".bias"))


def test_demonstrations_are_worth_nothing_on_average(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in written(tmp_path / "r.jsonl", 8).read_text().splitlines()]
    for row in rows[:3]:
        row["demonstration"] = "aaaa"
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned = job(speaking(), read_rankings(tmp_path / "r.jsonl"))
    learned.save(tmp_path / "model")
    model = load_reward_model(tmp_path / "model")
    shown = [one.demonstration.tokens for one in learned.examples if one.demonstration is not None]
    assert len(shown) == 3 and model.rewards(shown).mean().item() == pytest.approx(0, abs=1e-5)
    told = json.loads((tmp_path / "model" / "reward.json").read_text())
    assert told["shifted_on"] == "demonstrations" and told["held_out"] is None


def test_nothing_to_learn_from_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="no data is named; give a file of rankings"):
        job_of(speaking(), RewardSettings())
    given_ = settings(tmp_path, data={"file": str(written(tmp_path / "few.jsonl", 3)), "held_out": 0.999999})
    with pytest.raises(DaybreakError, match="nothing is left to learn from; set it lower"):
        job_of(speaking(), given_)


def test_the_defaults_are_the_paper_s() -> None:
    given_ = RewardSettings()
    assert (given_.epochs, given_.batch.examples, given_.optimizer.lr) == (1, 64, 9e-6)
    assert (given_.schedule.name, given_.schedule.floor) == ("cosine", 0.1)
    assert (given_.optimizer.beta1, given_.optimizer.beta2) == (0.9, 0.95)
