"""What a trained model writes: functions to be parsed, and completions to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from daybreak.language_model import LanguageModel
from daybreak.quickstart.functions import Function, complete, parses
from daybreak.text.tokenizer import Tokenizer

ROOM = 128
"""New tokens per function."""
TEMPERATURE = 0.5

Progress = Callable[[int, int], None]
Reads = Callable[[Sequence[int]], list[int]]
"""The ids of a beginning -> what the model reads to go on from there."""


@dataclass(frozen=True)
class Completion:
    """A prompt out of a validation file, and what the model made of it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Parsed:
    """Shares of functions that Python's parser accepts, 0 .. 1."""

    samples: int
    """Functions per share."""
    model: float
    """Written by the trained model."""
    untrained: float
    """Written by the same model before training: what chance gives."""
    real: float
    """The real functions, cut off where the model's were: the most that can be expected."""
    temperature: float = TEMPERATURE
    room: int = ROOM


def choose(model: LanguageModel, real: Sequence[Function], count: int) -> list[Function]:
    """The first `count` whose head and first line leave at least half of the model's context free."""
    half = model.architecture.context // 2
    return list(islice((one for one in real if len(_prompt(model, _opening(one))) <= half), count))


def write_functions(
    model: LanguageModel,
    heads: Sequence[str],
    seed: int,
    progress: Progress | None = None,
    reads: Reads = list,
) -> list[str]:
    """A function for every head, sampled at `TEMPERATURE` with room for `ROOM` tokens."""
    prompts = [reads(_prompt(model, head)) for head in heads]
    results = model.generate(
        prompts,
        max_new_tokens=ROOM,
        temperature=TEMPERATURE,
        seed=seed,
        batch_size=64,
        progress=progress,
    )
    return [
        complete(head, result.text, result.finish_reason == "stop")
        for head, result in zip(heads, results, strict=True)
    ]


def parsed(
    model: LanguageModel,
    untrained: LanguageModel,
    real: Sequence[Function],
    seed: int,
    progress: Progress | None = None,
    reads: Reads = list,
) -> Parsed | None:
    """The shares for functions with the heads of `real`; None if there are none."""
    if not real or model.tokenizer is None:
        return None
    heads = [function.head for function in real]
    return Parsed(
        samples=len(real),
        model=share_that_parses(write_functions(model, heads, seed, progress, reads)),
        untrained=share_that_parses(write_functions(untrained, heads, seed, reads=reads)),
        real=share_that_parses(shortened(model.tokenizer, real)),
    )


def shortened(tokenizer: Tokenizer, real: Sequence[Function]) -> list[str]:
    """The real functions, as far as they fit into `ROOM` tokens."""
    texts = []
    for function in real:
        ids = tokenizer.encode(function.body, bos=False)
        texts.append(complete(function.head, tokenizer.decode(ids[:ROOM]), len(ids) <= ROOM))
    return texts


def share_that_parses(texts: Sequence[str]) -> float:
    """0 .. 1"""
    return sum(map(parses, texts)) / len(texts)


def complete_prompts(
    model: LanguageModel, real: Sequence[Function], seed: int, reads: Reads = list
) -> list[Completion]:
    """Completions of functions whose head and first line are given; none for none."""
    if not real:
        return []
    heads = [_opening(function) for function in real]
    written = write_functions(model, heads, seed, reads=reads)
    return [Completion(head, text[len(head) :].rstrip()) for head, text in zip(heads, written, strict=True)]


def _opening(function: Function) -> str:
    # Without the line break at the end, which is one token with the indentation that follows it.
    return function.head + function.body.partition("\n")[0]


def _prompt(model: LanguageModel, head: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(head, bos=True, special=False)
