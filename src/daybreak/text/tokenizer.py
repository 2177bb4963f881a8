"""Text to token ids and back, from the files that lie beside a checkpoint's weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daybreak.errors import DaybreakError
from daybreak.text.backends import Backend, Fast
from daybreak.text.chat_template import JINJA, OLDER
from daybreak.text.named import ADDED, CONFIG, SPECIAL, Beside, by_role
from daybreak.text.pieces import Pieces
from daybreak.text.read_fast import END_OF_TEXT, MERGES, VOCABULARY, WHOLE, WORDS, read_fast
from daybreak.text.read_pieces import COG, ICE, read_pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

__all__ = ["END_OF_TEXT", "Tokenizer"]

FILES = (WHOLE, VOCABULARY, MERGES, WORDS, ICE, COG, CONFIG, SPECIAL, ADDED, JINJA, OLDER)


class Tokenizer:
    """A vocabulary with its special tokens. `load` reads one, `save` writes back the very files that were
    read."""

    def __init__(
        self,
        backend: Library | Pieces,
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
        self._backend: Backend = backend if isinstance(backend, Pieces) else Fast(backend)
        self.bos_id, self.eos_id, self.pad_id = (self._id(token) for token in (bos, eos, pad))
        self.adds_bos = adds_bos and self.bos_id is not None
        """What `encode` does where it is not told: put `bos_id` in front (OPT was trained so)."""
        if files is None:
            files = _fresh_files(backend, bos, eos, pad, self.adds_bos)
        self.files = dict(files)
        """Contents of the tokenizer's files by name, as they lie in a checkpoint's folder."""

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self._backend.id_of(token)

    @classmethod
    def load(cls, folder: str | Path, *, starts_with_bos: bool = False) -> Tokenizer | None:
        """The tokenizer in `folder`, from the first of these: tokenizer.json; vocab.json with merges.txt;
        vocab.txt; ice_text.model; cog-pretrain.model. None if there is none of them.

        `starts_with_bos` holds where the files do not say whether texts start with the bos token. Raises
        `DaybreakError` for files that cannot be understood.
        """
        folder = Path(folder)
        files = _read_files(folder)
        beside = Beside.read(folder, files)
        found = read_fast(beside) or read_pieces(beside)
        if found is None:
            return None
        backend, defaults = found
        tokens = by_role(beside.named, defaults)
        adds = beside.config.get("add_bos_token")
        if adds is None:
            adds = starts_with_bos or _template_starts(backend, tokens["bos"])
        return cls(backend, adds_bos=bool(adds), files=files, **tokens)

    @property
    def vocabulary(self) -> int:
        """One more than the largest id that this tokenizer knows; the model's table may have further rows."""
        return self._backend.vocabulary

    def encode(
        self,
        text: str,
        bos: bool | None = None,
        *,
        special: bool = True,
        silent: frozenset[str] = frozenset(),
    ) -> list[int]:
        """Token ids; special tokens written in the text become their ids.

        `bos`: put the bos token in front; None: as this tokenizer does by itself. Without `special`, what
        looks like a special token is text like any other, so that text of others cannot forge one; so are
        then the `silent` ones of `added`.
        """
        ids = self._backend.encode(text, special, silent)
        wanted = self.adds_bos if bos is None else bos
        if wanted and self.bos_id is None:
            raise DaybreakError("this tokenizer has no bos token to put in front of the text; leave bos out")
        return [self.bos_id, *ids] if wanted and self.bos_id is not None else ids

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of many texts, as `encode` gives them with `bos=False`, on all processors."""
        return self._backend.encode_batch(texts, special)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that do not form a character become U+FFFD, ids it does not know
        nothing."""
        return self._backend.decode(list(ids), skip_special)

    def special_id(self, text: str) -> int | None:
        """The id of the special token written so, which `decode` skips; None if there is no such token."""
        return self._backend.special_id(text)

    @property
    def specials(self) -> Mapping[str, int]:
        """All special tokens: spelling -> id."""
        return self._backend.specials

    @property
    def added(self) -> Mapping[str, int]:
        """All tokens that texts are searched for as wholes, special or not: spelling -> id."""
        return self._backend.added

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


def _template_starts(backend: Library | Pieces, bos: str | None) -> bool:
    """Does tokenizer.json itself put the bos token in front?"""
    if isinstance(backend, Pieces) or bos is None:
        return False
    return backend.encode("", add_special_tokens=True).tokens[:1] == [bos]


def _fresh_files(
    backend: Library | Pieces, bos: str | None, eos: str | None, pad: str | None, adds: bool
) -> dict[str, bytes]:
    if isinstance(backend, Pieces):
        raise DaybreakError("a sentencepiece tokenizer comes with its files; load it from their folder")
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config = {
        **tokens,  # null, too: a token that is left out gets a default
        "add_bos_token": adds,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    return {WHOLE: backend.to_str(pretty=True).encode(), CONFIG: (text + "\n").encode()}
