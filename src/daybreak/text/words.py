"""Words as ULMFiT read them: lower case, with marks for capitals and repetitions (fastai's rules).

    He said NO!!!!  ->  xxbos xxmaj he said xxup no xxrep 4 !

A word of its own is what is written together in letters, a number, or any other sign; clitics are cut off as
English treebanks do (do n't, it 's). What the vocabulary lacks is xxunk, so a text is not always read back as
it was.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from daybreak.errors import DaybreakError
from daybreak.families.recurrent import RecurrentFamily

FILE = "words.json"
UNKNOWN, PAD, START, END, FIELD, REPEAT, WORDS_REPEAT, CAPITALS, CAPITAL = range(9)
"""Places of the special words in a family's list."""
_REPEATED = re.compile(r"(\S)\1{2,}")
_WORD = re.compile(
    r"\n+"
    r"|[^\W\d_]+(?=n['’]t\b)|n['’]t\b|['’](?:s|m|re|ve|ll|d)\b"  # do n't, it 's
    r"|[^\W\d_]+|\d+(?:[.,]\d+)*|[^\s]",
    re.IGNORECASE,
)
_CLITIC = re.compile(r"n['’]t|['’](?:s|m|re|ve|ll|d)", re.IGNORECASE)
_CLOSING = frozenset(".,;:!?)]}%…")
_OPENING = frozenset("([{$#")


class Words:
    """A vocabulary of whole words; where a model is asked for its tokenizer, this is one."""

    adds_bos = True

    def __init__(self, words: Sequence[str], page: RecurrentFamily) -> None:
        """`words` by id. Raises `DaybreakError` for a list without the family's first special words, or with
        a word that is there twice."""
        self.words = tuple(words)
        self._page = page
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            self._check_twin(twice)
        for name in (page.unknown, page.pad, page.start):
            if name not in self._ids:
                raise DaybreakError(
                    f"the vocabulary has no word {name!r}; it needs {', '.join(page.specials)} "
                    "in front of the words of texts"
                )
        self.unknown_id, self.pad_id = self._ids[page.unknown], self._ids[page.pad]
        self.bos_id: int = self._ids[page.start]
        self.eos_id = self.bos_id
        """A text ends where the next one begins."""
        self._marks = frozenset(page.specials)

    def _check_twin(self, twice: str) -> None:
        # fastai fills its list up to a multiple of eight with xxfake.
        if twice != "xxfake":
            raise DaybreakError(f"the vocabulary has the word {twice!r} twice; each needs an id of its own")

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return len(self.words)

    @property
    def specials(self) -> Mapping[str, int]:
        """Special words: spelling -> id."""
        return {word: self._ids[word] for word in self._page.specials if word in self._ids}

    added = specials

    def special_id(self, text: str) -> int | None:
        """The id of the special word written so; None if there is none."""
        return self.specials.get(text)

    def encode(
        self,
        text: str,
        bos: bool | None = None,
        *,
        special: bool = True,
        silent: frozenset[str] = frozenset(),
    ) -> list[int]:
        """Ids of a text's words, behind that of the start if `bos` (None: yes). What looks like a special
        word in the text is an unknown one."""
        del special, silent  # no text spells a special word
        ids = [self._ids.get(word, self.unknown_id) for word in split(text, self._page.specials)]
        return ids if bos is False else [self.bos_id, *ids]

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Of many texts, without the start."""
        return [self.encode(text, bos=False, special=special) for text in texts]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text as it may have been: capitals and repetitions are put back, blanks guessed. Without
        `skip_special` words as they are, with blanks between."""
        words = [self.words[number] for number in ids if 0 <= number < len(self.words)]
        return _written(words, self._page) if skip_special else " ".join(words)

    @property
    def files(self) -> dict[str, bytes]:
        """What lies beside the weights."""
        return {FILE: (json.dumps(list(self.words), ensure_ascii=False, indent=0) + "\n").encode()}

    @classmethod
    def learn(
        cls, texts: Iterable[str], page: RecurrentFamily, most: int = 60000, least_count: int = 3
    ) -> Words:
        """The `most` most frequent words that occur at least `least_count` times, special ones first."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(word for word in split(text, page.specials) if word)
        found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        own = [word for word, count in found if count >= least_count and word not in page.specials]
        return cls([*page.specials, *own][:most], page)

    @classmethod
    def load(cls, folder: Path, page: RecurrentFamily) -> Words | None:
        """The vocabulary in a folder of ours; None: there is none."""
        return cls.read(folder / FILE, page) if (folder / FILE).is_file() else None

    @classmethod
    def read(cls, file: Path, page: RecurrentFamily) -> Words:
        """A list of words: .json, .txt with one on each line, or fastai's .pkl, of which nothing but texts in
        a list is read."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DaybreakError(f"{file} cannot be read: {error.strerror or error}") from None
        found = _listed(file, content)
        if isinstance(found, dict):  # a learner's file of vocabularies may hold the list of classes beside it
            found = next((one for one in found.values() if isinstance(one, list)), None)
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise DaybreakError(f"{file} is no list of words; give a list of texts as .json, .txt or .pkl")
        return cls(found, page)


