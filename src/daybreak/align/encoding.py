"""Prompts and answers as token ids: the prompt as text generation reads it, and what it would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daybreak.data.rankings import Prompt, Ranking
from daybreak.engine import chat
from daybreak.engine.prompts import Model, prepare, special_token
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch
from daybreak.objectives.preference import answer_log_probs
from daybreak.text.chat import own_template, turn_end

Longer = Literal["refuse", "leave_out"]


@dataclass(frozen=True)
class Answered:
    """A prompt with one answer behind it."""

    tokens: tuple[int, ...]
    prompt: int
    """How many of them are the prompt."""

    @property
    def answer(self) -> tuple[int, ...]:
        return self.tokens[self.prompt :]

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self.prompt


@dataclass(frozen=True)
class Compared:
    """A prompt with all its answers, and what they are worth."""

    texts: tuple[Answered, ...]
    values: tuple[float, ...]
    demonstration: Answered | None = None

    def pairs(self) -> list[tuple[Answered, Answered]]:
        """(better, worse) for every two answers that are no tie."""
        rated = list(zip(self.texts, self.values, strict=True))
        return [(first, second) for first, a in rated for second, b in rated if a > b]


def prompt_ids(model: Model, prompt: Prompt) -> list[int]:
    """What `generate` reads of a text, and `chat` of messages."""
    if isinstance(prompt, str):
        return list(prepare(model, prompt)[0].tokens)
    return chat.prompt(model, prompt)


def answer_ids(model: Model, prompt: Prompt, answer: str) -> list[int]:
    """What the model would have to write for this answer, with the token that ends it, where there is one.

    Special tokens are never read out of an answer: nobody's text can end its own turn.
    """
    tokenizer = model.tokenizer
    own = None if isinstance(prompt, str) else own_template(tokenizer)
    if isinstance(prompt, str) or own is not None:
        ids = tokenizer.encode(answer, bos=False, special=False)
    else:
        ids = tokenizer.encode(" " + answer.lstrip(), bos=False, special=False)  # "Assistant: Hello"
    end = None if own is None else turn_end(tokenizer, own)
    if end is None:
        end = special_token(model, "eos")
    return ids if end is None or end >= model.architecture.vocabulary else [*ids, end]


def answered(
    model: Model, prompt: Prompt, answer: str, where: str = "", longest: int | None = None
) -> Answered:
    """A prompt and an answer in one. Raises `DaybreakError`, which names `where` they stand, for a text
    longer than `longest` tokens or the model's context."""
    before = prompt_ids(model, prompt)
    tokens = (*before, *answer_ids(model, prompt, answer))
    limit = min(longest or model.architecture.context, model.architecture.context)
    if len(tokens) > limit:
        raise TooLong(
            f"{where or 'the text'}: prompt and answer have {len(before)} and {len(tokens) - len(before)} "
            f"tokens, together more than {limit}; shorten them, or set data.longer to leave_out"
        )
    return Answered(tokens, len(before))


class TooLong(DaybreakError):
    """A text that the model cannot read."""


def compared(model: Model, ranking: Ranking, longest: int | None = None) -> Compared:
    """A ranking's texts in token ids; see `answered`."""

    def of(answer: str) -> Answered:
        return answered(model, ranking.prompt, answer, ranking.where, longest)

    texts = tuple(map(of, ranking.answers))
    shown = None if ranking.demonstration is None else of(ranking.demonstration)
    return Compared(texts, ranking.values, shown)


def all_compared(
    model: Model, rankings: Sequence[Ranking], longest: int | None = None, longer: Longer = "refuse"
) -> tuple[list[Compared], int]:
    """All rankings in token ids, and how many are left out because a text of theirs is too long. Raises
    `DaybreakError` for the first of these, unless they are to be left out."""
    found, left = [], 0
    for ranking in rankings:
        try:
            found.append(compared(model, ranking, longest))
        except TooLong:
            if longer == "refuse":
                raise
            left += 1
    return found, left


def batch_of(decoder: Decoder, texts: Sequence[Answered]) -> Batch:
    """The texts beside each other, [rows, length], with the tokens of the answers for targets."""
    longest = max(len(text.tokens) for text in texts)
    tokens = torch.zeros(len(texts), longest, dtype=torch.int64)
    targets = torch.full((len(texts), longest), UNSCORED)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens)] = torch.tensor(text.tokens)
        targets[row, text.prompt - 1 : len(text.tokens) - 1] = torch.tensor(text.answer)
    device = decoder.tokens.weight.device
    # Padding on the right is seen by nobody before it, and has no targets: causality is all the mask needed.
    return Batch(decoder.reading(tokens.to(device)), targets.to(device))


@torch.no_grad()
def log_probs(decoder: Decoder, texts: Sequence[Answered], batch: int = 16) -> Tensor:
    """[texts] float32 on the CPU: the log-probability of each answer behind its prompt, in nats, summed over
    its tokens. Texts of a similar length are read together."""
    found = torch.empty(len(texts))
    order = sorted(range(len(texts)), key=lambda place: len(texts[place].tokens))
    for first in range(0, len(order), batch):
        rows = order[first : first + batch]
        found[rows] = answer_log_probs(decoder, batch_of(decoder, [texts[row] for row in rows])).cpu()
    return found
