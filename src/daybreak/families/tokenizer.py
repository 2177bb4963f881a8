"""How a family's tokenizers are learned from text: what a page says, so that one of your own can be alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerDesign:
    """One way from texts to tokens."""

    kind: Literal["bytes", "words", "pieces"]
    """bytes: byte-level pairs; words: pairs of letters in lower-cased words, with their ends marked; pieces:
    sentencepiece's unigram model.
    """
    vocabulary: int
    """Of the published tokenizer: all ids, with those of special tokens."""
    first: tuple[str, ...] = ()
    """Special tokens with the lowest ids."""
    last: tuple[str, ...] = (END_OF_TEXT,)
    """Special tokens with the highest ids."""
    split: str | None = None
    """bytes: a regular expression finds the parts inside which pairs are merged; None: GPT-2's."""
    composed: bool = False
    """bytes: letters and their accents are put together first (Unicode's NFC), so texts that spell them apart
    do not come back as they were."""
    longest_run: int = 0
    """bytes: runs of 2 spaces up to so many are tokens of their own, found before anything else."""
    bos: str | None = END_OF_TEXT
    eos: str | None = END_OF_TEXT
    pad: str | None = None
    adds_bos: bool = False
    """Texts start with the bos token."""


PAIRS_OF_BYTES = TokenizerDesign("bytes", 50257)
"""GPT-2's (section 2.2 of its paper), which GPT-3, GPT-Neo and GPT-J took over: 256 bytes, 50,000 pairs, and
the end of the text."""
