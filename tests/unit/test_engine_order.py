"""Whose turn it is: what a pass reads, who gives way, who is never kept waiting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from daybreak.engine.chooser import Chooser
from daybreak.engine.engine import Engine, EngineSettings
from daybreak.engine.sampling import stream_key
from daybreak.engine.settings import Sampling
from daybreak.engine.speculation import Draft, Worth
from daybreak.engine.step import Part
from tests.unit.test_adapter_engine import adapted
from tests.unit.test_engine import COMPILED, mixed, model_of, outcome, text, tokens_of
from tests.unit.test_speculation import Oracle, always


def noted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[Part]]:
    """The parts of every pass to come."""
    seen: list[list[Part]] = []
    read = engine._step.read

    def reading(parts: list[Part]) -> Tensor:
        seen.append(list(parts))
        return read(parts)

    monkeypatch.setattr(engine._step, "read", reading)
    return seen


def test_prompts_are_read_in_parts_and_nobody_who_writes_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model_of("gpt2"), EngineSettings(chunk=16, guesses=0))
    passes = noted(engine, monkeypatch)
    prompts = [tokens_of(1, 50), [7], tokens_of(2, 40), [8]]
    running = [engine.add(text(one, max_new_tokens=30), 0) for one in prompts]
    for number in range(1, 7):
        engine.step()
        # The two of one token are written from the first pass on, between the parts of the others.
        assert [len(running[place].text.tokens) for place in (1, 3)] == [number, number]
        assert sum(len(part.tokens) for part in passes[-1]) == 16
    assert [one.read for one in running[::2]] == [50 + len(running[0].text.tokens) - 1, 6 * 14 - 50 - 2]


def test_those_who_came_first_go_first() -> None:
    """However often some stand back, those that run and those that wait are in the order of their coming."""
    model = model_of("gpt_neo")
    layout = Engine(model).pages.layout
    engine = Engine(
        model, EngineSettings(batch_size=4, chunk=48, cache_memory=layout.bytes_for(200, 48) * 3 // 2)
    )
    arrived = [engine.add(one, 5) for one in mixed(16)]
    while engine.busy:
        first = engine.running[:1]
        back = engine.stood_back
        engine.step()
        order = [arrived.index(one) for one in (*engine.running, *engine.waiting)]
        assert order == sorted(order)
        assert not first or first[0] not in engine.waiting
        assert engine.stood_back >= back
    assert engine.stood_back > 3


def test_a_text_that_waits_can_be_cancelled() -> None:
    engine = Engine(model_of("gpt2"), EngineSettings(batch_size=1))
    one, other = (engine.add(text(tokens_of(n, 5)), 0) for n in (1, 2))
    engine.step()
    engine.cancel(other)
    while engine.busy:
        engine.step()
    assert len(one.text.tokens) == 20 and not other.text.tokens


def test_other_alternatives_of_a_known_prompt() -> None:
    model = model_of("gpt2")
    engine, prompt = Engine(model), tokens_of(4, 77)
    for alternatives in (1, 3, 0, 3):
        asked: dict[str, Any] = {"prompt_logprobs": alternatives, "max_new_tokens": 0}
        assert outcome(engine, [text(prompt, **asked)]) == outcome(Engine(model), [text(prompt, **asked)])


def test_random_numbers_are_of_one_seed_prompt_and_sample() -> None:
    given = [
        (seed, prompt, n) for seed in (0, 1, 12) for prompt in ([1], [2], [1, 2], [12]) for n in (0, 1, 2)
    ]
    assert len({stream_key(*one) for one in given}) == len(given)


def chooser(**given: Any) -> Chooser:
    sampling = Sampling(**given)
    return Chooser(sampling, [[1]], [7], live=1000, vocabulary=1000, endings=[], device=torch.device("cpu"))


def test_each_step_has_random_numbers_of_its_own() -> None:
    drawing = chooser(temperature=1.0)
    assert len({drawing.choose(torch.zeros(1, 1000), step)[0] for step in range(50)}) > 40


def test_presence_counts_once_and_frequency_each_time() -> None:
    logits = torch.zeros(1, 1000).index_fill(1, torch.tensor([3]), 1.5)
    for given, times in (({"presence_penalty": 1.0}, 9), ({"frequency_penalty": 1.0}, 2)):
        choosing = chooser(temperature=0.0, **given)
        assert [choosing.choose(logits, step)[0] for step in range(9)].count(3) == times


@COMPILED
def test_guesses_end_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of positions has no rows beyond it."""
    always(monkeypatch)
    model, prompt = model_of("gpt2", context=32), tokens_of(3, 20)
    plain = outcome(Engine(model, EngineSettings(guesses=0)), [text(prompt, max_new_tokens=13)])[0]
    engine = Engine(model, EngineSettings(guesses=4))  # the last time there is room for one of them
    engine._guesser = Oracle({tuple(prompt): [*plain.tokens, 1, 2, 3, 4, 5, 6]}, None)
    running = engine.add(text(prompt, max_new_tokens=13), 5)
    while engine.busy:
        engine.step()
    assert running.text.tokens == plain.tokens and running.accepted == running.proposed > 5


