"""Guesses at what a text goes on with, which the model checks in one pass: several tokens for the price of a
few, and the same text (speculative decoding, arXiv 2211.17192).

A guess is right if the model would have chosen it: with the same random numbers, since those depend on the
text and the place alone. So it is not the distribution that is kept but the very text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from daybreak.engine.memory import available
from daybreak.engine.pages import PageLayout, Pages, PageTable
from daybreak.engine.prompts import Model, live_vocabulary
from daybreak.engine.running import Running
from daybreak.engine.step import Part, stepper
from daybreak.errors import DaybreakError

NGRAMS = (4, 3)
"""Tokens at the end of a text that are looked for earlier in it, the longer ones first."""


class Guesser(Protocol):
    """Whatever makes guesses."""

    def guess(self, texts: Sequence[Running], most: int) -> list[list[int]]:
        """Of each text at most so many tokens."""

    def forget(self, text: Running) -> None:
        """It is finished, or gone."""


class Lookup:
    """A text repeats itself: names, quotations, code. What followed the last time follows again."""

    def __init__(self) -> None:
        self._places: dict[int, _Places] = {}

    def guess(self, texts: Sequence[Running], most: int) -> list[list[int]]:
        return [self._places.setdefault(id(one), _Places()).following(one.tokens, most) for one in texts]

    def forget(self, text: Running) -> None:
        self._places.pop(id(text), None)


class _Places:
    """Where each few tokens of a text stood the last time."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def following(self, tokens: Sequence[int], most: int) -> list[int]:
        """What followed the latest earlier place where the last tokens stood as they do at the end."""
        for end in range(self._known, len(tokens)):
            for size in NGRAMS:
                if end >= size:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._known = len(tokens)
        for size in NGRAMS:
            place = self._ends.get(tuple(tokens[-size:])) if len(tokens) > size else None
            if place is not None:
                return list(tokens[place : place + most])
        return []


class Draft:
    """A smaller model with the same tokenizer, which chooses as the text's own settings say."""

    def __init__(self, model: Model, draft: Model, stored: str, chunk: int) -> None:
        """`chunk`: tokens of a text that are read at a time where many are not read yet. Raises
        `DaybreakError` for models whose tokens differ.
        """
        _check_tokens(model, draft)
        self._decoder, self._live = draft.decoder, live_vocabulary(model)
        device = draft.decoder.tokens.weight.device
        self._pages = Pages(PageLayout.of(draft.architecture, stored), available(device) // 8, device)
        self._step = stepper(draft.decoder, self._pages)
        self._chunk = chunk
        self._tables: dict[int, tuple[PageTable, list[int]]] = {}

    @torch.inference_mode()
    def guess(self, texts: Sequence[Running], most: int) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in texts]
        active = [number for number, text in enumerate(texts) if self._begin(text, most)]
        for number in active:
            while len(texts[number].tokens) - len(self._tables[id(texts[number])][1]) > self._chunk:
                self._step.read([self._part(texts[number], (), self._chunk)])
        for _ in range(most):
            parts = [self._part(texts[number], guesses[number]) for number in active]
            if not parts:
                break
            rows = torch.split(self._step.read(parts), [len(part.tokens) for part in parts])
            logits = self._step.unembed(torch.stack([row[-1] for row in rows]))
            for place, number in enumerate(active):
                chooser, step = texts[number].chooser, len(texts[number].text.tokens) + len(guesses[number])
                guesses[number].append(chooser.expect(logits[place : place + 1, : self._live], step))
        return guesses

    def forget(self, text: Running) -> None:
        if id(text) in self._tables:
            self._tables.pop(id(text))[0].release()

    def _begin(self, text: Running, most: int) -> bool:
        """Keep what the draft has read of this text; False: there is no room for it."""
        table, read = self._tables.setdefault(id(text), (PageTable(self._pages), []))
        known = next(
            (n for n, (a, b) in enumerate(zip(read, text.tokens, strict=False)) if a != b), len(read)
        )
        del read[min(known, len(text.tokens) - 1) :]
        context = self._decoder.architecture.context
        if len(text.tokens) + most > context or not table.reach(len(text.tokens) + most):
            self.forget(text)
            return False
        return True

    def _part(self, text: Running, guesses: Sequence[int], most: int | None = None) -> Part:
        table, read = self._tables[id(text)]
        tokens = [*text.tokens, *guesses][len(read) :][:most]
        part = Part(table, tokens, len(read))
        read += tokens
        return part


def _check_tokens(model: Model, draft: Model) -> None:
    if draft.architecture.blanks is not None or model.architecture.blanks is not None:
        raise DaybreakError("models that fill blanks are not drafted for; leave the draft out")
    tokenizers = [each.tokenizer for each in (model, draft)]
    if None not in tokenizers:
        texts = [tokenizer.decode(list(range(min(1000, tokenizer.vocabulary)))) for tokenizer in tokenizers]
        if texts[0] != texts[1] or tokenizers[0].vocabulary != tokenizers[1].vocabulary:
            raise DaybreakError("the draft has another tokenizer than the model; take one of the same family")
    elif draft.architecture.vocabulary != model.architecture.vocabulary:
        raise DaybreakError(
            f"the draft has {draft.architecture.vocabulary} tokens, the model "
            f"{model.architecture.vocabulary}; take one with the same tokenizer"
        )


class Worth:
    """Are guesses worth their time here? Both ways are tried and timed, and the faster one is kept."""

    AGAIN = 64
    """Steps until the other way is tried once more."""

    def __init__(self) -> None:
        self._speeds: dict[bool, float] = {}
        """Tokens per second with and without guesses, the latest counting most."""
        self._steps = 0

    def decide(self) -> bool:
        """Whether to guess in this step."""
        self._steps += 1
        if len(self._speeds) < 2:
            return True not in self._speeds or self._steps % 4 != 0
        best = self._speeds[True] >= self._speeds[False]
        return best if self._steps % self.AGAIN else not best

    def learn(self, guessed: bool, tokens: int, seconds: float) -> None:
        """A step gave so many tokens."""
        speed = tokens / seconds
        self._speeds[guessed] = speed + 0.8 * (self._speeds.get(guessed, speed) - speed)
