"""A text while the engine writes it: its tokens, how far they have been read, and its pages."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

from daybreak.architecture import Architecture
from daybreak.engine.chooser import Chooser
from daybreak.engine.continuation import Continuation
from daybreak.engine.layout import GrowingLayout
from daybreak.engine.logprobs import TokenLogprob
from daybreak.engine.pages import PAGE, Block, Pages, PageTable, keys_of
from daybreak.engine.step import Part
from daybreak.errors import DaybreakError


class Running:
    """One text. Whatever is lost of its pages is read again; its tokens are not lost."""

    def __init__(
        self,
        text: Continuation,
        chooser: Chooser,
        architecture: Architecture,
        pages: Pages,
        weights: bytes = b"",
    ) -> None:
        """`weights`: what tells them from the model's own, where an adapter changes them."""
        self.text = text
        self.chooser = chooser
        self.tokens = [*text.prompt.tokens, *text.tokens]  # of a text that was left, some are written
        self.read = 0
        """Tokens whose keys and values are in the pages."""
        self.table = PageTable(pages)
        self.error: DaybreakError | None = None
        """Why it could not go on."""
        self.scores: list[TokenLogprob | None] = [None]
        """Of the prompt's tokens, as far as it has been read."""
        self.proposed = 0
        """Tokens that were guessed, and how many of them were right."""
        self.accepted = 0
        self._pages = pages
        blanks = architecture.blanks
        self._layout = None if blanks is None else GrowingLayout(blanks, self.tokens)
        # A token of a context depends on all of it.
        self._start = weights + (
            b"" if self._layout is None else array("q", self.tokens[: self._layout.context]).tobytes()
        )
        self._keys: list[bytes] = []

    @property
    def done(self) -> bool:
        unscored = self.alternatives is not None and self.text.prompt_logprobs is None
        return self.error is not None or (self.text.finish_reason is not None and not unscored)

    @property
    def left(self) -> int:
        """Tokens to be read before the next one can be chosen."""
        return len(self.tokens) - self.read

    @property
    def alternatives(self) -> int | None:
        """What is asked of the prompt's tokens."""
        return self.text.sampling.prompt_logprobs

    def keys(self) -> list[bytes]:
        """Of all whole blocks of its tokens."""
        if len(self._keys) < len(self.tokens) // PAGE:
            self._keys = keys_of(self.tokens, self._start)
        return self._keys

    def adopt_known(self) -> None:
        """Begin with what others have read: all but the last token, from which the next one is chosen."""
        found = self._pages.find(self.keys()[: (len(self.tokens) - 1) // PAGE])
        if self.alternatives is not None:
            found = self._with_scores(found)
        if self._layout is not None and len(found) * PAGE <= self._layout.context:
            found = []  # a context is read at once
        self.table.adopt(found)
        self.read = len(found) * PAGE

    @property
    def least(self) -> int:
        """Tokens that must be read at once: those of a context, which see each other."""
        return 1 if self._layout is None else max(1, self._layout.context + 1 - self.read)

    def part(self, count: int, proposals: Sequence[int] = ()) -> Part:
        """The next `count` tokens, and guesses at what follows."""
        begin, end = self.read, self.read + count
        tokens = [*self.tokens[begin:end], *proposals]
        if self._layout is None:
            return Part(self.table, tokens, begin, adapter=self.text.adapter)
        positions, blocks = self._layout.of(self.tokens, begin, end)
        return Part(self.table, tokens, begin, positions, blocks, self._layout.context, self.text.adapter)

    def note_read(self, count: int) -> None:
        """So many more tokens are in the pages; whole blocks can be found by others from now on."""
        before, self.read = self.read // PAGE, self.read + count
        for number in range(before, self.read // PAGE):
            self._pages.know(self.table.blocks[number], self.keys()[number])
        self._share_scores()
        self.table.forget(self.read)

    def stand_back(self) -> None:
        """Give its pages to others; it goes on later."""
        self.table.release()
        self.read = 0

    def _with_scores(self, found: list[Block]) -> list[Block]:
        """Those whose tokens' log-probabilities are known, but the last: it tells that of the token after
        it.
        """
        assert self.alternatives is not None
        known = list(itertools.takewhile(lambda block: self.alternatives in block.scores, found))
        scores = [entry for block in known for entry in block.scores[self.alternatives]]
        if len(scores) > len(self.scores):
            self.scores = scores
        return known[:-1]

    def _share_scores(self) -> None:
        if self.alternatives is None:
            return
        for number in range(min(self.read, len(self.scores)) // PAGE):
            own = self.table.blocks[number].scores
            if self.alternatives not in own:
                own[self.alternatives] = tuple(self.scores[number * PAGE : (number + 1) * PAGE])
