"""Conversations as a model learns them: which tokens are read, and which of them it has to write.

What stands before an answer is token for token what the model reads when it is asked; so nothing depends on
how tokens happen to join at the border.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from daybreak.errors import DaybreakError
from daybreak.text.chat import encode_chat, own_template, turn_end
from daybreak.text.chat_template import JINJA, Message
from daybreak.text.tokenizer import Tokenizer

DEFAULT = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
    "{% elif message.role == 'user' %}{{ 'User: ' + message.content + '\\n\\n' }}"
    "{% else %}{{ 'Assistant: ' + message.content + eos_token + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For models that bring no template: a transcript in which the token that ends texts ends each answer."""
BOS = "{{ bos_token }}"
BREAK = "\n"


@dataclass(frozen=True)
class Lesson:
    """A text, and the stretches of it that are to be written."""

    tokens: array[int]
    answers: tuple[tuple[int, int], ...]
    """(first token, end) of each, in order; the first token of all is never among them."""
    where: str = ""
    """File and row, for errors."""

    @property
    def predicted(self) -> int:
        """How many tokens are to be written."""
        return sum(end - first for first, end in self.answers)

    def cut(self, length: int) -> Lesson | None:
        """The first `length` tokens; None if nothing of them is to be written."""
        answers = tuple((first, min(end, length)) for first, end in self.answers if first < length)
        return Lesson(self.tokens[:length], answers, self.where) if answers else None


def template_of(tokenizer: Tokenizer) -> str:
    """The tokenizer's own chat template, or else the default. Raises `DaybreakError` where there is neither:
    without a token that ends a text, no answer has an end."""
    own = own_template(tokenizer)
    if own is not None:
        return own
    check_end(tokenizer)
    return (BOS if tokenizer.adds_bos else "") + DEFAULT


def keep_template(tokenizer: Tokenizer) -> None:
    """A tokenizer without a chat template has the default from now on: what was learned is what is read."""
    if own_template(tokenizer) is None:
        tokenizer.files[JINJA] = template_of(tokenizer).encode()


def check_end(tokenizer: Tokenizer) -> int:
    """The token that ends a text. Raises `DaybreakError` where there is none."""
    if tokenizer.eos_id is None:
        raise DaybreakError(
            "the tokenizer names no token that ends a text (eos_token in tokenizer_config.json), so a model "
            "could not learn where answers end; name one there"
        )
    return tokenizer.eos_id


def continued(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text behind another one, of which nothing becomes a special token.

    Tokenizers of sentencepiece's kind put a blank before whatever they are given, as if it began a text; what
    goes on after a prompt would then have a blank too many, or one where it has none. Behind a line break
    they write the text alone.
    """
    mark = _break_before(tokenizer)
    if mark is None:
        return _plain(tokenizer, text)
    whole = _plain(tokenizer, BREAK + text)
    return whole[len(mark) :] if whole[: len(mark)] == mark else _plain(tokenizer, text)


@lru_cache(maxsize=4)
def _break_before(tokenizer: Tokenizer) -> list[int] | None:
    """The ids of a line break, behind which such a tokenizer writes a text alone; None: it is none of these.
    Asked once for all the answers of a file."""
    alone, mark, behind = (_plain(tokenizer, one) for one in ("x", BREAK, f"{BREAK}x"))
    return None if behind[len(mark) :] == alone else mark


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, bos=False, special=False)


def lessons(tokenizer: Tokenizer, messages: Sequence[Message], where: str = "") -> list[Lesson]:
    """A conversation with each answer to be written, and the token that ends it.

    It is one lesson where the tokens that are read before a later answer go on from the ones before, as is
    usual. Where they do not, since tokens join over the border of an answer, or as the template shows earlier
    turns in another way, a new lesson begins with that answer. Raises `DaybreakError` for what the template
    refuses.
    """
    source = template_of(tokenizer)
    end = turn_end(tokenizer, source)
    found, tokens, answers = [], list[int](), list[tuple[int, int]]()
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or place == 0:
            continue
        before = encode_chat(tokenizer, source, messages[:place])
        if answers and before[: len(tokens)] != tokens:
            found.append(Lesson(array("i", tokens), tuple(answers), where))
            answers = []
        answer = _answer(tokenizer, source, messages[: place + 1], before, end)
        tokens = before + answer
        answers.append((len(before), len(tokens)))
    found.append(Lesson(array("i", tokens), tuple(answers), where))
    return found


def _answer(
    tokenizer: Tokenizer, source: str, messages: Sequence[Message], before: list[int], end: int | None
) -> list[int]:
    """What is written behind `before`: the last message, and the token that ends it."""
    whole = encode_chat(tokenizer, source, messages, add_generation_prompt=False)
    if end is not None and whole[: len(before)] == before and end in whole[len(before) :]:
        return whole[len(before) : whole.index(end, len(before)) + 1]
    # Tokens join over the border. A model that has read `before` cannot write such a token.
    content = messages[-1]["content"]
    space = " " if source.endswith(DEFAULT) else ""
    last = check_end(tokenizer) if end is None else end
    return [*continued(tokenizer, space + content), last]