@COMPILED
def test_nothing_is_guessed_for_a_text_with_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums depend on what is read beside a token, so guesses could change it."""
    always(monkeypatch)
    engine = Engine(adapted())
    running = []
    for adapter in ("one", None):
        one = text([5, 6, 7, 8] * 5, max_new_tokens=30)
        one.adapter = adapter
        running.append(engine.add(one, 0))
    while engine.busy:
        engine.step()
    assert running[0].proposed == 0 < running[1].proposed


@COMPILED
def test_a_draft_that_was_wrong_guesses_on_from_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing was guessed for some passes."""
    passes = itertools.count()
    monkeypatch.setattr(Worth, "decide", lambda self: next(passes) % 4 == 0)
    model, draft = model_of("gpt_neox", layers=3), model_of("gpt_neox", layers=1)
    engine = Engine(model, None, draft)
    guesser = engine._guesser
    assert isinstance(guesser, Draft)
    guess, wrong = guesser.guess, []

    def compared(texts: Any, most: int) -> list[list[int]]:
        found = guess(texts, most)
        assert found == Draft(model, draft, "float32", 64).guess(texts, most)
        wrong.append(1)
        return found

    monkeypatch.setattr(guesser, "guess", compared)
    running = [engine.add(text(tokens_of(n, 9), temperature=1.0), 1) for n in range(3)]
    while engine.busy:
        engine.step()
    assert len(wrong) > 3 and sum(one.accepted for one in running) < sum(one.proposed for one in running)


@COMPILED
def test_what_is_timed_is_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = itertools.count()
    monkeypatch.setattr(Worth, "decide", lambda self: next(passes) % 2 == 0)
    engine = Engine(model_of("gpt2"))
    parts, told = noted(engine, monkeypatch), []
    monkeypatch.setattr(engine._worth, "learn", lambda *figures: told.append(figures[:2]))
    running = engine.add(text([5, 6, 7, 8] * 5, max_new_tokens=30), 0)
    engine.step()  # the prompt
    lengths = [0]
    while engine.busy:
        lengths.append(len(running.text.tokens))
        engine.step()
    lengths.append(len(running.text.tokens))
    assert [guessed for guessed, _ in told] == [len(own[0].tokens) > 1 for own in parts[1:]]
    assert [count for _, count in told] == [b - a for a, b in itertools.pairwise(lengths[1:])]
    assert {guessed for guessed, _ in told} == {True, False}


def test_nothing_is_kept_of_texts_that_are_gone() -> None:
    engine = Engine(model_of("gpt2"))
    outcome(engine, [text([5, 6, 7, 8] * 5)])
    left = engine.add(text([5, 6, 7, 8] * 5), 0)
    for _ in range(3):
        engine.step()
    engine.cancel(left)
    assert engine._guesser is None or not vars(engine._guesser)["_places"]


def test_half_of_what_is_free_is_for_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daybreak.engine.engine.available", lambda device: 12 << 20)
    assert Engine(model_of("gpt2")).pages.limit == 6 << 20
    assert Engine(model_of("gpt2"), EngineSettings(cache_memory=1 << 20)).pages.limit == 1 << 20


def test_a_slower_way_is_left_after_some_tries() -> None:
    worth = Worth()
    taken = []
    for _ in range(200):
        taken.append(worth.decide())
        worth.learn(taken[-1], 1, 2.0 if taken[-1] else 1.0)
    assert sum(taken) < 10
