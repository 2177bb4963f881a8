"""Writing an ordinary Hugging Face folder, tensor by tensor, so that nothing is held in memory twice."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from daybreak import rules
from daybreak.architecture import Architecture
from daybreak.checkpoint import stored as files
from daybreak.checkpoint.config import CONFIG, GENERATION
from daybreak.checkpoint.folder import INDEX, SAFETENSORS
from daybreak.checkpoint.tensors import SAFETENSORS_DTYPES
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.decoder import Decoder
from daybreak.model.merging import as_computed
from daybreak.rules import Rule
from daybreak.text.tokenizer import FILES as TOKENIZER

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SAVING, _ASIDE = ".saving-", ".replaced-"
_SPELLED = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
_WEIGHTS = re.compile(r"(model|pytorch_model)([-_]\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


@dataclass(frozen=True, eq=False)
class Written:
    """A tensor as the file will hold it; it is made only when it is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Tensor]]
    """Its rows in their order, some at a time."""
    alignment: int | None = None
    """It begins at a multiple of so many bytes; None: of its dtype's."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def save_folder(
    folder: Path, family: Family, decoder: Decoder, texts: Mapping[str, bytes], shard_size: int | str = "5GB"
) -> None:
    """Write the weights of `decoder` as `family` lays them out, and the files `texts` (name -> contents),
    into `folder`; see `write_folder`. Weights of few bits become whole, and the adapter that is used beside
    weights is put into them, when their turn comes.
    """
    parameters, read = as_computed(decoder)
    write_folder(folder, layout(family, decoder.architecture, parameters, read), texts, shard_size)


def write_folder(
    folder: Path,
    written: Sequence[Written],
    texts: Mapping[str, bytes],
    shard_size: int | str = "5GB",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write tensors and the files `texts` (name -> contents) into `folder`; `progress` is told bytes written
    and bytes in all.

    Everything is written beside the old files first and renamed into their place at the end: a save that
    fails leaves the folder as it was, and a model whose parameters are mapped from this very folder keeps
    its own. Weights, tokenizer and settings of an earlier model do not stay beside those of this one.
    """
    limit = parse_size(shard_size)
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        left = [file for file in folder.iterdir() if file.name.startswith((_SAVING, _ASIDE))]
        with tempfile.TemporaryDirectory(dir=folder, prefix=_SAVING) as name:
            scratch = Path(name)
            _write_weights(scratch, written, limit, progress)
            for text, content in texts.items():
                (scratch / text).write_bytes(content)
            _install(scratch, folder)
        for file in left:  # of a save whose process was killed; until now they were perhaps all there is
            shutil.rmtree(file, ignore_errors=True)
    except BaseException as error:
        if created:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise DaybreakError(f"{folder} cannot be written: {error.strerror or error}") from None
        raise


def parse_size(size: int | str) -> int:
    """Bytes of "5GB", "200MiB" or a number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).upper())
    if match is None or match[2] not in UNITS or float(match[1]) <= 0:
        raise DaybreakError(f"shard size {size!r} is not understood; say for example 5GB or 200MB")
    return int(float(match[1]) * UNITS[match[2]])


def to_json(value: Mapping[str, Any]) -> bytes:
    """As transformers writes its JSON files: two spaces, sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def layout(
    family: Family,
    architecture: Architecture,
    parameters: Mapping[str, Tensor],
    read: Callable[[str], Tensor] | None = None,
) -> list[Written]:
    """The decoder's `parameters` as `family` lays them out in a file. `read` gives one of them by its name
    when it is written, where `parameters` says its shape and dtype alone; None: they are what is written.
    """
    lines = lines_of(family, architecture, parameters)
    return [_written(rule, parameters, architecture, read or parameters.__getitem__) for rule in lines]


