"""What the JSON files beside a tokenizer say: objects with keys, and the special tokens that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from daybreak.errors import DaybreakError

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The keys of both files are these with "_token" behind them."""
FURTHER = "additional_special_tokens"


def read_object(file: Path, contents: bytes) -> dict[str, Any]:
    """The keys of a JSON file. Raises `DaybreakError` for anything else."""
    try:
        value = json.loads(contents)
    except ValueError as error:
        raise DaybreakError(f"{file} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise DaybreakError(f"{file} holds a {type(value).__name__} where an object with keys is expected")
    return value


class Beside(NamedTuple):
    """The files of a tokenizer, and what the JSON files among them say."""

    folder: Path
    files: Mapping[str, bytes]
    config: Mapping[str, Any]
    """tokenizer_config.json."""
    named: Mapping[str, Any]
    """The same, with what only special_tokens_map.json says."""

    @classmethod
    def read(cls, folder: Path, files: Mapping[str, bytes]) -> Beside:
        """Raises `DaybreakError` for files that are no JSON objects."""
        config, special = (read_object(folder / name, files.get(name, b"{}")) for name in (CONFIG, SPECIAL))
        return cls(folder, files, config, {**special, **config})

    def added(self) -> dict[str, Any]:
        """What added_tokens.json says: ids by text."""
        return read_object(self.folder / ADDED, self.files.get(ADDED, b"{}"))


def spelling(entry: Any) -> str | None:
    """A token is written as its text, or as an object that has it under `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def by_role(named: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str | None]:
    """The tokens at bos, eos and pad; one that is null there is none, one that is left out the default."""
    return {name: spelling(named.get(f"{name}_token", defaults.get(name))) for name in ("bos", "eos", "pad")}


def special_tokens(named: Mapping[str, Any]) -> dict[str, Any]:
    """All special tokens that the files name: by their text what stands there, a text or a description."""
    further = named.get(FURTHER)
    entries = [named.get(f"{role}_token") for role in ROLES]
    entries += further if isinstance(further, list) else []
    return {text: entry for entry in entries if (text := spelling(entry))}
