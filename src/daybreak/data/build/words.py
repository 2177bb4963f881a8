"""Words and sentences of any script, without a language's own library.

datatrove cuts words with spaCy, stanza and others, by language. Which of them is installed would decide what
a filter keeps; this cut is the same everywhere.
"""

from __future__ import annotations

import re

from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts that write no spaces between words: Thai to Tibetan, Myanmar, Khmer, kana, ideographs.
_UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_SIGNS = (
    r"!-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\u2000-\u206f\u2190-\u2bff\u3000-\u303f"
    r"\uff00-\uff0f\uff1a-\uff20"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_SIGNS}{_UNSPACED}]+|[{_SIGNS}]")
_END = re.compile(r"[.!?…।؟]+[\"'”’)\]]*(?=\s|$)|[。！？]+[”’」』）]*|\n+")


class Words(WordTokenizer):  # type: ignore[misc]
    """What datatrove asks of a language: runs of letters, marks and digits; signs by themselves; where no
    spaces are written, single characters."""

    def __init__(self) -> None:
        super().__init__(None)

    def word_tokenize(self, text: str) -> list[str]:
        """The words and signs of a text."""
        return [word for word in _WORD.findall(text) if not word.isspace()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Beginnings and ends of the sentences; together they are the text."""
        ends = [match.end() for match in _END.finditer(text)]
        if not ends or ends[-1] < len(text):
            ends.append(len(text))
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences, without the spaces around them; what is blank is none."""
        parts = (text[begin:end].strip() for begin, end in self.span_tokenize(text))
        return [part for part in parts if part]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words)

    def __hash__(self) -> int:  # datatrove keeps splits of the last texts, by text and language
        return hash(Words)
