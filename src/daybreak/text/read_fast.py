"""Byte pairs and word pieces from their files: tokenizer.json, vocab.json with merges.txt, or vocab.txt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError
from daybreak.text.added_tokens import Added, add, from_config, from_list
from daybreak.text.named import ADDED, CONFIG, Beside, read_object, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

WHOLE, VOCABULARY, MERGES, WORDS = "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"
WORD_END = "</w>"
"""Marks the last piece of a word in the vocabulary of the first GPT; byte-level vocabularies mark beginnings
instead."""
WORD_REST = "##"
"""Marks all pieces of a word but the first in a vocabulary of word pieces."""
UNKNOWN = "<unk>"
END_OF_TEXT = "<|endoftext|>"
COMMANDS = ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[dBLOCK]", "<|startofpiece|>", "<|endofpiece|>", END_OF_TEXT)
BLANKS = ("[MASK]", "[gMASK]", "[sMASK]")
"""Special tokens of blank infilling wherever added_tokens.json lists them, which cannot say so. Those for a
blank drop the white space on their left (THUDM/GLM, data_utils/tokenization.py: `lstrip`)."""


def read_fast(beside: Beside) -> tuple[Library, dict[str, str]] | None:
    """The library's tokenizer, and the special tokens by role where the files name none; None without files.

    Raises `DaybreakError` for files that cannot be understood, or do not belong together.
    """
    folder, files, config, named = beside
    if WHOLE in files:
        library, defaults = _whole(folder, files)
    elif {VOCABULARY, MERGES} <= files.keys():
        library, defaults = _from_merges(folder, files, config)
    elif WORDS in files:
        library, defaults = _from_words(folder / WORDS, files[WORDS], config)
    else:
        return None
    special = special_tokens({**{f"{role}_token": text for role, text in defaults.items()}, **named})
    add(library, _added(beside, special), special)
    return library, defaults


def _added(beside: Beside, special: Mapping[str, Any]) -> Iterable[Added]:
    """Of a token that both files list, the description that says more."""
    spelled = from_list(beside.folder / ADDED, beside.added())
    described = from_config(beside.folder / CONFIG, beside.config)
    told = (_told(token, special.get(token.text)) for token in spelled)
    return {(token.id, token.text): token for token in (*told, *described)}.values()


def _told(token: Added, entry: Any) -> Added:
    """A token of added_tokens.json, with what is said of it where it is named."""
    if isinstance(entry, dict):
        flags = {flag: bool(entry[flag]) for flag in ("lstrip", "rstrip") if flag in entry}
        return replace(token, flags=flags, special=True)
    if token.text in BLANKS:
        return replace(token, flags={"lstrip": True}, special=True)
    return replace(token, special=True) if token.text in COMMANDS else token


def _whole(folder: Path, files: Mapping[str, bytes]) -> tuple[Library, dict[str, str]]:
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_buffer(files[WHOLE])
    except Exception as error:  # the library raises Exception itself, whatever is wrong
        raise DaybreakError(f"{folder / WHOLE} is not a tokenizer: {error}; fetch it again") from None
    library.no_truncation()  # files saved after training may cut texts or pad them
    library.no_padding()
    return library, _ends(END_OF_TEXT if library.token_to_id(END_OF_TEXT) is not None else None)


def _from_merges(
    folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> tuple[Library, dict[str, str]]:
    from tokenizers.models import BPE

    vocabulary = read_object(folder / VOCABULARY, files[VOCABULARY])
    merges = _merges(folder / MERGES, files[MERGES])
    ends_words = any(token.endswith(WORD_END) for token in vocabulary)
    try:
        if ends_words:
            model = BPE(vocabulary, merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END)
        else:
            model = BPE(vocabulary, merges)
    except Exception as error:  # as above
        raise DaybreakError(f"{folder}: {VOCABULARY} and {MERGES} do not belong together: {error}") from None
    if ends_words:
        return lower_cased(model), {"unk": UNKNOWN}
    end = END_OF_TEXT if END_OF_TEXT in vocabulary else None
    return _byte_level(model, bool(config.get("add_prefix_space"))), _ends(end)


def _ends(token: str | None) -> dict[str, str]:
    """The second GPT's way, where files name nothing else: one token stands before and after every text."""
    return {"bos": token, "eos": token} if token else {}


def lower_cased(model: Any) -> Library:
    """The first GPT's: lower case without accents, words and punctuation apart, as BERT's basic tokenizer
    cuts them."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, normalizers, pre_tokenizers

    library = Library(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return library


def _byte_level(model: Any, prefix_space: bool) -> Library:
    """The second GPT's, which most families took over: bytes as characters, words with the space before
    them."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, pre_tokenizers

    library = Library(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    library.decoder = decoders.ByteLevel()
    return library


def _from_words(file: Path, contents: bytes, config: Mapping[str, Any]) -> tuple[Library, dict[str, str]]:
    """BERT's: one word piece a line; upper case and accents kept only where `do_lower_case` is false."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    lines = contents.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    defaults = {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    unknown = config.get("unk_token", defaults["unk"])
    if unknown not in vocabulary:
        raise DaybreakError(f"{file} lacks {unknown!r}, for words that it cannot spell; fetch it again")
    library = Library(WordPiece(vocabulary, unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix=WORD_REST, cleanup=False)
    return library, defaults


def _merges(file: Path, contents: bytes) -> list[tuple[str, str]]:
    lines = contents.decode("utf-8", errors="replace").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    merges = []
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not right or " " in right:
            raise DaybreakError(
                f"{file}, line {number}: {line!r} is no pair of pieces to merge; fetch the file again"
            )
        merges.append((left, right))
    return merges
