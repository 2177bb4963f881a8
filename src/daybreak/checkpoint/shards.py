"""The tensor-parallel shards of training: `latest`, which names a folder, and in there
`mp_rank_00_model_states.pt` and its further ranks; merged while they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint.config import CONFIG, read_config, read_json
from daybreak.checkpoint.fill import expected_shapes
from daybreak.checkpoint.quantised import SCALE, unpacked, without_packing
from daybreak.checkpoint.rows import Joined, Mapped, Section, Stacked
from daybreak.checkpoint.stored import Mapping, Rows, Stored, in_chunks
from daybreak.checkpoint.tensors import contents
from daybreak.errors import DaybreakError
from daybreak.families.family import Family, ShardRelease
from daybreak.rules import Cut, Shape

LATEST = "latest"
SETTINGS = "model_config.json"
ENTRY = "module"
RANK = re.compile(r"mp_rank_(\d\d+)_model_states\.pt")
SAME_MODEL = "fetch all shards again from one checkpoint"
_AXES = ("rows", "columns")
_FIELDS = {
    "num_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "inner_hidden_size": "inner",
}


def is_shard_release(folder: Path) -> bool:
    """Does the folder hold shards of training? Where other weights lie beside them, these are meant."""
    ordinary = any(folder.glob("*.safetensors*")) or any(folder.glob("pytorch_model*"))
    return not ordinary and ((folder / LATEST).is_file() or any(map(_rank, folder.iterdir())))


def read_shards(
    folder: Path, shape: tuple[Family, Architecture] | None = None
) -> tuple[dict[str, Any], dict[str, Stored]]:
    """What config.json says, or would say, and the merged tensors by name.

    The architecture is `shape`, or config.json's where one lies beside the shards, or else read off the
    tensors. Raises `DaybreakError` for shards that are missing, damaged, or not of one model.
    """
    files = _files(folder)
    shards = [{stored.name: stored for stored in contents(file, ENTRY)} for file in files]
    _check_alike(shards)
    config = _config(folder, shape, shards)
    family = families.by_model_type(config["model_type"])
    if family.shard_release is None:
        raise DaybreakError(f"{folder} holds shards of training, as {family.title} never was published")
    cuts = _cuts(family.shard_release, shards[0])
    expected = expected_shapes(family, family.read(config))
    _check_whole(folder, shards, cuts, expected)
    pieces = {
        name: cuts[name].piece(shape, len(shards)) if name in cuts else shape
        for name, shape in expected.items()
    }
    mappings = {file: Mapping(file) for file in files}
    plain = [unpacked(shard, pieces, mappings) for shard in shards]
    return without_packing(config, plain[0], folder), {
        name: _merged([shard[name] for shard in plain], cuts.get(name), mappings) for name in plain[0]
    }


def _rank(file: Path) -> re.Match[str] | None:
    return RANK.fullmatch(file.name)


def _files(folder: Path) -> list[Path]:
    """The shards in the order of their ranks."""
    inside = folder
    if (folder / LATEST).is_file():
        tag = (folder / LATEST).read_text(errors="replace").strip()
        if tag not in {entry.name for entry in folder.iterdir() if entry.is_dir()}:
            raise DaybreakError(
                f"{folder / LATEST} names {tag!r}, and no such folder is beside it; fetch it, or write into "
                "the file which folder holds the shards"
            )
        inside = folder / tag
    found = {int(match[1]): file for file in inside.iterdir() if (match := _rank(file))}
    if found and (gap := min({*range(max(found) + 1)} - found.keys(), default=None)) is not None:
        raise DaybreakError(
            f"{inside} has shards up to rank {max(found)} and lacks "
            f"mp_rank_{gap:02}_model_states.pt; fetch it"
        )
    if not found:
        raise DaybreakError(f"{inside} has no mp_rank_00_model_states.pt; fetch all shards into it")
    return [found[number] for number in sorted(found)]


def _check_alike(shards: Sequence[dict[str, Stored]]) -> None:
    """Equal names, and for each name equal shapes and types."""
    first = shards[0]
    for shard in shards[1:]:
        if odd := next(iter(first.keys() ^ shard.keys()), None):
            there, lacks = (first, shard) if odd in first else (shard, first)
            raise DaybreakError(
                f"{_file(there)} has the tensor {odd!r}, {_file(lacks)} has not: they are not of one model; "
                f"{SAME_MODEL}"
            )
        for name, stored in shard.items():
            if (stored.shape, stored.dtype) != (first[name].shape, first[name].dtype):
                raise DaybreakError(
                    f"tensor {name!r} is {_kind(first[name])} in {first[name].file} and {_kind(stored)} in "
                    f"{stored.file}: they are not of one model; {SAME_MODEL}"
                )


def _file(shard: Dict[str, Stored]) -> str:
    return str(next((stored.file for stored in shard.values()), "an empty shard"))


def _kind(stored: Stored) -> str:
    return f"{str(stored.dtype).removeprefix('torch.')} of shape {list(stored.shape)}"


def _config(
    folder: Path, shape: tuple[Family, Architecture] | None, shards: Sequence[Dict[str, Stored]]
) -> dict[str, Any]:
    if shape is None and (folder / CONFIG).is_file():
        return read_config(folder)
    family, architecture = shape or _recognised(folder, shards)
    tokens = {
        key: number for key, number in family.special_tokens.items() if number < architecture.vocabulary
    }
    return {**tokens, **family.config(architecture), "model_type": family.model_type}


def _recognised(folder: Path, shards: Sequence[Dict[str, Stored]]) -> tuple[Family, Architecture]:
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    fits = []
    for family in families.everyone():
        if (release := family.shard_release) is not None:
            cuts = _cuts(release, shards[0])
            shapes = {
                name: cuts[name].whole(stored.shape, len(shards)) if name in cuts else stored.shape
                for name, stored in shards[0].items()
                if not name.endswith(SCALE)
            }
            if release.recognises(shapes):
                fits.append((family, release.fields(shapes, settings)))
    if len(fits) != 1:
        what = "more than one family" if fits else "no family that was published as such shards"
        raise DaybreakError(
            f"the names of the tensors in {folder} fit {what}; put a config.json with model_type beside the "
            "shards"
        )
    family, fields = fits[0]
    for key, field in _FIELDS.items():
        if settings.get(key) not in (None, fields[field]):
            raise DaybreakError(
                f"{folder / SETTINGS} says {key} {settings[key]!r}, the shards make it {fields[field]}; take "
                "both from the same checkpoint"
            )
    return family, family.architecture(**fields)


def _cuts(release: ShardRelease, names: Dict[str, Stored]) -> dict[str, Cut]:
    """How each of the tensors is cut that is."""
    found = {}
    for name, stored in names.items():
        line = re.sub(r"(?<=layers\.)\d+(?=\.)", "{i}", name)
        for ending, cut in release.cuts.items():
            if line == ending or line.endswith("." + ending):
                if len(stored.shape) <= cut.dim or (cut.dim and len(stored.shape) > 2):
                    raise DaybreakError(
                        f"{stored.file}: tensor {name!r} is {_kind(stored)}, and its {_AXES[cut.dim]} should "
                        f"be cut; {SAME_MODEL}"
                    )
                found[name] = cut
    return found


def _check_whole(
    folder: Path, shards: Sequence[Dict[str, Stored]], cuts: Dict[str, Cut], expected: Dict[str, Shape]
) -> None:
    """Do so many shards make the tensors that the model needs? Columns may be packed and are left out."""
    for name, cut in cuts.items():
        if name in expected and cut.dim == 0:
            made = cut.whole(shards[0][name].shape, len(shards))[0]
            if made != expected[name][0]:
                raise DaybreakError(
                    f"{folder}: {len(shards)} shards make {made} rows of the tensor {name!r}, and the model "
                    f"needs {expected[name][0]}; a shard is missing, or they are of another model"
                )


def _merged(pieces: Sequence[Stored], cut: Cut | None, mappings: Dict[Path, Mapping]) -> Stored:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    parts: list[Rows] = [one.rows or Mapped(one, mappings[one.file]) for one in pieces]
    if cut is None:
        _check_equal(pieces, parts)
        return first
    rows = Joined(parts) if cut.dim else Stacked(_interleaved(first.name, parts, cut.parts))
    return replace(first, shape=rows.shape, strides=None, loaded=None, rows=rows)


def _interleaved(name: str, pieces: Sequence[Rows], parts: int) -> list[Rows]:
    """Part by part: that of the first piece, of the second, and so on."""
    each, rest = divmod(pieces[0].shape[0], parts)
    if rest:
        raise DaybreakError(
            f"tensor {name!r} has {pieces[0].shape[0]} rows, which are not {parts} equal parts"
        )
    if parts == 1:
        return list(pieces)
    return [Section(piece, k * each, (k + 1) * each) for k in range(parts) for piece in pieces]


def _check_equal(pieces: Sequence[Stored], parts: Sequence[Rows]) -> None:
    """What is not cut is the same in every shard: nothing has to be summed or averaged."""
    for stored, other in zip(pieces[1:], parts[1:], strict=True):
        for rows in in_chunks(torch.empty(stored.shape, device="meta")):
            stop = min(rows.stop, stored.shape[0]) if stored.shape else 1
            left, right = parts[0].read(rows.start, stop), other.read(rows.start, stop)
            if not torch.equal(left, right):
                raise DaybreakError(
                    f"tensor {stored.name!r} is not cut into pieces, and differs between {pieces[0].file} "
                    f"and {stored.file}: the shards are not of one model; {SAME_MODEL}"
                )
        parts[0].release()
        other.release()
