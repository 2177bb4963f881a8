"""A conversation as token ids: special tokens come from the template alone, never from what people wrote."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from daybreak.errors import DaybreakError
from daybreak.text.chat_template import JINJA, Message, find_template, render
from daybreak.text.named import ROLES, Beside, spelling
from daybreak.text.tokenizer import Tokenizer

ROLES_OF_MESSAGES = ("system", "user", "assistant")
KEYS = {"role", "content"}
_FIRST_MARK = 0xF0000
"""Marks are characters of the private use area, of which one that nobody wrote is taken."""
_NO_LETTER = re.compile(r"[^\w\s]|_")
_BARS = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)


def own_template(tokenizer: Tokenizer) -> str | None:
    """The chat template that came with the tokenizer's files, as Jinja; None if there is none."""
    return find_template(tokenizer.files, Beside.read(Path(), tokenizer.files).config)


def take_template(tokenizer: Tokenizer, folder: Path) -> None:
    """A tokenizer without a chat template has that of `folder` from now on, if there is one: an adapter was
    taught in it."""
    file = folder / JINJA
    if file.is_file() and own_template(tokenizer) is None:
        tokenizer.files[JINJA] = file.read_bytes()


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

    Where no content holds what looks like a mark (see `_marks`), these are the ids of that text as a whole;
    where one does, only the template's own marks become ids, and the text between two of them is encoded
    without any. Raises `DaybreakError` as `render` and `checked` do, and where the template makes marks of
    what people wrote.
    """
    messages = checked(messages)
    tokens = _variables(tokenizer)

    def rendered(contents: Sequence[str]) -> str:
        given = [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]
        return render(source, given, tokens, add_generation_prompt=add_generation_prompt)

    contents = [message["content"] for message in messages]
    mark = _unused([source, *tokens.values(), *contents])
    plain = rendered(contents)
    harmless = rendered([_NO_LETTER.sub("x", text) for text in contents])
    marks = _marks(tokenizer, harmless + _probe(source, tokens))
    spelled = _pattern(marks)
    defused = [_defused(text, spelled, mark) for text in contents]
    fenced = rendered([_fenced(text, mark) for text in defused])
    if fenced.replace(mark, "") != plain:
        # The template looks at how contents begin or end: marks stand within what looks special alone.
        fenced = rendered(defused)
    parts = _split(fenced, spelled)
    runs, own = [part.replace(mark, "") for part in parts[::2]], parts[1::2]
    if own != _split(harmless, spelled)[1::2]:
        raise DaybreakError(
            "the chat template makes special tokens of what a message says, so that a message could end its "
            "turn; leave such signs out of the messages, or give another template"
        )
    if fenced.replace(mark, "") == plain:
        whole = tokenizer.encode(plain, bos=False)
        numbers = set(marks.values())
        if [token for token in whole if token in numbers] == [marks[text] for text in own]:
            return whole
    silent = frozenset(marks)
    ids = tokenizer.encode(runs[0], bos=False, special=False, silent=silent)
    for text, run in zip(own, runs[1:], strict=True):
        ids += [marks[text], *tokenizer.encode(run, bos=False, special=False, silent=silent)]
    return ids


def chat_text(tokenizer: Tokenizer, source: str, messages: Sequence[Message]) -> str:
    """The text that the template `source` makes of the messages, up to where an answer begins. Raises
    `DaybreakError` as `encode_chat` does."""
    return render(source, checked(messages), _variables(tokenizer))


def turn_end(tokenizer: Tokenizer, source: str) -> int | None:
    """The mark that the template writes behind an answer, which so ends one; None without one."""
    answer, tokens = chr(_FIRST_MARK), _variables(tokenizer)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = render(source, messages, tokens, add_generation_prompt=False)
    except DaybreakError:
        return None
    behind = text.rpartition(answer)[2].lstrip() if answer in text else ""
    marks = _marks(tokenizer, text)
    found = _pattern(marks).match(behind)
    return None if found is None else marks[found[0]]


def _marks(tokenizer: Tokenizer, written: str) -> dict[str, int]:
    """What messages must not spell: spelling -> id.

    All special tokens, and of the added tokens that are not called special (many published turn marks are
    not) those between <| and |>, and those with a sign in them in `written`, which is what the template
    writes around harmless contents. Words, runs of white space and tags that it does not write are text.
    """
    specials = tokenizer.specials
    every = {
        text: number
        for text, number in tokenizer.added.items()
        if _BARS.fullmatch(text.strip()) or (text in written and _is_sign(text))
    }
    return {**every, **specials}


def _is_sign(text: str) -> bool:
    """More than letters and blanks, of which some tokenizers write the latter as U+2581."""
    inner = text.replace("\u2581", " ").strip()
    return len(inner) > 1 and _NO_LETTER.search(inner) is not None


def _probe(source: str, tokens: Mapping[str, str]) -> str:
    """What the template writes in a conversation of everybody, or of those whom it lets speak."""
    return _probed(source, tuple(tokens.items()))


@functools.lru_cache(maxsize=4)
def _probed(source: str, variables: tuple[tuple[str, str], ...]) -> str:
    tokens = dict(variables)
    talk = [{"role": role, "content": "x"} for role in (*ROLES_OF_MESSAGES, "user")]
    for messages in (talk, talk[1:]):
        with suppress(DaybreakError):
            return render(source, messages, tokens)
    return ""


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
