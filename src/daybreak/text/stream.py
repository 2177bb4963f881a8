"""Text as it comes: token ids in, pieces of text out, never half a character and never part of a stop
string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
CONTEXT = 8
"""Tokens that are decoded together with a new one; decoders may join tokens differently at the start of a
text."""
LONGEST = 64
"""Tokens that are decoded together where no whole character ends among them (a model that writes broken
bytes)."""


class Decodes(Protocol):
    """What this module needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Pieces of text whose concatenation is what decoding all tokens at once gives.

    A token may hold part of a character's bytes. Decoded, an unfinished end shows as up to three U+FFFD, so
    these are held back until later tokens finish the character or `finish` says that there are none.
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int] = (), *, unfinished: bool = False) -> None:
        """`prompt`: tokens already shown, which the text continues.

        `unfinished`: the prompt may end within a character (token ids, not text); it then belongs to the
        first piece.
        """
        self._decode = tokenizer.decode
        self._window = list(prompt[-CONTEXT:])
        text = self._decode(self._window) if self._window else ""
        self._given = len(text) - (_held(text) if unfinished else 0)
        self._boundary = 0 if _held(text) else len(self._window)

    def feed(self, tokens: Sequence[int]) -> str:
        """The text that can be shown after these further tokens; often empty."""
        self._window.extend(tokens)
        text = self._decode(self._window)
        end = len(text) - _held(text)
        piece = text[self._given : end]
        self._given = max(self._given, end)
        self._shorten(clean=end == len(text))
        return piece

    def finish(self) -> str:
        """What was held back: the text ends here."""
        piece = self._decode(self._window)[self._given :]
        self._given += len(piece)
        return piece

    def _shorten(self, clean: bool) -> None:
        if clean and len(self._window) - self._boundary >= CONTEXT:
            self._window = self._window[self._boundary :] if self._boundary else self._window
            self._boundary = len(self._window)
            self._given = len(self._decode(self._window))
        elif len(self._window) > LONGEST and not clean:
            self._window, self._boundary = self._window[-CONTEXT:], 0
            text = self._decode(self._window)
            self._given = len(text) - _held(text)


class StopStrings:
    """Passes text on up to the first stop string, and holds back an end that may become one.

    Of several stop strings the one that is complete first counts, so the result does not depend on the
    pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._kept = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def feed(self, piece: str) -> str:
        """The text that can be shown after this further piece; nothing once a stop string is found."""
        if self.found is not None:
            return ""
        text = self._kept + piece
        matches = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            end, _, self.found = min(matches)
            self._kept = ""
            return text[: end - len(self.found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._kept = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back: the text ends here."""
        rest, self._kept = self._kept, ""
        return rest


class TextStream:
    """Both of the above: tokens in, pieces of text out."""

    def __init__(
        self,
        tokenizer: Decodes,
        prompt: Sequence[int] = (),
        stops: Sequence[str] = (),
        *,
        unfinished: bool = False,
    ) -> None:
        """See `Detokenizer` and `StopStrings`."""
        self._detokenizer = Detokenizer(tokenizer, prompt, unfinished=unfinished)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """A stop string ended the text."""
        return self._stops.found is not None

    def feed(self, tokens: Sequence[int], *, watch: bool = True) -> str:
        """The text that can be shown after these further tokens. Without `watch` stop strings are text like
        any other."""
        piece = self._detokenizer.feed(tokens)
        return self._stops.feed(piece) if watch else piece

    def finish(self) -> str:
        """What was held back: the text ends here."""
        if self.stopped:
            return ""
        return self._stops.feed(self._detokenizer.finish()) + self._stops.finish()


def _held(text: str) -> int:
    """How many of the last three characters in a row are U+FFFD."""
    count = 0
    while count < 3 and count < len(text) and text[-1 - count] == REPLACEMENT:
        count += 1
    return count


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
