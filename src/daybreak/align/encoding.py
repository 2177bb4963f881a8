"""Prompts and answers as token ids: the prompt as text generation reads it, and what it would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from daybreak.data.rankings import Prompt, Ranking
from daybreak.engine import chat
from daybreak.engine.prompts import Model, of_text, prepare, special_token
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch
from daybreak.objectives.preference import answer_log_probs
from daybreak.text.answers import continued, keep_template, lessons
from daybreak.text.chat_template import Message

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


def prompt_length(model: Model, prompt: Prompt) -> int:
    """How many these are; also of a prompt that the model has no room for."""
    return len(before(model, prompt) if isinstance(prompt, str) else chat.prompt(model, prompt))


def answered(
    model: Model, prompt: Prompt, answer: str, where: str = "", longest: int | None = None
) -> Answered:
    """A prompt, and what the model would have to write for this answer, the token that ends it included.

    Special tokens are never read out of an answer: nobody's text can end its own turn. Raises
    `DaybreakError`, which names `where` they stand, for what cannot be read, and `TooLong` for a text longer
    than `longest` tokens or the model's context.
    """
    try:
        found = _text(model, prompt, answer) if isinstance(prompt, str) else _turn(model, prompt, answer)
        check_known(model, found.tokens)
    except DaybreakError as error:
        raise DaybreakError(f"{where or 'the text'}: {error}") from None
    limit = min(longest or model.architecture.context, model.architecture.context)
    if len(found.tokens) > limit:
        raise TooLong(
            f"{where or 'the text'}: prompt and answer have {found.prompt} and {found.length} tokens, "
            f"together more than {limit}; shorten them, or set data.longer to leave_out"
        )
    return found


def check_known(model: Model, tokens: Sequence[int]) -> None:
    """Raises `DaybreakError` for ids beyond the model's table: tokenizers may have special tokens that their
    model lacks, and a text or a template may spell one."""
    rows, highest = model.architecture.vocabulary, max(tokens)
    if highest >= rows:
        spelled = model.tokenizer.decode([highest], skip_special=False)
        raise DaybreakError(
            f"the token {spelled!r} has id {highest}, and the model's go from 0 to {rows - 1}; leave it out, "
            "or take a model that has it"
        )


def before(model: Model, prompt: str) -> list[int]:
    """The token ids of a text that is to be gone on with; of none those that texts begin with."""
    return of_text(model, "the prompt", prompt) or list(prepare(model, "")[0].tokens)


def _text(model: Model, prompt: str, answer: str) -> Answered:
    read, end = before(model, prompt), special_token(model, "eos")
    # What fills a blank is a text of its own; any other answer goes on from its prompt.
    alone = model.architecture.blanks is not None
    ids = (
        model.tokenizer.encode(answer, bos=False, special=False)
        if alone
        else continued(model.tokenizer, answer)
    )
    if end is not None and end < model.architecture.vocabulary:
        ids.append(end)
    return Answered((*read, *ids), len(read))


def _turn(model: Model, prompt: tuple[Message, ...], answer: str) -> Answered:
    """In the tokenizer's chat template, or the default one where it has none."""
    if model.tokenizer is None:
        raise DaybreakError("the model has no tokenizer, so it cannot read text; take one that has")
    messages = [*prompt, {"role": "assistant", "content": answer}]
    lesson = lessons(model.tokenizer, messages)[-1]
    first, end = lesson.answers[-1]
    return Answered(tuple(lesson.tokens[:end]), first)


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
    `DaybreakError` for the first of these, unless they are to be left out.

    Where they have messages and the model has no chat template, it has the default one from now on: what is
    learned is what is read.
    """
    if model.tokenizer is not None and any(isinstance(ranking.prompt, tuple) for ranking in rankings):
        keep_template(model.tokenizer)
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
    """The texts beside each other, [rows, length], with the tokens of the answers for targets. Each text's
    last token is not read, as nothing follows it: an answer that fills the context may end one token behind.
    """
    longest = max(1, *(len(text.tokens) - 1 for text in texts))
    tokens = torch.zeros(len(texts), longest, dtype=torch.int64)
    targets = torch.full((len(texts), longest), UNSCORED)
    for row, text in enumerate(texts):
        tokens[row, : len(text.tokens) - 1] = torch.tensor(text.tokens[:-1])
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
