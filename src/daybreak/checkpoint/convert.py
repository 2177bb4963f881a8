"""Any checkpoint that can be read into an ordinary folder, tensor by tensor: the model is never in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint import stored as files
from daybreak.checkpoint.config import CONFIG, GENERATION, saved_config
from daybreak.checkpoint.fill import Use, empty_decoder, matched
from daybreak.checkpoint.find_gguf import find_gguf
from daybreak.checkpoint.folder import DTYPES
from daybreak.checkpoint.gguf import open_gguf
from daybreak.checkpoint.hub import resolve
from daybreak.checkpoint.opened import Opened, open_folder
from daybreak.checkpoint.rows import Mapped
from daybreak.checkpoint.save import Written, lines_of, to_json, write_folder
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.rules import Rule

AT_ONCE = 1 << 19
"""Elements of a tensor that are made before they are written."""


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    family: Family = field(repr=False)
    architecture: Architecture = field(repr=False)
    dtype: str
    bytes: int
    """Of the weights."""
    files: int
    """With weights."""


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    shard_size: int | str = "5GB",
    size: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write the checkpoint `source` (all that `daybreak.load` reads) as an ordinary folder, as `model.save`
    writes it.

    `dtype` is float32, bfloat16, float16, or auto for that of the file; packed weights become floating point.
    `size` names the published model whose shape shards of training have, where their folder does not say it.
    `progress` is told bytes written and bytes in all. What is in memory is a few rows of a tensor, or, where
    the file lays a tensor out in another way, that tensor.

    Raises `DaybreakError` for what `daybreak.load` refuses, for a destination that is not empty, and for a
    disk without room. A conversion that fails leaves no folder.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise DaybreakError(f"dtype is {dtype!r}; it must be one of {', '.join((*DTYPES, 'auto'))}")
    folder = new_folder(destination)
    opened = opened_source(source, size, revision, local_files_only)
    wanted = opened.dtype if dtype == "auto" else DTYPES[dtype]
    written = _written(opened, wanted)
    check_room(folder, sum(one.bytes for one in written))
    write_folder(folder, written, texts_of(opened, wanted), shard_size, progress)
    return Converted(
        folder,
        opened.family,
        opened.architecture,
        _name(wanted),
        sum(one.bytes for one in written),
        len(list(folder.glob("*.safetensors"))),
    )


def new_folder(destination: str | os.PathLike[str]) -> Path:
    """The path, checked to be free."""
    folder = Path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DaybreakError(f"{folder} exists and is not an empty folder; name a new one")
    return folder


def opened_source(
    source: str | os.PathLike[str], size: str | None, revision: str | None, local_files_only: bool
) -> Opened:
    """What `source` holds, of all kinds that can be converted."""
    file = find_gguf(source, revision)
    if file is None:
        return open_folder(resolve(source, revision, local_files_only), _published(size))
    if size is not None:
        raise DaybreakError(f"{file} says itself what shape its model has; leave the size out")
    return open_gguf(file)


def _published(size: str | None) -> tuple[Family, Architecture] | None:
    if size is None:
        return None
    found = families.find_size(size)
    if found is None:
        raise DaybreakError(f"no published model is called {size!r}; 'daybreak families' lists them")
    family, entry = found
    return family, family.architecture(next(name for name, one in family.sizes.items() if one is entry))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def texts_of(opened: Opened, dtype: torch.dtype) -> dict[str, bytes]:
    """The new folder's files beside its weights."""
    config = saved_config(opened.family, opened.architecture, opened.config, _name(dtype))
    texts = {CONFIG: to_json(config)}
    if opened.generation:
        texts[GENERATION] = to_json(opened.generation)
    if opened.tokenizer is not None:
        texts.update(opened.tokenizer.files)
    return texts


def check_room(folder: Path, needed: int) -> None:
    """Better told before the first hour than behind it."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DaybreakError(
            f"{folder} needs {needed / 1e9:.1f} GB for the weights, and {free / 1e9:.1f} GB are free there; "
            "make room, or take a smaller dtype"
        )


def _written(opened: Opened, dtype: torch.dtype) -> list[Written]:
    """The tensors of the new files, each with the way in which it will be made."""
    decoder = empty_decoder(opened.architecture)
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    uses = matched(opened.spelled or opened.family, decoder, opened.found, opened.folder)
    parts = Parts(uses, opened.architecture, dtype)
    return [
        Written(rule.theirs, dtype, rule.layout.shape([shapes[name] for name in rule.names]), parts.of(rule))
        for rule in lines_of(opened.family, opened.architecture, shapes)
    ]


class Parts:
    """The decoder's parameters as the old files give them; of tensors that had to be taken apart, only the
    last is kept.
    """

    def __init__(self, uses: Sequence[Use], architecture: Architecture, dtype: torch.dtype) -> None:
        self._giver = {name: use for use in uses for name in use.rule.names}
        self._architecture = architecture
        self._dtype = dtype
        self._last: tuple[Use, dict[str, Tensor]] | None = None

    def of(self, rule: Rule) -> Callable[[], Iterator[Tensor]]:
        """The chunks of the tensor that `rule` writes."""
        use = self._giver[rule.names[0]]
        if (use.rule.names, use.rule.layout) == (rule.names, rule.layout):
            return lambda: self._as_it_is(use)
        return lambda: self._laid_out(rule)

    def _as_it_is(self, use: Use) -> Iterator[Tensor]:
        rows = use.stored.rows or Mapped(use.stored, use.mapping)
        for chunk in files.in_chunks(torch.empty(rows.shape, device="meta"), AT_ONCE):
            yield rows.read(chunk.start, min(chunk.stop, rows.shape[0]))
            rows.release()

    def _laid_out(self, rule: Rule) -> Iterator[Tensor]:
        tensor = rule.layout.join([self.part(name) for name in rule.names], self._architecture)
        for chunk in files.in_chunks(tensor):
            yield tensor[chunk]

    def part(self, name: str) -> Tensor:
        """One parameter, in memory."""
        use = self._giver[name]
        if self._last is None or self._last[0] is not use:
            self._last = None  # before the next one is made
            landed = use.land(self._dtype, torch.device("cpu"))
            split = use.rule.layout.split(landed, self._architecture)
            self._last = use, dict(zip(use.rule.names, split, strict=True))
            use.mapping.release(use.stored)
        return self._last[1][name]
