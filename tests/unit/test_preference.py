"""Losses of preferences: against a pair at a time in Python's numbers, and TRL's on the same batch."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import daybreak
from daybreak.model.decoder import Decoder
from daybreak.objectives import preference
from daybreak.objectives.batch import UNSCORED, Batch
from tests.reference import preferences as slow

NUMBERS = st.floats(-30, 30, allow_nan=False, width=32)


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[list[float], list[float]]]:
    """Scores and values of the answers of a few prompts, with ties among the values."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(2, 9))
        values = st.integers(0, draw(st.integers(0, 8))).map(float)
        found.append(
            (
                draw(st.lists(NUMBERS, min_size=count, max_size=count)),
                draw(st.lists(values, min_size=count, max_size=count)),
            )
        )
    return found


def padded(rows: list[list[float]], filler: float) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(prompts())
def test_the_ranking_loss_is_the_sum_over_pairs(rows: list[tuple[list[float], list[float]]]) -> None:
    scores = padded([scores for scores, _ in rows], float("nan"))
    values = padded([values for _, values in rows], 99.0)
    real = padded([[1.0] * len(scores) for scores, _ in rows], 0.0).bool()
    found = preference.ranking_losses(scores.requires_grad_(), values, real)
    assert found.tolist() == pytest.approx([slow.ranking(*row) for row in rows], rel=1e-9, abs=1e-12)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert not scores.grad[~real].any()


@pytest.mark.parametrize("count", range(2, 10))
def test_a_prompt_weighs_the_same_with_any_number_of_answers(count: int) -> None:
    """At equal scores every pair costs log 2, and so does their mean."""
    values = torch.arange(count)[None].float()
    found = preference.ranking_losses(torch.zeros(1, count), values)
    assert found.item() == pytest.approx(0.6931472)


def test_ties_say_nothing() -> None:
    scores = torch.tensor([[3.0, -2.0, 0.5]], requires_grad=True)
    found = preference.ranking_losses(scores, torch.ones(1, 3))
    assert found.item() == 0
    tied = preference.ranking_losses(scores, torch.tensor([[1.0, 0.0, 0.0]]))
    expected = (slow.log_sigmoid(5.0) + slow.log_sigmoid(2.5)) / -3
    assert tied.item() == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6),
    st.floats(0.01, 2),
    st.floats(0, 0.49),
)
def test_losses_of_pairs_are_the_formulas(
    rows: list[tuple[float, float, int, int]], beta: float, smoothing: float
) -> None:
    chosen, rejected, *lengths = torch.tensor(rows, dtype=torch.float64).unbind(1)
    dpo = preference.dpo_losses(chosen, rejected, beta, smoothing)
    ipo = preference.ipo_losses(chosen / lengths[0], rejected / lengths[1], beta)
    hinge = preference.hinge_losses(chosen, rejected, beta)
    for number, (better, worse, first, second) in enumerate(rows):
        assert dpo[number].item() == pytest.approx(slow.dpo(better, worse, beta, smoothing), abs=1e-9)
        assert ipo[number].item() == pytest.approx(slow.ipo(better, worse, beta, (first, second)), abs=1e-6)
        assert hinge[number].item() == pytest.approx(slow.hinge(better, worse, beta), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.booleans(), NUMBERS), min_size=1, max_size=8), st.floats(0.01, 1))
def test_kto_is_the_formula(rows: list[tuple[float, bool, float]], beta: float) -> None:
    ratios, liked, mismatched = (list(each) for each in zip(*rows, strict=True))
    reference = preference.kto_reference(torch.tensor(mismatched, dtype=torch.float64))
    found = preference.kto_losses(
        torch.tensor(ratios, dtype=torch.float64), torch.tensor(liked), reference, beta
    )
    assert found.tolist() == pytest.approx(slow.kto(ratios, liked, mismatched, beta), abs=1e-9)
    weighted = preference.kto_losses(
        torch.tensor(ratios, dtype=torch.float64), torch.tensor(liked), reference, beta, (2.0, 0.5)
    )
    assert weighted.tolist() == pytest.approx(
        [one * (2.0 if good else 0.5) for one, good in zip(found.tolist(), liked, strict=True)]
    )


# TRL ------------------------------------------------------------------------------------------------------


