"""`daybreak ulmfit`: what its commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain

if TYPE_CHECKING:
    from daybreak.transfer.run import TransferOutcome
    from daybreak.transfer.settings import TransferSettings

SIGNALLED = 128
"""A process that a signal ended has this status, and the signal's number added."""

Texts = Annotated[
    list[str] | None, typer.Option(help="A file: .csv, .jsonl or .parquet with columns; .txt or .md.")
]
HeldOut = Annotated[
    list[str] | None, typer.Option(help="A file that is scored after every epoch; the best weights are kept.")
]
Column = Annotated[str | None, typer.Option(help="The column of the texts; text by default.")]
Label = Annotated[str | None, typer.Option(help="The column of the classes; label by default.")]
Out = Annotated[Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


def tree(
    start: str | None,
    files: Sequence[str] | None,
    held_out: Sequence[str] | None,
    column: str | None,
    label: str | None = None,
) -> dict[str, Any]:
    """Arguments as a tree of settings; those that were not given are left out."""
    data = {"files": files, "held_out": held_out, "text": column, "label": label}
    if start is not None and start.startswith("--"):
        raise typer.BadParameter(f"name the model before {start}")
    given: dict[str, Any] = {"start": start} if start else {}
    found = {name: list(one) if isinstance(one, list) else one for name, one in data.items() if one}
    return {**given, "data": found} if found else given


def train(
    settings: TransferSettings,
    out: Path | None,
    learn: Callable[..., TransferOutcome],
    print_config: bool,
    as_json: bool,
    then: str,
) -> int:
    """Print the settings, or run; `then` is a command to try with the exported folder."""
    if print_config:
        _print_config(settings, as_json)
        return 0
    if not settings.data.files:
        raise typer.BadParameter("name a file of texts: --texts texts.csv")
    if out is None:
        raise typer.BadParameter("give a folder for the run: --out runs/words")
    from daybreak.cli.training_screen import TrainingScreen
    from daybreak.transfer.run import absolute

    with TrainingScreen() as screen:
        outcome = learn(absolute(settings), out, screen)
    _print(outcome, as_json, then)
    return 0 if outcome.ending == "finished" else SIGNALLED + (outcome.signal or signal.SIGTERM)


def _print_config(settings: TransferSettings, as_json: bool) -> None:
    from daybreak import settings as reading

    if as_json:
        plain.print_json(reading.to_tree(settings))
    else:
        print(reading.to_yaml(settings), end="")


def _print(outcome: TransferOutcome, as_json: bool, then: str) -> None:
    if as_json:
        exported = None if outcome.exported is None else str(outcome.exported)
        plain.print_json({**vars(outcome), "folder": str(outcome.folder), "exported": exported})
        return
    if outcome.ending == "stopped":
        print(
            f"{outcome.folder}: stopped at step {outcome.step:,} of {outcome.steps:,}, with a checkpoint; "
            "the same command goes on"
        )
        return
    best = f" (the weights of step {outcome.best_step:,})" if outcome.best_step is not None else ""
    told = f"; held out: {figures(outcome.scores)}{best}" if outcome.scores else ""
    print(f"{outcome.folder}: {outcome.steps:,} steps done{told}")
    print(f"try: {then.format(outcome.exported)}")


def figures(scores: Any) -> str:
    """Figures in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
