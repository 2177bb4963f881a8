"""Conversations of several rounds: the policy answers, the next message is put, and it answers again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from daybreak.align.encoding import check_known, prompt_ids
from daybreak.align.rollout import Answer, write_answers
from daybreak.data.prompts import Rounds
from daybreak.engine.prompts import Model
from daybreak.errors import DaybreakError
from daybreak.text import rounds as text

Ids = Sequence[Sequence[int]]
"""What is read before each answer of a conversation, as token ids. Every later list begins with the mark that
ends the answer before it, which takes the place of the token that ended it."""


def round_ids(model: Model, rounds: Rounds) -> Ids:
    """Raises `DaybreakError` for what the model has no tokens for, and for messages that its chat template
    does not take, or not in rounds."""
    if len(rounds) == 1:
        found = [prompt_ids(model, rounds[0])]
    else:
        found = text.round_ids(model.tokenizer, [said for said in rounds if not isinstance(said, str)])
    for ids in found:
        check_known(model, ids)
    return found


def check_room(rounds: Ids, max_new_tokens: int, context: int) -> None:
    """Raises `DaybreakError` where an answer of a conversation has no room in a context, however short those
    before it are."""
    length = 0
    for number, ids in enumerate(rounds, 1):
        length += len(ids)
        if length + max_new_tokens > context:
            has = "the prompt has" if number == 1 else f"the prompt of round {number} has at least"
            raise DaybreakError(
                f"{has} {length} tokens, and with an answer of {max_new_tokens} (rollout.max_new_tokens) it "
                f"would not fit the model's context of {context}; shorten or leave it out, or set "
                "rollout.max_new_tokens lower"
            )


def converse(
    model: Model,
    conversations: Sequence[Ids],
    max_new_tokens: int,
    seed: int,
    batch_size: int = 64,
    stop_tokens: Sequence[int] = (),
) -> list[list[Answer]]:
    """The answers of each conversation, in order, as `write_answers` draws them.

    What an answer says is part of the next one's prompt, token by token as it was drawn. A conversation ends
    early behind an answer that was cut off, for what follows would be no conversation, and where the next
    answer might not fit the model's context; its last answer tells how many rounds are `left`.
    """
    longest = model.architecture.context - max_new_tokens
    talks: list[list[Answer]] = [[] for _ in conversations]
    going = {place: tuple(rounds[0]) for place, rounds in enumerate(conversations)}
    while going:
        written = write_answers(
            model, list(going.values()), max_new_tokens, seed, batch_size, stop_tokens=stop_tokens
        )
        for place, answer in zip(list(going), written, strict=True):
            talks[place].append(answer)
            del going[place]
            prompt = _next(talks[place], conversations[place], longest)
            if prompt is not None:
                going[place] = prompt
    for talk, rounds in zip(talks, conversations, strict=True):
        talk[-1] = dataclasses.replace(talk[-1], left=len(rounds) - len(talk))
    return talks


def _next(talk: Sequence[Answer], rounds: Ids, longest: int) -> tuple[int, ...] | None:
    """The prompt of the next answer; None: there is none."""
    if len(talk) == len(rounds) or not talk[-1].ended:
        return None
    prompt = (*talk[-1].whole[:-1], *rounds[len(talk)])
    return prompt if len(prompt) <= longest else None
