"""What a person may name to `describe` and `diff`: a family, a published model, or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint.config import QUANTISED, own_quantisation, read_config
from daybreak.checkpoint.find_gguf import find_gguf
from daybreak.errors import DaybreakError, nearest
from daybreak.families.family import Family

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True)
class Subject:
    """A named architecture and where it comes from."""

    name: str
    kind: Literal["family", "model", "folder"]
    family: Family
    architecture: Architecture
    """Of a family: its base."""
    special_tokens: Mapping[str, int]
    starts_with_bos: bool | None = None
    """Every text starts with the bos token; None: its tokenizer's files say."""
    hub: str | None = None
    note: str = ""


def find(name: str, prefer: Literal["family", "model"] = "model") -> Subject:
    """The subject called `name`, GGUF files included; `prefer` decides where a family and one of its models
    share a name.

    Nothing is downloaded. Raises `DaybreakError` naming what is nearest.
    """
    if families.find_recurrent_size(name) or families.recurrent(name):
        raise DaybreakError(f"{name} is an LSTM, and this is told of transformers only; leave the option out")
    if (Path(name) / "config.json").is_file():
        return _folder(Path(name))
    if (file := find_gguf(name)) is not None:
        return _gguf(file)
    for search in (_family, _model) if prefer == "family" else (_model, _family):
        subject = search(name)
        if subject is not None:
            return subject
    if Path(name).is_dir():
        raise DaybreakError(
            f"the folder {name} has no config.json; give the folder of a Hugging Face checkpoint"
        )
    hint = nearest(name, _names())
    raise DaybreakError(f"no model, family or folder {name!r}{hint}; `daybreak families` lists what there is")


def _family(name: str) -> Subject | None:
    if name.lower().replace("-", "_") not in families.NAMES:
        return None
    family = families.by_name(name)
    tokens, starts = family.special_tokens, family.starts_with_bos
    return Subject(family.name, "family", family, family.base, tokens, starts)


def _model(name: str) -> Subject | None:
    for family in families.everyone():
        for size, entry in family.sizes.items():
            if name.lower() in (size.lower(), (entry.hub or "").lower()):
                architecture = family.architecture(size)
                tokens = family.tokens(size)
                starts = family.starts_with_bos if entry.starts_with_bos is None else entry.starts_with_bos
                return Subject(size, "model", family, architecture, tokens, starts, entry.hub, entry.note)
    return None


def _names() -> list[str]:
    sizes = [size for family in families.everyone() for size in family.sizes]
    recurrent = [size for family in families.recurrents() for size in family.sizes]
    return [*sizes, *families.NAMES, *recurrent, *families.RECURRENT]


def _gguf(file: Path) -> Subject:
    from daybreak.checkpoint.gguf import open_gguf  # imports torch, which nothing else here needs

    opened = open_gguf(file)
    special = {key: opened.config[key] for key in SPECIAL if key in opened.config}
    return Subject(file.name, "folder", opened.family, opened.architecture, special)


def _folder(path: Path) -> Subject:
    config = read_config(path)
    if own_quantisation(config) is not None:
        del config[QUANTISED]
    family = families.by_model_type(config["model_type"])
    special = {key: config[key] for key in SPECIAL if isinstance(config.get(key), int)}
    return Subject(str(path), "folder", family, family.read(config), special)
