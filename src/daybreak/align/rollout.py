"""Answers that a policy writes, and what its decoder, read again, says of each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.engine.continuation import Continuation
from daybreak.engine.engine import Engine, EngineSettings, write
from daybreak.engine.generate import endings_of, room_of
from daybreak.engine.prompts import Model, Prompt
from daybreak.engine.settings import Sampling
from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading
from daybreak.objectives.policy import entropies

ROWS = 512
"""Tokens whose logits are made at once."""


@dataclass(frozen=True)
class Answer:
    """One answer, as token ids."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """At least one; the end token included."""
    ended: bool
    """By an end token; else it was cut off."""
    left: int = 0
    """Rounds of its conversation that would have followed, had it ended and there been room."""

    @property
    def whole(self) -> tuple[int, ...]:
        return (*self.prompt, *self.tokens)


def write_answers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
    stop_tokens: Sequence[int] = (),
    temperature: float = 1.0,
) -> list[Answer]:
    """One answer to every prompt, drawn from the policy's own distribution, up to a token that ends texts or
    is one of `stop_tokens`.

    The engine is a fresh one each time: it remembers what it has read, which a policy that has learned since
    would read otherwise. What is drawn for a place in `prompts` depends on the seed, the place and the
    prompt, so that a prompt that comes twice is answered twice.
    """
    engine = Engine(model, EngineSettings(batch_size=batch_size, guesses=0))
    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, stop_tokens=tuple(stop_tokens)
    )
    endings, texts = endings_of(model, sampling), []
    for place, ids in enumerate(prompts):
        prompt = Prompt(place, tuple(ids), from_text=False)
        room = room_of(model, prompt, sampling)
        texts.append(Continuation(prompt, place, room, sampling, endings, None, live=False))
    for _ in write(engine, texts, seed):
        pass
    return [Answer(one.prompt.tokens, tuple(one.tokens), one.tokens[-1] in endings) for one in texts]


def mask_of(answers: Sequence[Answer]) -> Tensor:
    """[answers, tokens] bool: where each answer has tokens, from its first one on."""
    lengths = torch.tensor([len(one.tokens) for one in answers])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]


@dataclass(frozen=True, eq=False)
class Laid:
    """Answers, laid out for a decoder to read."""

    reading: Reading
    """Prompts and answers, padded on the right, without each answer's last token: nothing follows it."""
    places: Tensor
    """[answers, tokens] int64: where the decoder has read all that stands before a token."""
    tokens: Tensor
    """[answers, tokens] int64: the tokens themselves, 0 behind the last one."""
    mask: Tensor
    """[answers, tokens] bool"""

    @classmethod
    def of(cls, answers: Sequence[Answer], device: torch.device) -> Laid:
        mask = mask_of(answers)
        starts = torch.tensor([len(one.prompt) for one in answers])
        longest = max(len(one.whole) for one in answers) - 1
        read = torch.zeros(len(answers), longest, dtype=torch.int64)
        tokens = torch.zeros(mask.shape, dtype=torch.int64)
        for row, one in enumerate(answers):
            read[row, : len(one.whole) - 1] = torch.tensor(one.whole[:-1])
            tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
        real = torch.arange(longest)[None] < starts[:, None] - 1 + mask.sum(1, keepdim=True)
        places = (starts[:, None] - 1 + torch.arange(mask.shape[1])).clamp(max=longest - 1)
        reading = Reading.of(read.to(device), real.to(device))
        return cls(reading, places.to(device), tokens.to(device), mask.to(device))

    def hidden(self, decoder: Decoder) -> Tensor:
        """What the head reads before each token of the answers, [answers, tokens, width]."""
        found = decoder(self.reading)
        return found.gather(1, self.places[:, :, None].expand(-1, -1, found.shape[2]))  # type: ignore[no-any-return]


def token_logprobs(decoder: Decoder, laid: Laid) -> Tensor:
    """[answers, tokens] float32: the log-probability of every token of the answers, 0 behind them."""
    return _of_tokens(decoder, laid, False)[0]


def logprobs_and_entropies(decoder: Decoder, laid: Laid) -> tuple[Tensor, Tensor]:
    """The same, and how undecided the decoder was at each of them."""
    return _of_tokens(decoder, laid, True)


def _of_tokens(decoder: Decoder, laid: Laid, undecided: bool) -> tuple[Tensor, Tensor]:
    hidden, wanted = laid.hidden(decoder)[laid.mask], laid.tokens[laid.mask]  # [all tokens, width], [..]
    own, spread = [], []
    for first in range(0, len(wanted), ROWS):
        logits = decoder.unembed(hidden[first : first + ROWS]).float()  # [rows, vocabulary]
        own.append(-functional.cross_entropy(logits, wanted[first : first + ROWS], reduction="none"))
        if undecided:
            spread.append(entropies(logits.detach()))
    return _spread(torch.cat(own), laid.mask), _spread(torch.cat(spread or own), laid.mask)


def token_values(critic: Decoder, laid: Laid, shift: float = 0.0) -> Tensor:
    """[answers, tokens] float32: what the critic's one number said before every token, 0 behind them."""
    values = critic.unembed(laid.hidden(critic)[laid.mask]).float()[:, 0] + shift
    return _spread(values, laid.mask)


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