class Output(SimpleNamespace):
    """What TRL's trainers read of a model's output beside the log-probabilities: figures for the log."""

    def __init__(self, log_probs: Tensor) -> None:
        zeros = torch.zeros_like(log_probs)
        super().__init__(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


class Speaking(torch.nn.Module):
    """A decoder that answers as the models do that TRL has fitted with its fused head."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **rest: Any) -> Output:
        table = self.decoder.logits(input_ids, attention_mask).double().log_softmax(-1)
        wanted = labels[:, 1:]
        own = table[:, :-1].gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        return Output(own.masked_fill(wanted == UNSCORED, 0.0))


def trainer(policy: Decoder, frozen: Decoder, **settings: Any) -> Any:
    """The part of a trainer that its loss looks at."""
    alone = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda one: one, gather_for_metrics=lambda one: one
    )
    return SimpleNamespace(
        model=Speaking(policy),
        ref_model=Speaking(frozen),
        accelerator=alone,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


ROWS = 6


def models() -> tuple[Decoder, Decoder]:
    """A policy and a frozen start that differs from it."""
    shape: dict[str, Any] = dict(vocabulary=41, context=32, layers=2, width=16, heads=2)
    policy, frozen = (daybreak.create("gpt2", seed=seed, **shape).decoder for seed in (0, 1))
    for decoder in (policy, frozen):  # the draws of a fresh model are so small that all log-ratios are near 0
        with torch.no_grad():
            for one in decoder.parameters():
                one.mul_(4)
    return policy, frozen


def answers() -> tuple[Tensor, Tensor, Tensor]:
    """[rows, length] tokens, which are real, which belong to the answer; lengths of all kinds."""
    dice = random.Random(0)
    tokens = torch.randint(41, (ROWS, 14), generator=torch.Generator().manual_seed(0))
    real, answer = torch.zeros(ROWS, 14, dtype=torch.long), torch.zeros(ROWS, 14, dtype=torch.long)
    for row in range(ROWS):
        prompt, length = dice.randint(1, 6), dice.randint(1, 8)
        real[row, : prompt + length] = 1
        answer[row, prompt : prompt + length] = 1
    return tokens, real, answer


def batch_of(decoder: Decoder, tokens: Tensor, real: Tensor, answer: Tensor) -> Batch:
    targets = torch.full_like(tokens, UNSCORED)
    targets[:, :-1] = tokens[:, 1:].masked_fill(answer[:, 1:] == 0, UNSCORED)
    return Batch(decoder.reading(tokens, real), targets)


def gradients(decoder: Decoder, loss: Tensor) -> dict[str, Tensor]:
    decoder.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: one.grad.clone() for name, one in decoder.named_parameters() if one.grad is not None}


def assert_same(decoder: Decoder, ours: Tensor, theirs: Tensor) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)
    wanted = gradients(decoder, theirs)
    found = gradients(decoder, ours)
    assert found.keys() == wanted.keys()
    largest = max(one.abs().max().item() for one in wanted.values())
    assert largest > 1e-3
    for name, one in wanted.items():
        assert (found[name] - one).abs().max() < 1e-6 * max(1.0, largest), name


def ratios_of(policy: Decoder, frozen: Decoder, part: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        before = preference.answer_log_probs(frozen, batch_of(frozen, *part))
    return preference.answer_log_probs(policy, batch_of(policy, *part)) - before


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_pairs_cost_what_they_cost_in_trl(loss: str) -> None:
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="trl is not installed (extra dev)")
    policy, frozen = models()
    tokens, real, answer = answers()
    own = trainer(
        policy,
        frozen,
        loss_types=[loss],
        loss_weights=[1.0],
        beta=0.3,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        label_smoothing=0.1,
        use_weighting=False,
    )
    given = {"input_ids": tokens, "attention_mask": real, "completion_mask": answer}
    dpo_trainer.disable_gradient_checkpointing = lambda *rest: contextlib.nullcontext()
    theirs = dpo_trainer.DPOTrainer._compute_loss(own, own.model, given, False)
    chosen, rejected = ratios_of(policy, frozen, (tokens, real, answer)).chunk(2)
    lengths = answer.sum(1).chunk(2)
    plain = preference.dpo_losses(chosen, rejected, 0.3)
    turned = preference.dpo_losses(rejected, chosen, 0.3)
    torch.testing.assert_close(preference.dpo_losses(chosen, rejected, 0.3, 0.1), 0.9 * plain + 0.1 * turned)
    ours = {
        "sigmoid": plain,
        "ipo": preference.ipo_losses(chosen / lengths[0], rejected / lengths[1], 0.3),
        "hinge": preference.hinge_losses(chosen, rejected, 0.3),
        # Their smoothed loss is another one (arXiv 2403.00409, equation 8), of the same two parts.
        "robust": (0.9 * plain - 0.1 * turned) / 0.8,
    }[loss]
    assert_same(policy, ours.mean(), theirs)


def test_kto_costs_what_it_costs_in_trl() -> None:
    kto_trainer = pytest.importorskip("trl.trainer.kto_trainer", reason="trl is not installed (extra dev)")
    policy, frozen = models()
    tokens, real, answer = answers()
    turned = [part.roll(1, 0) for part in (tokens, real, answer)]  # any other texts will do
    own = trainer(
        policy,
        frozen,
        loss_type="kto",
        beta=0.3,
        calculate_KL=True,
        desirable_weight=1.2,
        undesirable_weight=0.7,
    )
    own._compute_kl_logps = lambda model, batch: kto_trainer.KTOTrainer._compute_kl_logps(own, model, batch)
    liked = torch.tensor([True, False, True, True, False, False])
    given = {
        **{"input_ids": tokens, "attention_mask": real, "completion_mask": answer, "label": liked},
        **dict(zip(("KL_input_ids", "KL_attention_mask", "KL_completion_mask"), turned, strict=True)),
    }
    kto_trainer.disable_gradient_checkpointing = lambda *rest: contextlib.nullcontext()
    theirs = kto_trainer.KTOTrainer._compute_loss(own, own.model, given, False)
    with torch.no_grad():
        reference = preference.kto_reference(ratios_of(policy, frozen, tuple(turned)))  # type: ignore[arg-type]
    assert reference.item() > 0.1  # so that it has a part in what follows
    ratios = ratios_of(policy, frozen, (tokens, real, answer))
    ours = preference.kto_losses(ratios, liked, reference, 0.3, (1.2, 0.7)).mean()
    assert_same(policy, ours, theirs)
