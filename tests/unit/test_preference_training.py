"""Policies that learn from pairs: the reference, the losses on a model, the divergence, and runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

import daybreak
from daybreak import settings as reading
from daybreak.align import sampling
from daybreak.align.encoding import Answered, all_compared, log_probs
from daybreak.align.kto import KtoJob, Opinion, kto_job, mismatched
from daybreak.align.policy_job import Referred
from daybreak.align.preference_settings import KlSettings, PreferenceLoss, PreferenceSettings
from daybreak.align.preference_training import Pair, PairsJob, job_of, pairs_of, referred
from daybreak.data.rankings import read_rankings
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from daybreak.language_model import LanguageModel
from daybreak.model.adapters import add_lora, disabled
from daybreak.model.lora_settings import LoraSettings
from daybreak.train.precision import products
from daybreak.train.tuning import Scored
from daybreak.train.tuning_run import TuningOutcome, tune
from tests.reference import preferences as slow
from tests.unit.test_chat import with_template
from tests.unit.tiny_models import speaking
from tests.unit.tiny_rankings import written
from tests.unit.tiny_run import Silent, steps


def louder(model: LanguageModel, factor: float = 3) -> LanguageModel:
    """The draws of a fresh model are so small that it has no opinions."""
    with torch.no_grad():
        for one in model.decoder.parameters():
            one.mul_(factor)
    return model


def pairs(folder: Path, count: int = 6) -> list[tuple[Answered, Answered]]:
    texts, _ = all_compared(speaking(), read_rankings(written(folder / "r.jsonl", count, most=3)))
    return pairs_of(texts)


def job(
    examples: Sequence[Pair], loss: PreferenceLoss | None = None, model: LanguageModel | None = None
) -> PairsJob:
    given_ = PreferenceSettings(loss=loss or PreferenceLoss(), kl=KlSettings(0))
    return PairsJob(model or louder(speaking(seed=1)), None, examples, [], given_)


def test_the_reference_reads_every_text_once(tmp_path: Path) -> None:
    reference, both = louder(speaking()).decoder, pairs(tmp_path)
    found = referred(reference, both)
    for one, (chosen, rejected) in zip(found, both, strict=True):
        assert (one.chosen.text, one.rejected.text) == (chosen, rejected)
        wanted = log_probs(reference, [chosen, rejected])
        assert one.chosen.reference == pytest.approx(wanted[0].item(), abs=1e-4)
        assert one.rejected.reference == pytest.approx(wanted[1].item(), abs=1e-4)


LOSSES = [
    PreferenceLoss("dpo", 0.3),
    PreferenceLoss("dpo", 0.3, smoothing=0.2),
    PreferenceLoss("hinge", 0.3),
    PreferenceLoss("ipo", 0.3),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name} {loss.smoothing}")
def test_the_job_s_loss_is_the_formula(loss: PreferenceLoss, tmp_path: Path) -> None:
    examples = referred(louder(speaking()).decoder, pairs(tmp_path))
    own = job(examples, loss)
    found = own.loss(examples)
    ratios = []
    for one in examples:
        texts = [one.chosen, one.rejected]
        now = log_probs(own.model.decoder, [each.text for each in texts]).tolist()
        ratios.append([value - each.reference for value, each in zip(now, texts, strict=True)])
    if loss.name == "ipo":
        lengths = [(one.chosen.text.length, one.rejected.text.length) for one in examples]
        wanted = sum(slow.ipo(a, b, 0.3, own) for (a, b), own in zip(ratios, lengths, strict=True))
    elif loss.name == "hinge":
        wanted = sum(slow.hinge(a, b, 0.3) for a, b in ratios)
    else:
        wanted = sum(slow.dpo(a, b, 0.3, loss.smoothing) for a, b in ratios)
    assert found.loss.item() == pytest.approx(wanted, rel=1e-4) and found.count == len(examples)
    accuracy = sum(each[0] > each[1] for each in ratios)
    assert float(found.figures["accuracy"]) == accuracy
    margin = sum(0.3 * (each[0] - each[1]) for each in ratios)
    assert float(found.figures["margin"]) == pytest.approx(margin, rel=1e-3, abs=1e-3)
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert own.model.decoder.tokens.weight.grad is not None


def test_at_the_start_nothing_is_preferred(tmp_path: Path) -> None:
    model = louder(speaking())
    examples = referred(model.decoder, pairs(tmp_path))
    found = job(examples, model=model).loss(examples)
    assert found.loss.item() / found.count == pytest.approx(0.6931472, abs=1e-4)


def test_the_kto_job_s_loss_is_the_formula(tmp_path: Path) -> None:
    given_ = settings(tmp_path, loss={"name": "kto", "beta": 0.3, "liked": 1.5}, data={"held_out": 0.0})
    reference = daybreak.load(given_.start).decoder
    own = kto_job(louder(speaking(seed=1)), reference, given_)
    part = own.examples[:7]
    assert len({one.liked for one in part}) == 2

    def ratios(texts: list[Referred]) -> list[float]:
        now = log_probs(own.model.decoder, [one.text for one in texts])
        before = log_probs(reference, [one.text for one in texts])
        return (now - before).tolist()

    liked = [one.liked for one in part]
    plain = slow.kto(ratios([one.own for one in part]), liked, ratios([one.mismatched for one in part]), 0.3)
    found = own.loss(part)
    assert found.loss.item() == pytest.approx(
        sum(one * (1.5 if good else 1.0) for one, good in zip(plain, liked, strict=True)), rel=1e-4
    )
    assert found.count == 7 and float(found.figures["z0"]) >= 0
    assert float(found.figures["accuracy"]) == sum(one < 0.5 for one in plain)


@how(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(1, 5)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 9),
)
def test_mismatched_answers_are_of_other_prompts(rows: list[tuple[list[int], int]], seed: int) -> None:
    texts = [
        Answered((*prompt, *[100 + number] * length), len(prompt))
        for number, (prompt, length) in enumerate(rows)
    ]
    prompts = {tuple(prompt) for prompt, _ in rows}
    for own, other in zip(texts, mismatched(texts, seed, 6), strict=True):
        assert other.prompt == own.prompt and other.length >= 1
        assert len(other.tokens) <= 6 or len(prompts) == 1
        assert other.tokens[: other.prompt] == own.tokens[: own.prompt]
        whose = rows[other.answer[0] - 100][0]
        assert (tuple(whose) != own.tokens[: own.prompt]) == (len(prompts) > 1)


def test_mismatched_answers_of_many_texts_come_at_once() -> None:
    texts = [Answered((*range(50), number), 50) for number in range(20_000)]
    assert mismatched(texts, 0, 96) == texts
    other = Answered((7, 8), 1)
    found = mismatched([*texts, other], 0, 96)
    assert found[-1].tokens[:1] == (7,) and all(one.answer == (8,) for one in found[:-1])


def test_the_reference_reads_in_the_run_s_dtype(tmp_path: Path) -> None:
    """What rounding alone does to a log-probability is no preference."""
    given_ = settings(tmp_path, dtype="bfloat16", data={"held_out": 0})
    own = job_of(daybreak.load(given_.start), daybreak.load(given_.start), given_)
    assert isinstance(own, PairsJob)
    with products(torch.bfloat16), torch.no_grad():
        ratios = own.ratios([one.chosen for one in own.examples])
    assert ratios.abs().max() < 1e-4


def test_single_answers_will_do_for_kto(tmp_path: Path) -> None:
    from daybreak.data.rankings import append_rating

    for number in range(12):
        asked = [{"role": "user", "content": f"q{number}"}]
        append_rating(
            tmp_path / "kept.jsonl", asked, ["aa" if number % 2 else "bb"], [1 if number % 2 else -1]
        )
    given_ = settings(tmp_path, data={"file": str(tmp_path / "kept.jsonl")}, loss={"name": "kto"}, epochs=6)
    outcome = trained(given_, tmp_path / "run")
    told = steps(tmp_path / "run")
    assert outcome.ending == "finished" and told[max(told)]["loss"] < told[1]["loss"]
    policy, start = daybreak.load(tmp_path / "run" / "model"), daybreak.load(given_.start)
    assert policy.tokenizer is not None and "chat_template.jinja" in policy.tokenizer.files
    own = job_of(start, start, given_)
    assert isinstance(own, KtoJob)
    now = log_probs(policy.decoder, [one.own.text for one in own.examples]).tolist()
    gained = [(value - one.own.reference, one.liked) for value, one in zip(now, own.examples, strict=True)]
    liked = [gain for gain, good in gained if good]
    others = [gain for gain, good in gained if not good]
    assert sum(liked) / len(liked) > sum(others) / len(others)


def test_without_its_adapters_the_model_is_the_reference(tmp_path: Path) -> None:
    model = louder(speaking())
    examples = referred(model.decoder, pairs(tmp_path))
    add_lora(model.decoder, LoraSettings(rank=2))
    own = job(examples, model=model)
    own.prompts = ["Write letters abc:"]
    optimizer = torch.optim.SGD([one for one in model.decoder.parameters() if one.requires_grad], lr=0.5)
    before = own.loss(examples)
    assert before.loss.item() / before.count == pytest.approx(0.6931472, abs=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        own.loss(examples).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert own.loss(examples).loss < before.loss
    with disabled(model.decoder):
        again = own.loss(examples)
    assert again.loss.item() == pytest.approx(before.loss.item(), rel=1e-5)
    assert own.divergence()["kl_k3"] > 0


# What it writes -------------------------------------------------------------------------------------------


def test_answers_are_written_with_the_model_s_log_probs() -> None:
    model = louder(speaking(), 5)
    prompts = ["ab", ({"role": "user", "content": "Hi"},), "abc"]
    found = sampling.write(model, prompts, Sampling(max_new_tokens=6, temperature=1.0, n=2, seed=3))
    assert [one.prompt for one in found] == [prompt for prompt in prompts for _ in range(2)]
    for one in found:
        wanted = log_probs(model.decoder, [one.text]).item()
        assert sum(one.log_probs) == pytest.approx(wanted, abs=1e-3)
        assert one.ended == (one.text.length < 6)
    again = sampling.write(model, prompts[2:], Sampling(max_new_tokens=6, temperature=1.0, n=2, seed=3))
    assert [one.text for one in again] == [one.text for one in found[4:]]
    assert sampling.write(model, [], Sampling()) == []


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_the_divergence_is_not_measured_on_prompts_without_room(loss: str, tmp_path: Path) -> None:
    """Rankings that are left out have prompts, too; and many pairs may have the same one."""
    file = tmp_path / "r.jsonl"
    rows = [
        {"prompt": [{"role": "user", "content": text}], "chosen": "a", "rejected": answer}
        for text in ("x" * 200, "y", "y", "z")
        for answer in ("b", "c")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"file": str(file), "held_out": 0, "longer": "leave_out"}
    given_ = reading.build(PreferenceSettings, {"data": data, "loss": {"name": loss}, "device": "cpu"})
    own = job_of(speaking(), speaking(), given_)
    assert [prompt[0]["content"] for prompt in own.prompts if isinstance(prompt, tuple)] == ["y", "z"]
    assert own.divergence()["answer_tokens"] > 0


def test_the_divergence_is_the_mean_over_the_policy_s_own_answers() -> None:
    policy, reference = louder(speaking(), 4), louder(speaking(seed=1), 4)
    written_ = sampling.write(policy, ["ab", "cde"], Sampling(max_new_tokens=5, temperature=1.0, n=8, seed=0))
    found = sampling.kl(written_, reference.decoder, batch=5)
    texts = [one.text for one in written_]
    ours, theirs = log_probs(policy.decoder, texts), log_probs(reference.decoder, texts)
    assert found.k1 == pytest.approx((ours - theirs).mean().item(), abs=1e-3)
    assert found.k3 > 0.1 and found.tokens == pytest.approx(sum(one.length for one in texts) / 16)
    itself = sampling.kl(written_, policy.decoder)
    assert abs(itself.k1) < 1e-4 and 0 <= itself.k3 < 1e-6


def test_an_answer_that_fills_the_context_is_read() -> None:
    """Its last token may stand one place behind the table of positions, as nothing is read there."""
    model = louder(speaking(), 4)
    found = sampling.write(model, ["x" * 95, "ab"], Sampling(max_new_tokens=64, temperature=1.0, seed=0))
    assert len(found[0].text.tokens) == 97
    assert abs(sampling.kl(found, model.decoder).k1) < 1e-3
    with torch.no_grad():
        table = model.logits(torch.tensor([found[0].text.tokens[:-1]]))[0].log_softmax(-1)
    places = range(95, 97)
    wanted = sum(table[place - 1, found[0].text.tokens[place]].item() for place in places)
    assert log_probs(model.decoder, [one.text for one in found])[0].item() == pytest.approx(wanted, abs=1e-3)


def test_both_estimates_are_of_the_same_divergence() -> None:
    """On one token everything can be summed: the estimates over many samples come near it."""
    policy, reference = louder(speaking(), 6), louder(speaking(seed=1), 6)
    written_ = sampling.write(policy, ["ab"], Sampling(max_new_tokens=1, temperature=1.0, n=600, seed=0))
    ids = torch.tensor([written_[0].text.tokens[:2]])
    ours, theirs = (model.logits(ids)[0, -1].double().log_softmax(-1) for model in (policy, reference))
    exact = (ours.exp() * (ours - theirs)).sum().item()
    found = sampling.kl(written_, reference.decoder)
    assert exact > 0.1
    assert found.k1 == pytest.approx(exact, rel=0.2) and found.k3 == pytest.approx(exact, rel=0.2)


def test_a_template_s_mark_ends_an_answer() -> None:
    model = with_template()
    assert model.tokenizer is not None
    end = model.tokenizer.specials["<|end|>"]
    with torch.no_grad():
        model.decoder.final_norm.bias.copy_(5000 * model.decoder.tokens.weight[end])  # type: ignore[union-attr]
    asked = ({"role": "user", "content": "Hi"},)
    found = sampling.write(model, [asked], Sampling(max_new_tokens=6, temperature=1.0, seed=0))[0]
    assert (found.text.answer, found.words, found.ended) == ((end,), "", True)


# Runs -----------------------------------------------------------------------------------------------------


def settings(folder: Path, **tree: Any) -> PreferenceSettings:
    if not (folder / "start").exists():
        louder(speaking()).save(folder / "start")
    base = {
        "start": str(folder / "start"),
        "data": {"file": str(written(folder / "r.jsonl", 40, most=3)), "held_out": 0.2},
        "optimizer": {"lr": 3e-4},
        "schedule": {"warmup": "2 steps"},
        "batch": {"examples": 8, "micro": 4},
        "kl": {"prompts": 3, "tokens": 5},
        "epochs": 2,
        "device": "cpu",
    }
    return reading.build(PreferenceSettings, reading.merged(base, tree))


def trained(given_: PreferenceSettings, folder: Path) -> TuningOutcome:
    reference = None if given_.lora is not None else daybreak.load(given_.start)
    own = job_of(daybreak.load(given_.start), reference, given_)
    return tune(own, given_, folder, Silent())


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto"])
def test_a_run_learns_what_people_preferred(loss: str, tmp_path: Path) -> None:
    given_ = settings(tmp_path, loss={"name": loss})
    outcome = trained(given_, tmp_path / "run")
    assert outcome.ending == "finished"
    told = steps(tmp_path / "run")
    first, last = told[1], told[max(told)]
    assert last["loss"] < first["loss"]
    figures = {"accuracy", "gain", "z0"} if loss == "kto" else {"accuracy", "margin", "reward_chosen"}
    assert figures <= set(last)
    assert outcome.scores["gain" if loss == "kto" else "margin"] > 0 and outcome.scores["kl_k3"] >= 0
    policy = daybreak.load(tmp_path / "run" / "model")
    assert not torch.equal(policy.decoder.tokens.weight, daybreak.load(given_.start).decoder.tokens.weight)


def test_adapters_need_no_second_model(tmp_path: Path) -> None:
    given_ = settings(tmp_path, lora={"rank": 4}, optimizer={"lr": 3e-3})
    outcome = trained(given_, tmp_path / "run")
    told = steps(tmp_path / "run")
    assert told[1]["loss"] == pytest.approx(0.6931472, abs=1e-4)  # they begin as nothing
    assert told[max(told)]["loss"] < told[1]["loss"] and outcome.scores["kl_k3"] > 0
    start, policy = daybreak.load(given_.start), daybreak.load(tmp_path / "run" / "model")
    assert torch.equal(policy.decoder.tokens.weight, start.decoder.tokens.weight)
    written_ = sampling.write(policy, ["ab"] * 3, Sampling(max_new_tokens=5, temperature=1.0, seed=0))
    assert sampling.kl(written_, start.decoder).k3 > 0


class Killed(BaseException):
    """As if the process had ended."""


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_ = settings(tmp_path, loss={"name": "kto"}, checkpoints={"every": 3}, steps=8)
    trained(given_, tmp_path / "whole")
    plain, left = KtoJob.loss, [11]

    def killed(self: KtoJob, part: Sequence[Opinion]) -> Scored:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return plain(self, part)

    monkeypatch.setattr(KtoJob, "loss", killed)
    with pytest.raises(Killed):
        trained(given_, tmp_path / "killed")
    monkeypatch.setattr(KtoJob, "loss", plain)
    trained(given_, tmp_path / "killed")
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")
    one, other = (daybreak.load(tmp_path / name / "model").decoder for name in ("whole", "killed"))
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_settings_that_make_no_sense_are_refused() -> None:
    for tree, told in (
        ({"beta": 0.0}, "loss.beta is 0.0"),
        ({"smoothing": 0.5}, "loss.smoothing is 0.5"),
        ({"name": "ipo", "smoothing": 0.1}, "loss.smoothing is dpo's"),
    ):
        with pytest.raises(DaybreakError, match=told):
            reading.build(PreferenceSettings, {"loss": tree})
    for more, told in (
        ({"data": {"held_out": 1.0}}, r"data.held_out is 1.0"),
        ({"data": {"context": 0}}, r"data.context is 0; it must be at least 2"),
        ({"kl": {"prompts": -1}}, r"kl.prompts is -1"),
        ({"kl": {"tokens": 0}}, r"kl.tokens is 0"),
        ({"optimizer": {"clip": 0}}, r"optimizer.clip is 0.*null to clip nothing"),
    ):
        with pytest.raises(DaybreakError, match=told):
            reading.build(PreferenceSettings, more)


def test_the_defaults_are_the_authors_() -> None:
    given_ = PreferenceSettings()
    assert (given_.optimizer.name, given_.optimizer.lr, given_.optimizer.clip) == ("rmsprop", 5e-7, 10)
    assert (given_.schedule.name, given_.schedule.warmup, given_.batch.examples) == (
        "constant",
        "150 steps",
        64,
    )
    assert (given_.loss.beta, given_.epochs) == (0.1, 1)