def _listed(file: Path, content: bytes) -> object:
    try:
        if file.suffix == ".pkl":
            return _TextsOnly(io.BytesIO(content)).load()
        text = content.decode("utf-8")
        return json.loads(text) if file.suffix == ".json" else text.removesuffix("\n").split("\n")
    except pickle.UnpicklingError as error:
        raise DaybreakError(f"{file} is not opened: {error}") from None
    except (ValueError, EOFError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise DaybreakError(f"{file} is damaged: {' '.join(str(error).split())}; fetch it again") from None


class _TextsOnly(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers; whatever else a pickle asks for is refused unread."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which could run code; save the vocabulary as a plain list of texts"
        )

    def persistent_load(self, pid: object) -> object:
        raise pickle.UnpicklingError("it asks for objects outside of it; save a plain list of texts")


def split(text: str, marks: Sequence[str]) -> Iterator[str]:
    """The words of a text in lower case, with the family's special words before those that were changed.
    A word of the text that looks like a special one is given as an empty text, which no vocabulary has."""
    run: list[str] = []
    for word in _words(text.replace("\r\n", "\n"), marks):
        if len(run) and run[-1] != word:
            yield from _repeated(run, marks)
            run = []
        run.append(word)
    yield from _repeated(run, marks)


def _words(text: str, marks: Sequence[str]) -> Iterator[str]:
    """Words as they stand there; a sign that is there three times or more as its mark and count."""
    place = 0
    for match in _REPEATED.finditer(text):
        yield from _WORD.findall(text[place : match.start()])
        yield f"{marks[REPEAT]} {len(match[0])} {match[1]}"
        place = match.end()
    yield from _WORD.findall(text[place:])


def _repeated(run: Sequence[str], marks: Sequence[str]) -> Iterator[str]:
    """A word that was written several times in a row: from three on with its mark."""
    if len(run) >= 3 and run[0][0].isalpha() and " " not in run[0]:
        yield from (marks[WORDS_REPEAT], str(len(run)), *_marked(run[0], marks))
    else:
        for word in run:
            yield from _marked(word, marks)


def _marked(word: str, marks: Sequence[str]) -> Iterator[str]:
    """One word in lower case, behind the mark of its capitals."""
    if word.startswith("\n"):
        yield "\n" if word == "\n" else "\n\n"
    elif " " in word:
        yield from word.lower().split(" ")
    elif word.lower() in marks:
        yield ""
    else:
        if len(word) > 1 and word.isupper():
            yield marks[CAPITALS]
        elif len(word) > 1 and word[0].isupper() and word[1:].islower():
            yield marks[CAPITAL]
        yield word.lower()


def _written(words: Sequence[str], page: RecurrentFamily) -> str:
    marks = page.specials
    silent = {marks[place] for place in (PAD, START, END, FIELD)}
    text, change, rest = "", "", iter(words)
    for word in rest:
        if word in (marks[CAPITALS], marks[CAPITAL]):
            change = word
            continue
        if word in (marks[REPEAT], marks[WORDS_REPEAT]):
            word = _expanded(word == marks[WORDS_REPEAT], next(rest, ""), rest, marks)
        elif word in silent:
            continue
        if change:
            word = word.upper() if change == marks[CAPITALS] else word.capitalize()
        text, change = text + (_blank(text, word) + word if word else ""), ""
    return text


def _expanded(words: bool, number: str, rest: Iterator[str], marks: Sequence[str]) -> str:
    count = int(number) if number.isascii() and number.isdigit() else 1
    one = next(rest, "")
    if one in (marks[CAPITALS], marks[CAPITAL]):
        one = next(rest, "")
    return (f"{one} " if words and one else one) * min(count, 100)


def _blank(before: str, word: str) -> str:
    """What stands between a text and its next word."""
    joined = word[:1] in _CLOSING or word.startswith("\n") or _CLITIC.fullmatch(word) is not None
    return "" if not before or joined or before[-1] in _OPENING or before[-1].isspace() else " "
