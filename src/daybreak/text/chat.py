"""A conversation as token ids: special tokens come from the template alone, never from what people wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from daybreak.errors import DaybreakError
from daybreak.text.chat_template import Message, find_template, render
from daybreak.text.named import ROLES, Beside, spelling
from daybreak.text.tokenizer import Tokenizer

ROLES_OF_MESSAGES = ("system", "user", "assistant")
KEYS = {"role", "content"}
_FIRST_MARK = 0xF0000
"""Marks are characters of the private use area, of which one that nobody wrote is taken."""


def own_template(tokenizer: Tokenizer) -> str | None:
    """The chat template that came with the tokenizer's files, as Jinja; None if there is none."""
    return find_template(tokenizer.files, Beside.read(Path(), tokenizer.files).config)


def checked(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages, each with a role and a content and nothing else. Raises `DaybreakError`."""
    form = "a list of {'role': ..., 'content': ...}, with roles " + ", ".join(ROLES_OF_MESSAGES)
    if isinstance(messages, str | Mapping) or not messages:
        raise DaybreakError(f"messages is {messages!r}; give {form}")
    found = []
    for place, message in enumerate(messages, 1):
        texts = isinstance(message, Mapping) and all(isinstance(text, str) for text in message.values())
        if not texts or set(message) != KEYS or message["role"] not in ROLES_OF_MESSAGES:
            raise DaybreakError(f"message {place} is {message!r}; messages are {form}")
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            raise DaybreakError(f"message {place} is not UTF-8 text: {error}") from None
        found.append(dict(message))
    return found


def encode_chat(
    tokenizer: Tokenizer,
    source: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of the text that the template `source` makes of the messages.

    Where no content holds what looks like a special token, these are the ids of that text as a whole; where
    one does, only the template's own special tokens become ids, and the text between two of them is encoded
    without any. Raises `DaybreakError` as `render` and `checked` do.
    """
    messages = checked(messages)
    tokens = _variables(tokenizer)

    def rendered(contents: Sequence[str]) -> str:
        given = [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]
        return render(source, given, tokens, add_generation_prompt=add_generation_prompt)

    contents = [message["content"] for message in messages]
    mark = _unused([source, *tokens.values(), *contents])
    plain = rendered(contents)
    specials = tokenizer.specials
    spelled = _pattern(specials)
    defused = [_defused(text, spelled, mark) for text in contents]
    fenced = rendered([_fenced(text, mark) for text in defused])
    if fenced.replace(mark, "") != plain:
        # The template looks at how contents begin or end: marks stand within what looks special alone.
        fenced = rendered(defused)
    parts = _split(fenced, spelled)
    runs, own = [part.replace(mark, "") for part in parts[::2]], parts[1::2]
    if fenced.replace(mark, "") == plain:
        whole = tokenizer.encode(plain, bos=False)
        numbers = set(specials.values())
        if [token for token in whole if token in numbers] == [specials[text] for text in own]:
            return whole
    ids = tokenizer.encode(runs[0], bos=False, special=False)
    for text, run in zip(own, runs[1:], strict=True):
        ids += [specials[text], *tokenizer.encode(run, bos=False, special=False)]
    return ids


def turn_end(tokenizer: Tokenizer, source: str) -> int | None:
    """The special token that the template writes behind an answer, which so ends one; None without one."""
    answer = chr(_FIRST_MARK)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = render(source, messages, _variables(tokenizer), add_generation_prompt=False)
    except DaybreakError:
        return None
    behind = text.rpartition(answer)[2].lstrip() if answer in text else ""
    found = _pattern(tokenizer.specials).match(behind)
    return None if found is None else tokenizer.specials[found[0]]


def _variables(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens' spellings by the names that templates know them by."""
    named = Beside.read(Path(), tokenizer.files).named
    spellings = {number: text for text, number in tokenizer.specials.items()}
    known = {
        f"{role}_token": spellings.get(getattr(tokenizer, f"{role}_id")) for role in ("bos", "eos", "pad")
    }
    said = {f"{role}_token": spelling(named.get(f"{role}_token")) for role in ROLES}
    every = {**known, **{name: text for name, text in said.items() if text is not None}}
    return {name: text for name, text in every.items() if text is not None}


def _unused(texts: Sequence[str]) -> str:
    used = set().union(*texts)
    return next(chr(code) for code in range(_FIRST_MARK, _FIRST_MARK + 0xFFFE) if chr(code) not in used)


def _pattern(specials: Mapping[str, int]) -> re.Pattern[str]:
    """Any of the spellings, the longest first; without special tokens what matches nothing."""
    longest = sorted(filter(None, specials), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _defused(text: str, spelled: re.Pattern[str], mark: str) -> str:
    """A mark within everything that looks like a special token, until nothing does."""
    place = 0
    while found := spelled.search(text, place):
        place = found.start() + 1
        text = text[:place] + mark + text[place:]
    return text


def _fenced(text: str, mark: str) -> str:
    """Marks around what is no white space, which templates trim: nothing joins with what stands beside it."""
    inner = text.strip()
    if not inner:
        return text
    start = text.index(inner)
    return text[:start] + mark + inner + mark + text[start + len(inner) :]


def _split(text: str, spelled: re.Pattern[str]) -> list[str]:
    """Texts at even places, special tokens at odd ones."""
    parts, place = [], 0
    for found in spelled.finditer(text):
        parts += [text[place : found.start()], found[0]]
        place = found.end()
    return [*parts, text[place:]]
