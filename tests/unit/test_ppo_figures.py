"""Each warning comes when what it warns of happens, and not before."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from daybreak.align.experience import Experience
from daybreak.align.learning import Learned
from daybreak.align.ppo_figures import WARNINGS, PpoWatch, figures_of
from daybreak.align.ppo_settings import PpoWatchSettings
from daybreak.align.rollout import Answer

FINE = {
    "kl": 3.0,
    "distinct": 0.9,
    "ended": 0.95,
    "entropy": 2.0,
    "clipped": 0.05,
    "explained_variance": 0.4,
    "length": 40.0,
    "score": 0.1,
    "score_deviation": 1.0,
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "kl": ({"kl": 31.0}, "31.0 nats from the reference, above 30"),
    "mismatch": ({"kl": -2.0}, r"is -0\.\d\d nats on average, which a policy's own answers cannot be"),
    "identical": ({"distinct": 0.1}, "only 10% of the answers differ"),
    "cut_off": ({"ended": 0.2}, "only 20% of the answers end by themselves"),
    "values": (
        {"explained_variance": -0.1},
        r"explain none of the returns \(explained variance -?0\.\d\d over 10",
    ),
    "length": (
        {"length": 60.0, "score": 1.0},
        r"from 0\.10 to 0\.\d\d while answers grew from 40 to 5\d tokens",
    ),
    "falling": (
        {"score": -0.4},
        r"fell from 0\.10 to -0\.\d\d in 10 .* raise update.minibatch, or lower",
    ),
    "entropy": ({"entropy": 0.2}, "entropy fell from 2.00 to 0.20"),
    "clipped": ({"clipped": 0.6}, "60% of the tokens are clipped"),
}


def watched(*stretches: tuple[int, dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """The first warning of each kind over stretches of so many iterations."""
    watch, found, number = PpoWatch(PpoWatchSettings()), dict[str, tuple[int, str]](), 0
    for count, figures in stretches:
        for _ in range(count):
            number += 1
            for kind, text in watch.look(number, {**FINE, **figures}).items():
                found.setdefault(kind, (number, text))
    return found


def test_a_good_run_warns_of_nothing() -> None:
    assert not watched((40, {}))
    assert set(WRONG) == set(WARNINGS)


@pytest.mark.parametrize("kind", WRONG)
def test_what_goes_wrong_is_said(kind: str) -> None:
    figures, said = WRONG[kind]
    found = watched((12, {}), (12, figures))
    assert set(found) == {kind}
    assert found[kind][0] > 12 and re.search(said, found[kind][1])
    assert ";" in found[kind][1] or ":" in found[kind][1]  # with what it means, or what to do


def test_longer_answers_or_higher_scores_alone_are_no_cause() -> None:
    assert not watched((12, {}), (12, {"length": 60.0}))
    assert not watched((12, {}), (12, {"score": 1.0}))


def test_text_that_is_mixed_in_may_be_why_the_score_falls() -> None:
    told = watched((12, {"mixed_loss": 2.0}), (12, {"mixed_loss": 2.0, "score": -0.4}))
    assert set(told) == {"falling"} and "mixed in; lower ptx.weight, or lower" in told["falling"][1]
    assert not watched((12, {}), (12, {"score": -0.1}))


def test_a_warning_comes_again_after_a_while_and_not_at_once() -> None:
    watch = PpoWatch(PpoWatchSettings(window=5))
    told = [n for n in range(1, 13) if watch.look(n, {**FINE, "kl": 99.0})]
    assert told == [1, 6, 11]


def test_it_remembers_over_a_restart() -> None:
    figures = [FINE] * 11 + [{**FINE, "length": 60.0, "score": 1.0, "explained_variance": None}] * 12
    whole = PpoWatch(PpoWatchSettings())
    expected = [whole.look(number, one) for number, one in enumerate(figures, 1)]
    first, second = PpoWatch(PpoWatchSettings()), PpoWatch(PpoWatchSettings())
    found = [first.look(number, one) for number, one in enumerate(figures[:15], 1)]
    second.restore(json.loads(json.dumps(first.state())))
    found += [second.look(number, one) for number, one in enumerate(figures[15:], 16)]
    assert found == expected and any(expected)


def test_figures_of_answers_worked_out_by_hand() -> None:
    answers = [Answer((1,), (5, 6), True), Answer((2,), (5, 6), True), Answer((3,), (7,), False)]
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    seen = Experience(
        answers=answers,
        mask=mask,
        logprobs=torch.tensor([[-1.0, -2.0], [-1.0, -1.0], [-3.0, 0.0]]),
        reference=torch.tensor([[-2.0, -2.0], [-1.0, -2.0], [-3.0, 0.0]]),
        entropies=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]),
        values=torch.zeros(3, 2),
        rewards=torch.tensor([1.0, 2.0, 9.0]),
        scores=torch.tensor([1.0, 2.0, -1.0]),
        advantages=torch.zeros(3, 2),
        returns=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]),
    )
    found = figures_of(
        seen, 0.5, [Learned(1.0, 2.0, 0.1, 0.2, 0.3, None), Learned(3.0, 4.0, 0.3, 0.4, 0.5, None)]
    )
    assert found["kl"] == pytest.approx(2 / 3) and found["kl_token"] == pytest.approx(2 / 5)
    assert found["kl_k3"] == pytest.approx(2 * (2.718281828**-1 - 1 + 1) / 3)
    assert found["score"] == pytest.approx(2 / 3) and found["reward"] == pytest.approx(4)
    assert found["objective"] == pytest.approx(2 / 3 - 0.5 * 2 / 3)
    assert found["score_quantiles"][2] == 1 and found["length_quantiles"] == [1.1, 1.5, 2, 2, 2]
    assert found["entropy"] == 3 and found["explained_variance"] == pytest.approx(0)
    assert (found["loss"], found["value_loss"], found["mixed_loss"]) == (2, 3, None)
    assert found["ended"] == pytest.approx(2 / 3) and found["distinct"] == pytest.approx(2 / 3)
