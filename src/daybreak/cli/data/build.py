"""`daybreak data build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from daybreak.cli import plain

FREE_WORDS = True


def build(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="A YAML file; docs/data.md lists its fields.")],
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; else the recipe's name without .yaml.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tasks at a time; else one per processor.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, ray or slurm: datatrove's executors.")] = "local",
    force: Annotated[
        bool, typer.Option("--force", help="Start over where recipe or files are not what they were.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Turn a recipe's texts into token shards. An interrupted build goes on when it is started again, and a
    finished one is not done twice. Fields of the recipe can be given here, too: --validation 0.01.
    """
    from daybreak.data.build.run import build as logic
    from daybreak.data.recipe import read_recipe

    read = read_recipe(recipe, context.args)
    with _Bar() as bar:
        done = logic(
            read,
            recipe.resolve().parent,
            out or recipe.with_suffix(""),
            workers=workers,
            executor=executor,
            force=force,
            shown=bar.show,
        )
    if as_json:
        plain.print_json({"folder": str(done.folder), "did": done.did, "report": done.report})
        return
    if done.report is None:
        print(f"{done.folder}: handed to the cluster; squeue shows how far it is")
        return
    _print(done.folder, done.did, done.report)


def _print(folder: Path, did: str, report: Any) -> None:
    from daybreak.data.build.report import in_words
    from daybreak.data.statistics import statistics

    if did == "nothing":
        print(f"{folder} is finished already, from these very files; there is nothing to do")
        return
    for line in in_words(report):
        print(line)
    total = statistics(folder)["total"]
    print(
        f"{folder}: {total['tokens']:,} tokens of {plain.size(total['bytes'])} of text, "
        f"{total['bytes_per_token']:.2f} bytes per token"
    )


class _Bar:
    """The stage and its tasks, on a terminal; elsewhere nothing."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage)
        self._progress.update(self._tasks[stage], completed=done, total=total)
