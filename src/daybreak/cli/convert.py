"""`daybreak convert`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from daybreak.cli import plain


def convert(
    source: Annotated[
        str, typer.Argument(help="A folder (shards of training too), a GGUF file, a repository or a size.")
    ],
    destination: Annotated[str, typer.Argument(help="The folder to write; new or empty.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto: as in the file.")] = "auto",
    shard_size: Annotated[str, typer.Option(help="Most bytes in one file of weights.")] = "5GB",
    size: Annotated[
        str | None,
        typer.Option(help="The published model (glm-130b) whose shape shards of training have."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Write any checkpoint that can be read as an ordinary folder, tensor by tensor: the model need not fit
    into memory. Shards are merged, packed weights become floating point.
    """
    from daybreak import parameters
    from daybreak.checkpoint.convert import convert as logic

    with Bar() as bar:
        done = logic(
            source,
            destination,
            dtype=dtype,
            shard_size=shard_size,
            size=size,
            revision=revision,
            progress=bar.show,
        )
    total = parameters.count(done.architecture)
    if as_json:
        plain.print_json(
            {
                "folder": str(done.folder),
                "family": done.family.name,
                "parameters": total,
                "dtype": done.dtype,
                "bytes": done.bytes,
                "files": done.files,
                "architecture": done.architecture.to_dict(),
            }
        )
        return
    files = "one file" if done.files == 1 else f"{done.files} files"
    size_told = f"{total:,} parameters in {done.dtype}, {plain.size(done.bytes)} in {files}"
    print(f"{done.folder}: {done.family.title}, {size_told}")


class Bar:
    """How much is written, on a terminal; elsewhere nothing."""

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)
