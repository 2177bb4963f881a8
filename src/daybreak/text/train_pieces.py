"""Sentencepiece's unigram model of one's own, as the GLM line uses such models; here it loses nothing.

The result is two files that say the same: the model for sentencepiece, under the name that GLM's code gives
it, and tokenizer.json for everything that reads that. What is different from the published models, and why,
is docs/decisions/075-pieces-that-lose-nothing.md.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from daybreak.errors import DaybreakError
from daybreak.families.tokenizer import TokenizerDesign
from daybreak.text.added_tokens import DECODER
from daybreak.text.named import CONFIG
from daybreak.text.piece_model import NORMAL, PieceModel
from daybreak.text.read_fast import UNKNOWN
from daybreak.text.read_pieces import COG
from daybreak.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SPACE = "▁"
"""What sentencepiece writes for a space."""
LINES = 2_000_000
"""So many lines, drawn evenly from all that are read, are in memory while pieces are learned."""
LONGEST = 1000
"""Characters of a line; longer ones are cut, where sentencepiece would leave them out."""
NEVER = -1000.0
"""The score of pieces that texts are not cut into: below any cut into others."""


def train_pieces(
    design: TokenizerDesign, texts: Iterable[str], vocabulary: int, specials: Sequence[str]
) -> Tokenizer:
    """`vocabulary` counts `specials`, which follow the pieces. Raises `DaybreakError` for a vocabulary too
    small for the texts' characters, or larger than the texts give."""
    contents = _learned(texts, vocabulary - len(specials), len(specials))
    library = _library(contents, specials)
    tokenizer = Tokenizer(library, bos=design.bos, eos=design.eos, pad=design.pad)
    tokenizer.files[COG] = contents
    tokenizer.files[CONFIG] = _with_ids(tokenizer.files[CONFIG], library, specials)
    return tokenizer


def _learned(texts: Iterable[str], size: int, specials: int) -> bytes:
    from sentencepiece import SentencePieceTrainer

    contents = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=contents,
            model_type="unigram",
            vocab_size=size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            input_sentence_size=LINES,
            shuffle_input_sentence=True,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, size, specials) from None
    return contents.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines without their breaks, which are single bytes in every text, of at most LONGEST characters."""
    for text in texts:
        for line in text.split("\n"):
            yield from (line[start : start + LONGEST] for start in range(0, len(line), LONGEST))


def _explained(error: RuntimeError, size: int, specials: int) -> DaybreakError:
    text = str(error)
    if found := re.search(r"too high .* <= (\d+)", text):
        return DaybreakError(
            f"the texts give {int(found[1]) + specials} entries, not {size + specials}; "
            "ask for fewer, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. -?\d+ vs (\d+)", text):
        return DaybreakError(
            f"a vocabulary of {size + specials} cannot hold all bytes, its special tokens and the characters "
            f"of the texts; take at least {int(found[1]) + specials}"
        )
    return DaybreakError(f"sentencepiece learned nothing from the texts: {' '.join(text.split())}")


def _library(contents: bytes, specials: Sequence[str]) -> Library:
    """The model for the tokenizers library, with the special tokens behind its pieces."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    processor = SentencePieceProcessor(model_proto=contents)
    model = PieceModel.read(contents)
    pieces = [
        (text, float(processor.get_score(place)) if kind == NORMAL else NEVER)
        for place, (text, kind) in enumerate(zip(model.texts, model.kinds, strict=True))
    ]
    library = Backend(models.Unigram(pieces, unk_id=model.texts.index(UNKNOWN), byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    library.decoder = decoders.Sequence(
        [decoders.Replace(Regex(SPACE), " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return library


def _with_ids(config: bytes, library: Library, specials: Sequence[str]) -> bytes:
    """tokenizer_config.json with the special tokens' ids, so that the model is enough without
    tokenizer.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokens = {str(library.token_to_id(text)): {"content": text, **flags} for text in specials}
    whole = {**json.loads(config), DECODER: tokens}
    return (json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
