"""What the commands that tune a model share: their settings, the run, and its last words."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.train.tuning import Job
    from daybreak.train.tuning_run import TuningOutcome
    from daybreak.train.tuning_settings import TuningSettings

Start = Annotated[
    str | None, typer.Argument(help="The model to start from: a folder, a repository of the hub, a name.")
]
Out = Annotated[Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")]
Config = Annotated[Path | None, typer.Option(help="A YAML file of settings.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
SIGNALLED = 128
"""A process that a signal ended has this status, and the signal's number added."""


def apart(
    words: Sequence[str], start: str | None, data: str | None
) -> tuple[str | None, str | None, list[str]]:
    """Model and data, and the words that are settings: `--config a.yaml --epochs 2` names neither, and typer
    takes the first words that it does not know for them."""
    places = [one for one in (start, data) if one is not None]
    count = next((number for number, one in enumerate(places) if one.startswith("--")), len(places))
    rest = [*places[count:], *words]
    found = [*places[:count], None, None]
    behind = rest[1 if "=" in rest[0] else 2 :] if count < len(places) else []
    if behind and not behind[0].startswith("--"):
        raise DaybreakError(f"{behind[0]!r} stands behind settings; name model and data before {rest[0]}")
    return found[0], found[1], rest


def given(tree: dict[str, Any], data: str | None) -> dict[str, Any]:
    """Arguments of a command as a tree of settings; those that were not given are left out."""
    found = {name: value for name, value in tree.items() if value is not None}
    return found if data is None else {**found, "data": {"file": str(Path(data).absolute())}}


def check(start: str, out: Path | None, dry_run: bool = False) -> None:
    """Is there a model, and a folder?"""
    if not start:
        raise typer.BadParameter("name the model to start from")
    if out is None and not dry_run:
        raise typer.BadParameter("give a folder for the run: --out runs/first")


def print_config(settings: object, as_json: bool) -> int:
    """All settings with their explanations."""
    from daybreak import settings as reading

    if as_json:
        plain.print_json(reading.to_tree(settings))
    else:
        print(reading.to_yaml(settings), end="")
    return 0


def run(job: Job[Any], settings: TuningSettings, out: Path, as_json: bool, then: str) -> int:
    """Tune, and say what came of it; `then` is a command to try with the exported folder."""
    from daybreak.cli.training_screen import TrainingScreen
    from daybreak.train.tuning_run import tune

    with TrainingScreen() as screen:
        outcome = tune(job, settings, out, screen)
    _print(outcome, as_json, _command(outcome, settings, then))
    return 0 if outcome.ending == "finished" else SIGNALLED + (outcome.signal or signal.SIGTERM)


def _command(outcome: TuningOutcome, settings: TuningSettings, then: str) -> str:
    """What to try with what the run left."""
    if outcome.exported is not None or outcome.adapter is None:
        return then.format(outcome.exported)
    bits = "" if settings.lora is None or settings.lora.bits is None else f" --bits {settings.lora.bits}"
    return f"daybreak chat {getattr(settings, 'start', 'MODEL')}{bits} --adapter {outcome.adapter}"


def _print(outcome: TuningOutcome, as_json: bool, then: str) -> None:
    if as_json:
        plain.print_json(facts(outcome))
        return
    if outcome.ending == "stopped":
        print(
            f"{outcome.folder}: stopped at step {outcome.step:,} of {outcome.steps:,}, with a checkpoint; "
            "the same command goes on"
        )
        return
    told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in outcome.scores.items())
    best = f" (the weights of step {outcome.best_step:,})" if outcome.best_step is not None else ""
    print(f"{outcome.folder}: {outcome.steps:,} steps done" + (f"; held out: {told}{best}" if told else ""))
    print(f"try: {then}")


def facts(outcome: TuningOutcome) -> dict[str, Any]:
    """For --json."""
    return {
        "folder": str(outcome.folder),
        "ending": outcome.ending,
        "step": outcome.step,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "held_out": outcome.scores,
        "best_step": outcome.best_step,
        "model": None if outcome.exported is None else str(outcome.exported),
        "adapter": None if outcome.adapter is None else str(outcome.adapter),
    }
