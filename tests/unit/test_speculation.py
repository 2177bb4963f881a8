"""Guesses that the model checks: the text is the one without them, to the last bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daybreak import LanguageModel
from daybreak.engine.engine import Engine, EngineSettings
from daybreak.engine.generate import generate
from daybreak.engine.running import Running
from daybreak.engine.speculation import NGRAMS, Lookup, Worth
from daybreak.errors import DaybreakError
from tests.unit.test_engine import COMPILED, mixed, model_of, outcome, text, tokens_of


class Oracle:
    """Guesses that are right as often as is asked for: what was written before, with some tokens changed."""

    def __init__(self, written: dict[tuple[int, ...], list[int]], wrong_every: int | None) -> None:
        self.written, self.wrong_every, self.asked = written, wrong_every, 0

    def guess(self, texts: Sequence[Running], most: int) -> list[list[int]]:
        found = []
        for one in texts:
            after = self.written[one.text.prompt.tokens][len(one.text.tokens) :][:most]
            self.asked += 1
            wrong = self.asked % self.wrong_every if self.wrong_every else -1
            found.append([token if place != wrong else token + 1 for place, token in enumerate(after)])
        return found

    def forget(self, text: Running) -> None:
        pass


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worth, "decide", lambda self: True)


@COMPILED
@pytest.mark.parametrize("family", ["gpt_neo", "bloom"])
def test_guesses_do_not_change_a_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled, with penalties, log-probabilities and little memory; guesses right and wrong."""
    always(monkeypatch)
    model = model_of(family)
    plain = outcome(Engine(model, EngineSettings(guesses=0)), mixed(20))
    written = {tuple(one.prompt_tokens): one.tokens for one in plain}
    for wrong_every in (2, 3, None):
        limit = Engine(model).pages.layout.bytes_for(200, 64) * 2
        engine = Engine(model, EngineSettings(batch_size=7, chunk=64, cache_memory=limit, guesses=4))
        engine._guesser = Oracle(written, wrong_every)
        assert outcome(engine, mixed(20)) == plain
    running = engine.add(text(tokens_of(1, 30), max_new_tokens=20), 5)
    engine._guesser = Oracle({tuple(tokens_of(1, 30)): [-1] * 20}, None)
    with pytest.raises(IndexError):  # an oracle that guesses what is no token: the guesses really are read
        while engine.busy:
            engine.step()
    assert running.proposed


@COMPILED
def test_right_guesses_save_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    model = model_of("gpt2")
    plain = Engine(model, EngineSettings(guesses=0))
    one = outcome(plain, [text(tokens_of(2, 20), max_new_tokens=60)])[0]
    engine = Engine(model, EngineSettings(guesses=5))
    engine._guesser = Oracle({tuple(tokens_of(2, 20)): one.tokens}, None)
    assert outcome(engine, [text(tokens_of(2, 20), max_new_tokens=60)])[0] == one
    assert plain.steps == 60 and engine.steps == 11  # the prompt, and 59 tokens by six


@COMPILED
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    model = model_of("gpt_neox", layers=3)
    same, other = model_of("gpt_neox", layers=3), model_of("gpt_neox", layers=1)
    prompts = [tokens_of(number, 5 + 9 * number) for number in range(6)]
    asked: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_new_tokens": 40, "ignore_eos": True}
    plain = generate(model, prompts, engine=Engine(model, EngineSettings(guesses=0)), **asked)
    for draft, least in ((same, 0.9), (other, 0.0)):
        engine = Engine(model, EngineSettings(batch_size=3), draft)
        seen = notice(engine, monkeypatch)
        assert generate(model, prompts, engine=engine, **asked) == plain
        # A draft that is the model itself is always right, sampling included: it draws the same numbers.
        assert sum(one.accepted for one in seen) >= least * sum(one.proposed for one in seen)
        assert sum(one.proposed for one in seen) > 100
        pages = engine._guesser._pages  # type: ignore[union-attr]
        assert pages.used == pages.idle


def notice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Running]:
    """All texts that it will be given."""
    seen: list[Running] = []
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda *given: seen.append(one := add(*given)) or one)
    return seen


def test_other_tokens_are_refused() -> None:
    with pytest.raises(DaybreakError, match="211"):
        Engine(model_of("gpt2"), None, model_of("gpt2", vocabulary=300))


@COMPILED
def test_samples_have_the_models_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over pairs of tokens: 2000 samples with guesses beside the exact probabilities."""
    always(monkeypatch)
    model = model_of("gpt2", vocabulary=6)
    draft = model_of("gpt2", vocabulary=6, layers=1)
    count = 2000
    engine = Engine(model, EngineSettings(batch_size=500), draft)
    samples = generate(
        model, [1, 2, 3], n=count, temperature=1.0, seed=9, max_new_tokens=3, ignore_eos=True, engine=engine
    )
    found = Counter(tuple(one.tokens[1:]) for one in samples)
    exact = pair_probabilities(model)
    square = sum((found[pair] - count * p) ** 2 / (count * p) for pair, p in exact.items() if count * p > 5)
    kept = sum(count * p > 5 for p in exact.values())
    assert kept > 12
    assert square < kept + 4 * (2 * kept) ** 0.5  # four standard deviations


def pair_probabilities(model: LanguageModel) -> dict[tuple[int, int], float]:
    """Of the second and third new token."""
    found: Counter[tuple[int, int]] = Counter()
    for first in range(6):
        for second in range(6):
            logits = model.logits(torch.tensor([[1, 2, 3, first, second]]))[0].double().softmax(-1)
            for third in range(6):
                found[second, third] += float(logits[2, first] * logits[3, second] * logits[4, third])
    return dict(found)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_lookup_finds_what_a_search_finds(tokens: list[int], most: int) -> None:
    model = model_of("gpt2")
    lookup, engine = Lookup(), Engine(model)
    running = engine.add(text([1]), 0)
    for end in range(1, len(tokens) + 1):
        running.tokens = tokens[:end]
        assert lookup.guess([running], most) == [searched(tokens[:end], most)]


def searched(tokens: list[int], most: int) -> list[int]:
    for size in NGRAMS:
        for place in range(len(tokens) - size - 1, -1, -1):
            if tokens[place : place + size] == tokens[-size:]:
                return tokens[place + size : place + size + most]
    return []


def test_the_faster_way_is_kept() -> None:
    for fast in (True, False):
        worth, taken = Worth(), Counter[bool]()
        for _ in range(500):
            guess = worth.decide()
            taken[guess] += 1
            worth.learn(guess, 1, 0.5 if guess == fast else 1.0)
        assert taken[fast] > 450
        assert taken[not fast] > 4  # tried again: things change