def lines_of(family: Family, architecture: Architecture, parameters: Iterable[str]) -> list[Rule]:
    """The rules by which a checkpoint of such a model is written. Raises `DaybreakError` for a parameter that
    has no name there.
    """
    parameters = set(parameters)
    lines = rules.expand(family.rules, architecture.layers, parameters, family.prefix)
    if lacking := parameters - {name for rule in lines for name in rule.names}:
        raise DaybreakError(
            f"{family.title} checkpoints have no name for {sorted(lacking)[0]!r}; the model cannot be saved "
            "as one"
        )
    return lines


def _written(
    rule: Rule, parameters: Mapping[str, Tensor], architecture: Architecture, read: Callable[[str], Tensor]
) -> Written:
    dtype = parameters[rule.names[0]].dtype
    if dtype not in _SPELLED:
        raise DaybreakError(
            f"{rule.theirs!r} is of {dtype}, which checkpoint files do not hold; convert it first"
        )
    shape = rule.layout.shape([tuple(parameters[name].shape) for name in rule.names])

    def chunks() -> Iterator[Tensor]:
        tensor = rule.layout.join([read(name) for name in rule.names], architecture)
        return (tensor[rows] for rows in files.in_chunks(tensor))

    return Written(rule.theirs, dtype, shape, chunks)


def _write_weights(
    folder: Path, written: Sequence[Written], limit: int, progress: Callable[[int, int], None]
) -> None:
    shards = _shards(written, limit)
    total = sum(one.bytes for one in written)
    done = 0

    def count(new: int) -> None:
        nonlocal done
        done += new
        progress(done, total)

    if len(shards) == 1:
        _write_safetensors(folder / SAFETENSORS, shards[0], count)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / name, shard, count)
        places.update({one.name: name for one in shard})
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / (SAFETENSORS + INDEX)).write_bytes(to_json(index))


def _shards(written: Sequence[Written], limit: int) -> list[list[Written]]:
    shards: list[list[Written]] = [[]]
    filled = 0
    for one in written:
        if shards[-1] and filled + one.bytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(one)
        filled += one.bytes
    return shards


def _write_safetensors(file: Path, shard: Sequence[Written], count: Callable[[int], None]) -> None:
    # The order of the safetensors library: wide types first, then by name, so that equal models give equal
    # files, and each tensor begins where its alignment wants it.
    ordered = sorted(shard, key=lambda one: (-_alignment(one), one.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in ordered:
        begin, end = end, end + one.bytes
        header[one.name] = {
            "dtype": _SPELLED[one.dtype],
            "shape": one.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % max([8, *map(_alignment, ordered)]))
    with file.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for one in ordered:
            _write_tensor(handle, one, count)
        handle.flush()
        os.fsync(handle.fileno())


def _alignment(one: Written) -> int:
    return one.alignment or one.dtype.itemsize


def _write_tensor(handle: BinaryIO, one: Written, count: Callable[[int], None]) -> None:
    # A function of its own: its last chunk, which may be a view of the whole, is gone before the next tensor.
    for chunk in one.chunks():
        count(handle.write(_bytes(chunk.to(one.dtype))))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().data


def _install(scratch: Path, folder: Path) -> None:
    """Put the old files aside and the new ones into their place; whatever goes wrong, the old ones come back.

    config.json is the first to go and the last to come, so that a process that is killed in between leaves a
    folder that is no checkpoint, and never one of two models.
    """
    new = _config_last(file.name for file in scratch.iterdir())
    old = _config_last(
        file.name
        for file in folder.iterdir()
        if not file.is_dir() and (file.name in new or _is_ours(file.name))
    )
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=_ASIDE))
    try:
        for name in reversed(old):
            os.replace(folder / name, aside / name)
        for name in new:
            os.replace(scratch / name, folder / name)
    except BaseException:
        for name in new:
            if not (scratch / name).exists():
                (folder / name).unlink()
        for name in _config_last(file.name for file in aside.iterdir()):
            os.replace(aside / name, folder / name)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _config_last(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == CONFIG, name))


def _is_ours(name: str) -> bool:
    """A file of a checkpoint, which says something wrong beside another model's weights."""
    return name in (CONFIG, GENERATION, *TOKENIZER) or _WEIGHTS.fullmatch(name) is not None
