"""The tokenizer inside a GGUF file, as the files of a Hugging Face folder: tokenizer.json and
tokenizer_config.json.

The format holds the vocabulary, the merges or scores, the kind of every token, and the name of the rule that
cuts text into words (its pre-tokeniser); a normaliser it cannot hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError
from daybreak.families.gguf import CUTS, TOKENIZERS, WHOLE_FIRST
from daybreak.text.named import CONFIG
from daybreak.text.read_fast import WHOLE
from daybreak.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library
    from tokenizers.pre_tokenizers import PreTokenizer

KEYS = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens: gguf-py, constants.py, TokenType."""
SPACE = "▁"
"""A space, in the vocabularies of sentencepiece."""
CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with any one sign before them, up to three digits, line ends with what precedes them."""
UNPUNCTUATED = r" ?[^(\s|[.,!?…。，、।۔،])]+"
"""Everything but white space and the commonest punctuation marks."""


def from_gguf(file: Path, metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the keys of a GGUF file describe; None if there is none.

    Raises `DaybreakError` for kinds and pre-tokenisers that are not known here.
    """
    kind = metadata.get(KEYS + "model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind not in TOKENIZERS:
        raise DaybreakError(
            f"{file} has a tokenizer of the kind {kind!r}; read are {' and '.join(map(repr, TOKENIZERS))}"
        )
    tokens = metadata.get(KEYS + "tokens")
    kinds = metadata.get(KEYS + "token_type") or [NORMAL] * len(tokens or ())
    if not tokens or len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise DaybreakError(f"{file} lists its tokens incompletely or twice; fetch the file again")
    roles = {role: _named(file, metadata, role, tokens) for role in ("bos", "eos", "unknown", "padding")}
    # An unused token that has a role is used, and keeps its place.
    named = {*roles.values()}
    kinds = [CONTROL if k == UNUSED and t in named else k for t, k in zip(tokens, kinds, strict=True)]
    library = _READERS[TOKENIZERS[kind]](file, metadata, tokens, kinds)
    _add(library, tokens, kinds, roles)
    _check_ids(file, library, tokens, kinds)
    usual = TOKENIZERS[kind] == "pieces" or CUTS.get(str(metadata.get(KEYS + "pre"))) == WHOLE_FIRST
    adds = bool(metadata.get(KEYS + "add_bos_token", usual)) and roles["bos"] is not None
    if adds:
        _start_with(library, str(roles["bos"]))
    said = _config(roles, adds, metadata.get("tokenizer.chat_template"))
    files = {WHOLE: library.to_str(pretty=True).encode(), CONFIG: said}
    return Tokenizer(
        library, bos=roles["bos"], eos=roles["eos"], pad=roles["padding"], adds_bos=adds, files=files
    )


def _named(file: Path, metadata: Mapping[str, Any], role: str, tokens: Sequence[str]) -> str | None:
    number = metadata.get(f"{KEYS}{role}_token_id")
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise DaybreakError(f"{file} names {number} as its {role} token, and has {len(tokens)} tokens")
    return str(tokens[number])


def _byte_pairs(
    file: Path, metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]
) -> Library:
    """The second GPT's way: bytes as characters, merges by their rank."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders
    from tokenizers.models import BPE

    cut = metadata.get(KEYS + "pre")
    if cut not in CUTS:
        raise DaybreakError(
            f"{file} cuts text into words by the rule {cut!r} (tokenizer.ggml.pre), which is not known here; "
            f"known are {', '.join(CUTS)}. A near one would give other tokens"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get(KEYS + "merges") or ()]
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != UNUSED}
    try:
        model = BPE(vocabulary, merges, ignore_merges=CUTS[cut] == WHOLE_FIRST)
    except Exception as error:  # the library raises Exception itself, whatever is wrong
        raise DaybreakError(f"{file}: tokens and merges do not belong together: {error}") from None
    library = Library(model)
    library.pre_tokenizer = _CUTS[CUTS[cut]]()
    library.decoder = decoders.ByteLevel()
    return library


def _pieces(file: Path, metadata: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> Library:
    """Sentencepiece's byte pairs: the pair whose piece has the highest score is merged first; characters
    without a piece are bytes."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, normalizers
    from tokenizers.models import BPE

    scores = metadata.get(KEYS + "scores")
    if scores is None or len(scores) != len(tokens):
        raise DaybreakError(f"{file} has no score for each of its tokens; fetch the file again")
    prefix = bool(metadata.get(KEYS + "add_space_prefix", True))
    unknown = metadata.get(KEYS + "unknown_token_id")
    vocabulary = {token: number for number, token in enumerate(tokens) if kinds[number] != UNUSED}
    library = Library(
        BPE(
            vocabulary,
            _merges(tokens, kinds, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    ends: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return library


def _merges(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the pieces with the highest score first."""
    pieces = {token: number for number, token in enumerate(tokens) if kinds[number] == NORMAL}
    ways = [
        (-scores[number], number, token[:cut], token[cut:])
        for token, number in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [(left, right) for *_, left, right in sorted(ways)]


def _add(library: Library, tokens: Sequence[str], kinds: Sequence[int], roles: Mapping[str, Any]) -> None:
    """Tokens that are found in text as wholes: control tokens, which are no text, and the user's."""
    from tokenizers import AddedToken

    special = {*roles.values()} - {None}
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, UNKNOWN) or token in special:
            library.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_DEFINED:
            library.add_tokens([AddedToken(token, special=False, normalized=False)])


def _check_ids(file: Path, library: Library, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    for number, token in enumerate(tokens):
        if kinds[number] != UNUSED and library.token_to_id(token) != number:
            raise DaybreakError(
                f"{file} gives its token {token!r} the id {number}, here it would be "
                f"{library.token_to_id(token)}; take a file whose tokens are complete"
            )


def _start_with(library: Library, bos: str) -> None:
    from tokenizers.processors import TemplateProcessing

    library.post_processor = TemplateProcessing(
        single=f"{bos}:0 $A:0",
        pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
        special_tokens=[(bos, library.token_to_id(bos))],
    )


def _config(roles: Mapping[str, str | None], adds: bool, template: str | None) -> bytes:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    said: dict[str, Any] = {
        **{f"{name}_token": roles[role] for name, role in names.items()},
        "add_bos_token": adds,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if template is not None:
        said["chat_template"] = template
    return (json.dumps(said, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _plain() -> PreTokenizer:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False)


def _digits() -> PreTokenizer:
    from tokenizers.pre_tokenizers import Digits, Sequence

    return Sequence([Digits(individual_digits=True), _plain()])


def _split(expression: str) -> PreTokenizer:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    words = Split(Regex(expression), behavior="isolated")
    return Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


_READERS = {"byte pairs": _byte_pairs, "pieces": _pieces}
_CUTS: dict[str, Callable[[], PreTokenizer]] = {
    "words": _plain,
    "words and digits": _digits,
    "unpunctuated": lambda: _split(UNPUNCTUATED),
    "words whole": lambda: _split(CASELESS),
}
