"""Best of n, and policies beside their reference."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.align.comparison import Comparison, Row, Setting, interval, table, write
from daybreak.align.encoding import answered
from daybreak.align.judging import Scorer, best_of, kl_bound, scorer_of
from daybreak.align.reward_model import RewardModel
from daybreak.data.rankings import Prompt
from daybreak.engine.settings import Sampling
from daybreak.errors import DaybreakError
from tests.unit.test_preference_training import louder
from tests.unit.tiny_models import speaking

PROMPTS: list[Prompt] = [f"Write letters {letter}:" for letter in "abcdefgh"]


def letters(answers: Sequence[tuple[Prompt, str]]) -> list[float]:
    """The lower the codes of its characters, the better."""
    return [-sum(map(ord, words)) / max(1, len(words)) for _, words in answers]


def test_the_best_is_the_one_that_is_worth_most() -> None:
    model = louder(speaking(), 3)
    how = Sampling(max_new_tokens=6, temperature=1.0, n=5, seed=0)
    found = best_of(model, letters, PROMPTS, how)
    assert [one.answer.prompt for one in found] == PROMPTS
    for one in found:
        assert len(one.rewards) == 5 and one.reward == max(one.rewards)
        assert letters([(one.answer.prompt, one.answer.words)]) == [one.reward]
    first = best_of(model, letters, PROMPTS, dataclasses.replace(how, n=1))
    assert [one.rewards[0] for one in first] == [one.rewards[0] for one in found]


def test_scorers_that_say_nothing_are_refused() -> None:
    model, how = speaking(), Sampling(max_new_tokens=3, temperature=1.0, n=2)
    for scorer in (lambda answers: [1.0], lambda answers: [float("nan")] * len(answers)):
        with pytest.raises(DaybreakError, match="one finite number for every answer"):
            best_of(model, scorer, PROMPTS, how)


def test_a_reward_model_scores_words() -> None:
    model = RewardModel.of(speaking())
    texts: list[tuple[Prompt, str]] = [("ab", "cd"), (({"role": "user", "content": "Hi"},), "Hello")]
    wanted = model.rewards([answered(model, *one).tokens for one in texts])
    assert list(scorer_of(model)(texts)) == pytest.approx(wanted.tolist())
    with pytest.raises(DaybreakError, match=r"cannot read an answer .*set --max-new-tokens lower"):
        scorer_of(model)([("ab", "x" * 99)])


def test_the_bound_is_the_divergence_of_answers_that_are_all_different() -> None:
    """Of many equally likely answers, all of different worth, the best of n has a density that can be
    summed."""
    size = 20000
    for n in (1, 2, 4, 16):
        shares = [((rank + 1) / size) ** n - (rank / size) ** n for rank in range(size)]
        exact = sum(share * math.log(share * size) for share in shares if share > 0)
        assert kl_bound(n) == pytest.approx(exact, abs=2e-3)
    few = [((rank + 1) / 3) ** 4 - (rank / 3) ** 4 for rank in range(3)]
    assert sum(share * math.log(share * 3) for share in few) < kl_bound(4)


@given(st.integers(1, 200), st.data())
def test_the_interval_holds_the_share(count: int, data: st.DataObject) -> None:
    won = data.draw(st.integers(0, 2 * count)) / 2
    low, high = interval(won, count)
    assert 0 <= low <= won / count <= high <= 1 and high - low < 2 * 1.96 * math.sqrt(0.25 / count) + 1e-9
    other = interval(count - won, count)
    assert (1 - other[1], 1 - other[0]) == pytest.approx((low, high))


def comparison(scorer: Scorer = letters, **setting: int) -> Comparison:
    return Comparison(louder(speaking(), 3), PROMPTS, scorer, Setting(**{"max_new_tokens": 6, **setting}))


def test_a_policy_like_the_reference_is_preferred_as_often_and_costs_nothing() -> None:
    found = comparison(samples=8)
    row = found.add("twin", louder(speaking(), 3))
    assert row.answers == 64 and row.low < 0.5 < row.high
    assert row.kl == pytest.approx(0, abs=1e-5) and row.per_nat is None
    own = [one["answer"] for one in found.answers]
    assert sum(one["answer"] != one["reference"] for one in found.answers) > 60 and len(own) == 64


def test_what_is_better_wins_and_costs_divergence() -> None:
    found = comparison(samples=4)
    other = found.add("other", louder(speaking(seed=5), 3))
    best = found.add_best_of(8)
    assert other.kl > 0.1 and not other.kl_is_bound and other.kl_k1 is not None
    assert best.win_rate > 0.7 and best.kl == kl_bound(8) and best.kl_is_bound and best.kl_k1 is None
    assert best.reward > best.reward_reference
    always = comparison(lambda answers: [float(len(answers) % 2)] * len(answers)).add("equal", speaking())
    assert always.win_rate == 0.5


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(DaybreakError, match="no prompts to compare answers to"):
        Comparison(speaking(), [], letters)
    with pytest.raises(DaybreakError, match="best of 1 is no choice"):
        comparison().add_best_of(1)
    with pytest.raises(DaybreakError, match="other has 300 tokens and the reference 257"):
        comparison().add("other", speaking(vocabulary=300))


def test_table_and_picture_are_written(tmp_path: Path) -> None:
    found = comparison()
    found.add("other", louder(speaking(seed=5), 3))
    found.add_best_of(4)
    write(tmp_path / "out", found, {"reference": "start"})
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"compare.md", "compare.json", "compare.png", "answers.jsonl"}
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| best of 4 |" in text and "at most 0.636" in text and text.count("\n") == 4
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert told["reference"] == "start" and [row["name"] for row in told["rows"]] == ["other", "best of 4"]
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 16 and answers[0]["prompt"] == PROMPTS[0]


def test_the_best_stands_first_in_the_table() -> None:
    plain = Row("a", 10, 0.4, 0.2, 0.6, 0.0, 0.0, 2.0, 1.9, False, 5.0, 1.0)
    head, first, second = table([plain, dataclasses.replace(plain, name="b", win_rate=0.9)])
    assert head[0] == "model" and (first[0], second[0]) == ("b", "a")
    assert first[1:5] == ["90.0%", "20.0% to 60.0%", "2.000", "0.200"] and second[4] == "-0.050"
