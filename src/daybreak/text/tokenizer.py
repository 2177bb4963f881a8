"""Text to token ids and back, from the files that lie beside a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daybreak.errors import DaybreakError
from daybreak.text.added_tokens import Added, add, from_config, from_list

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

WHOLE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FILES = (WHOLE, VOCABULARY, MERGES, CONFIG, SPECIAL, ADDED)
WORD_END = "</w>"
"""Marks the last piece of a word in the vocabulary of the first GPT; byte-level vocabularies mark beginnings
instead."""
UNKNOWN = "<unk>"
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A byte-pair encoding with its special tokens. `load` reads one, `save` writes back the very files that
    were read."""

    def __init__(
        self,
        backend: Backend,
        *,
        bos: str | None = None,
        eos: str | None = None,
        pad: str | None = None,
        adds_bos: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """`backend` does the work; `bos`, `eos` and `pad` name its special tokens; `adds_bos`: texts start
        with `bos`.

        Without `files`, those of a fresh tokenizer are written from these arguments.
        """
        self._backend = backend
        self.bos_id, self.eos_id, self.pad_id = (self._id(token) for token in (bos, eos, pad))
        self.adds_bos = adds_bos and self.bos_id is not None
        """What `encode` does where it is not told: put `bos_id` in front (OPT was trained so)."""
        self.files = dict(files) if files is not None else _fresh_files(backend, bos, eos, pad, self.adds_bos)
        """Contents of the tokenizer's files by name, as they lie in a checkpoint's folder."""

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    @classmethod
    def load(cls, folder: str | Path, *, starts_with_bos: bool = False) -> Tokenizer | None:
        """The tokenizer in `folder`: tokenizer.json, or vocab.json with merges.txt; None if there is neither.

        `starts_with_bos` holds where the files do not say whether texts start with the bos token. Raises
        `DaybreakError` for files that cannot be understood.
        """
        files = _read_files(Path(folder))
        if WHOLE not in files and not {VOCABULARY, MERGES} <= files.keys():
            return None
        config, special = (_object(Path(folder) / name, files.get(name, b"{}")) for name in (CONFIG, SPECIAL))
        backend, defaults = (
            _whole(Path(folder), files) if WHOLE in files else _from_merges(Path(folder), files, config)
        )
        tokens = {
            name: _token(config.get(f"{name}_token", special.get(f"{name}_token", defaults.get(name))))
            for name in ("bos", "eos", "pad")
        }
        add(backend, _added(Path(folder), files, config), [*tokens.values(), defaults.get("unk")])
        adds = config.get("add_bos_token")
        if adds is None:
            adds = starts_with_bos or _template_starts(backend, tokens["bos"])
        return cls(backend, adds_bos=bool(adds), files=files, **tokens)

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest id that this tokenizer knows; the model's table may have further rows."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Token ids; special tokens written in the text become their ids.

        `bos`: put the bos token in front; None: as this tokenizer does by itself.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        wanted = self.adds_bos if bos is None else bos
        if wanted and self.bos_id is None:
            raise DaybreakError("this tokenizer has no bos token to put in front of the text; leave bos out")
        return [self.bos_id, *ids] if wanted and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that do not form a character become U+FFFD, ids it does not know
        nothing."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def special_id(self, text: str) -> int | None:
        """The id of the special token written so, which `decode` skips; None if there is no such token."""
        known = self._backend.get_added_tokens_decoder().items()
        return next((number for number, token in known if token.special and token.content == text), None)

    def save(self, folder: str | Path) -> None:
        """Write the files as they were read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, contents in self.files.items():
            (Path(folder) / name).write_bytes(contents)


def _read_files(folder: Path) -> dict[str, bytes]:
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    # OpenAI's own releases call the pair encoder.json and vocab.bpe, the first one with the number of merges.
    if not {WHOLE, VOCABULARY, MERGES} & files.keys():
        for file in (*folder.glob("encoder*.json"), *folder.glob("vocab*.bpe")):
            files[VOCABULARY if file.suffix == ".json" else MERGES] = file.read_bytes()
    return files


def _whole(folder: Path, files: Mapping[str, bytes]) -> tuple[Backend, dict[str, str]]:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_buffer(files[WHOLE])
    except Exception as error:  # the library raises Exception itself, whatever is wrong
        raise DaybreakError(f"{folder / WHOLE} is not a tokenizer: {error}; fetch it again") from None
    backend.no_truncation()  # files saved after training may cut texts or pad them
    backend.no_padding()
    return backend, _ends(END_OF_TEXT if backend.token_to_id(END_OF_TEXT) is not None else None)


def _from_merges(
    folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]
) -> tuple[Backend, dict[str, str]]:
    from tokenizers.models import BPE

    vocabulary = _object(folder / VOCABULARY, files[VOCABULARY])
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
        return _lower_cased(model), {"unk": UNKNOWN}
    end = END_OF_TEXT if END_OF_TEXT in vocabulary else None
    return _byte_level(model, bool(config.get("add_prefix_space"))), _ends(end)


def _ends(token: str | None) -> dict[str, str]:
    """The second GPT's way, where files name nothing else: one token stands before and after every text."""
    return {"bos": token, "eos": token} if token else {}


def _lower_cased(model: Any) -> Backend:
    """The first GPT's: lower case without accents, words and punctuation apart, as BERT's basic tokenizer
    cuts them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend = Backend(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return backend


def _byte_level(model: Any, prefix_space: bool) -> Backend:
    """The second GPT's, which most families took over: bytes as characters, words with the space before
    them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, pre_tokenizers

    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


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


def _object(file: Path, contents: bytes) -> dict[str, Any]:
    try:
        value = json.loads(contents)
    except ValueError as error:
        raise DaybreakError(f"{file} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise DaybreakError(f"{file} holds a {type(value).__name__} where an object with keys is expected")
    return value


def _token(entry: Any) -> str | None:
    """A token is written as its text, or as an object that has it under `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _added(folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]) -> Iterable[Added]:
    """Of a token that both files list, the description that says more."""
    spelled = from_list(folder / ADDED, _object(folder / ADDED, files.get(ADDED, b"{}")))
    described = from_config(folder / CONFIG, config)
    return {(token.id, token.text): token for token in (*spelled, *described)}.values()


def _template_starts(backend: Backend, bos: str | None) -> bool:
    """Does tokenizer.json itself put the bos token in front?"""
    tokens = backend.encode("", add_special_tokens=True).tokens
    return bos is not None and tokens[:1] == [bos]


def _fresh_files(
    backend: Backend, bos: str | None, eos: str | None, pad: str | None, adds: bool
) -> dict[str, bytes]:
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config = {
        **tokens,  # null, too: a token that is left out gets a default
        "add_bos_token": adds,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    return {WHOLE: backend.to_str(pretty=True).encode(), CONFIG: (text + "\n").encode()}
