"""Tokenizers of one's own, learned from texts: pairs of bytes, pairs of letters, sentencepiece's pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.text.read_fast import WORD_END, lower_cased
from daybreak.text.tokenizer import END_OF_TEXT, Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SOURCE_CODE = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+"  # a word with the sign before it: " self", ".append", "_name"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+(?:\n[ \t]*)*"  # signs with line break and indentation after them: "):\n        "
    r"|\n[ \t\n]*"
    r"|\s+(?!\S)|\s+"
)
"""How source code is cut before merging. On Python's standard library, 5 % fewer tokens than with the cuts
that GPT-2 introduced, at the same size of vocabulary."""
BYTES = 256
LETTERS = 256
"""So many letters of words are known in any case, the most frequent ones."""


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, pattern: str = SOURCE_CODE, marks: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level tokenizer of `vocabulary` entries: an end-of-text token (id 0), 256 bytes, and the pairs
    merged.

    `marks` are special tokens that follow, with the ids from `vocabulary` on.

    `pattern` is a regular expression that finds the pieces inside which pairs may merge. Merging starts from
    bytes (Radford et al. 2019, section 2.2), so every text has an encoding. Raises `DaybreakError` for a
    vocabulary too small for that, or larger than the texts give.
    """
    design = TokenizerDesign("bytes", vocabulary, first=(END_OF_TEXT,), last=(), split=pattern)
    return train_like(design, texts, vocabulary + len(marks), marks)


def train_like(
    design: TokenizerDesign,
    texts: Iterable[str],
    vocabulary: int | None = None,
    marks: Sequence[str] = (),
) -> Tokenizer:
    """A tokenizer learned as `design` says, from texts that are read once, one after another.

    `vocabulary` counts all ids, with those of special tokens; None: as many as the design's published one
    has. `marks` are further special tokens, with the highest ids. Raises `DaybreakError` for a vocabulary too
    small for its special tokens and single characters, or larger than the texts give, and for a mark that is
    there already.

    The same texts give the same tokenizer, but for kind words: there the library numbers the letters at the
    ends of words as they come out of a hash table, and decides between equally frequent pairs by numbers.
    """
    total = design.vocabulary if vocabulary is None else vocabulary
    _check_marks(design, marks)
    behind = [*_runs(design), *design.last, *marks]
    least = len(design.first) + len(behind) + (BYTES if design.kind == "bytes" else 1)
    if total < least:
        what = "all bytes and its special tokens" if design.kind == "bytes" else "its special tokens"
        raise DaybreakError(f"a vocabulary of {total} cannot hold {what}; take at least {least}")
    if design.kind == "pieces":
        from daybreak.text.train_pieces import train_pieces

        return train_pieces(design, _checked(texts), total, behind)
    library = _pairs(design, texts, total, len(behind))
    _add(library, _runs(design), special=False)
    _add(library, [*design.last, *marks], special=True)
    if design.adds_bos and design.bos is not None:
        _start_with(library, design.bos)
    return Tokenizer(library, bos=design.bos, eos=design.eos, pad=design.pad, adds_bos=design.adds_bos)


def _check_marks(design: TokenizerDesign, marks: Sequence[str]) -> None:
    known = {*design.first, *design.last}
    for mark in marks:
        if not mark or mark in known:
            reason = "is there already" if mark else "has no text"
            raise DaybreakError(f"the special token {mark!r} {reason}; leave it out")
        known.add(mark)


def _runs(design: TokenizerDesign) -> list[str]:
    """Runs of spaces, the longest first, as GPT-NeoX's file lists them."""
    return [" " * length for length in range(design.longest_run, 1, -1)]


def _pairs(design: TokenizerDesign, texts: Iterable[str], total: int, behind: int) -> Library:
    """All entries but the last, which are `behind` them."""
    library, trainer = (_bytes if design.kind == "bytes" else _words)(design, total - behind)
    library.train_from_iterator(_checked(texts), trainer)
    if (found := library.get_vocab_size() + behind) < total:
        raise DaybreakError(f"the texts give {found} entries, not {total}; ask for fewer, or give more text")
    if found > total:
        raise DaybreakError(
            f"a vocabulary of {total} cannot hold the letters of the texts; take at least {found}"
        )
    return library


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Half of a surrogate pair, as damaged JSON has them, is no text, and the library ends at one."""
    for text in texts:
        yield text if text.isascii() else text.encode("utf-8", "replace").decode()


def _bytes(design: TokenizerDesign, size: int) -> tuple[Library, Any]:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    library = Backend(models.BPE())
    if design.composed:
        library.normalizer = normalizers.NFC()
    if design.split is None:
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(design.split), "isolated")
        unsplit = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([split, unsplit])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(design.first),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    return library, trainer


def _words(design: TokenizerDesign, size: int) -> tuple[Library, Any]:
    from tokenizers import models, trainers

    library = lower_cased(models.BPE(unk_token=design.first[0], end_of_word_suffix=WORD_END))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(design.first),
        # Each letter has two entries, inside a word and at its end; the rarest are left unknown.
        limit_alphabet=max(LETTERS, size // 4),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    return library, trainer


def _add(library: Library, texts: Sequence[str], special: bool) -> None:
    from tokenizers import AddedToken

    for text in texts:
        if special and library.token_to_id(text) is not None:
            raise DaybreakError(
                f"the special token {text!r} is a piece of the texts as well; name it otherwise"
            )
    tokens = [AddedToken(text, special=special, normalized=not special) for text in texts]
    library.add_special_tokens(tokens) if special else library.add_tokens(tokens)


def _start_with(library: Library, bos: str) -> None:
    """Put `bos` in front of every text where tokenizer.json is read elsewhere."""
    from tokenizers.processors import TemplateProcessing

    number = library.token_to_id(bos)
    library.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
    )
