"""Answers that a model writes to prompts, with their log-probabilities, and how far these are from another
model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from daybreak.align.encoding import Answered, batch_of, prompt_ids
from daybreak.data.rankings import Prompt
from daybreak.engine import chat
from daybreak.engine.continuation import Result
from daybreak.engine.engine import Engine, EngineSettings
from daybreak.engine.generate import generate
from daybreak.engine.prompts import Model
from daybreak.engine.settings import Sampling
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import token_losses
from daybreak.objectives.policy import kl_k1, kl_k3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """One answer of a model."""

    prompt: Prompt
    words: str
    """What it says, without the token or words that ended it."""
    text: Answered
    """Prompt and answer as token ids, what ended it included."""
    log_probs: tuple[float, ...]
    """Of the answer's tokens, by the engine that wrote them, at temperature 1."""
    ended: bool
    """By itself, and not for want of room."""


def write(
    model: Model,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[Written]:
    """`sampling.n` answers to every prompt, in the order of the prompts.

    What is drawn for a prompt depends on the seed, its own tokens and the number of the answer alone. Nothing
    that a generation_config.json says plays a part.
    """
    if not prompts:
        return []
    engine = Engine(model, EngineSettings(batch_size=batch_size))
    found: dict[int, list[Written]] = {}
    done, total = 0, len(prompts) * sampling.n

    def count(finished: int, of: int) -> None:
        if progress is not None:
            progress(done + finished, total)

    for spoken in (False, True):  # what ends an answer differs
        places = [at for at, prompt in enumerate(prompts) if isinstance(prompt, tuple) == spoken]
        if not places:
            continue
        ids = [prompt_ids(model, prompts[at]) for at in places]
        chosen = dataclasses.replace(sampling, logprobs=0)
        chosen = chat.settings_of(model, chosen, {}, False) if spoken else chosen
        for result in generate(model, ids, chosen, engine=engine, progress=count):
            at = places[result.prompt]
            found.setdefault(at, []).append(_written(prompts[at], result))
        done += len(places) * sampling.n
    return [one for at in range(len(prompts)) for one in found[at]]


def _written(prompt: Prompt, result: Result) -> Written:
    assert result.logprobs is not None
    before = result.prompt_tokens
    return Written(
        prompt,
        result.text.strip() if isinstance(prompt, tuple) else result.text,
        Answered((*before, *result.tokens), len(before)),
        tuple(one.logprob for one in result.logprobs),
        result.finish_reason == "stop",
    )


@dataclass(frozen=True)
class Kl:
    """How far a model is from the reference, measured on answers of its own, in nats per answer."""

    k1: float
    """The mean of log pi - log pi_ref, summed over an answer: no bias, much noise, below 0 at times."""
    k3: float
    """The mean of the sum of r - 1 - log r, where r = pi_ref / pi of a token: no bias given the tokens before
    it, less noise, never below 0."""
    tokens: float
    """Mean length of these answers."""


@torch.no_grad()
def kl(written: Sequence[Written], reference: Decoder, batch: int = 16) -> Kl:
    """`written` by a model at temperature 1 without filters -> its KL divergence from the `reference`."""
    k1 = k3 = 0.0
    order = sorted(written, key=lambda one: len(one.text.tokens))
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        read = batch_of(reference, [one.text for one in part])
        theirs = -token_losses(reference, read).view(read.targets.shape).cpu()  # [rows, length]
        own, mask = torch.zeros(theirs.shape), torch.zeros(theirs.shape, dtype=torch.bool)
        for row, one in enumerate(part):
            places = slice(one.text.prompt - 1, len(one.text.tokens) - 1)
            own[row, places], mask[row, places] = torch.tensor(one.log_probs), True
        k1 += float(kl_k1(own, theirs, mask).double().sum())
        k3 += float(kl_k3(own, theirs, mask).sum())
    count = max(1, len(written))
    return Kl(k1 / count, k3 / count, sum(one.text.length for one in written) / count)
