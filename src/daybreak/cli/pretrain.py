"""`daybreak pretrain`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.cli import plain

if TYPE_CHECKING:
    from daybreak.train.run import Outcome
    from daybreak.train.settings import Settings

FREE_WORDS = True
"""Any setting: --batch.sequences 64."""
SIGNALLED = 128
"""A process that a signal ended has this status, and the signal's number added."""


def pretrain(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder. Where a run stands there, it goes on.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A folder that `daybreak data build` wrote.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Published hyperparameters: gpt3-125m, pythia-70m, bloom-560m.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings, over the recipe.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings with their explanations, and stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, FLOPs, memory and time, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """Train a model of any family on token shards, from scratch or from a checkpoint.

    Every setting of --print-config is an option: --model.family bloom --batch.sequences 64 --optimizer.lr
    3e-4. The same command started again goes on where the run was, whatever ended it. Several processes:
    torchrun --nproc-per-node 8 -m daybreak.cli.main pretrain ..., or srun.

    Exit status: 0, or 2 for wrong input and a run that cannot go on; 130 or 143 after Ctrl-C or SIGTERM, when
    a checkpoint is written first.
    """
    from daybreak.train.given import given_settings

    settings = given_settings(out, data, recipe, config, context.args)
    if print_config:
        _print_config(settings, recipe, as_json)
        return 0
    if dry_run:
        _print_estimate(settings, as_json)
        return 0
    if out is None:
        raise typer.BadParameter("give a folder for the run: --out runs/first")
    from daybreak.cli.training_screen import TrainingScreen
    from daybreak.train.run import pretrain as logic

    with TrainingScreen() as screen:
        outcome = logic(settings, out, screen)
    if screen.speaks:
        _print(outcome, as_json)
    return 0 if outcome.ending == "finished" else SIGNALLED + (outcome.signal or signal.SIGTERM)


def _print_config(settings: Settings, recipe: str | None, as_json: bool) -> None:
    from daybreak import settings as reading
    from daybreak.train.recipes import recipe_text

    if as_json:
        plain.print_json(reading.to_tree(settings))
        return
    if recipe is not None:
        head = (line for line in recipe_text(recipe).splitlines() if line.startswith("# "))
        print("\n".join(head), end="\n\n")
    print(reading.to_yaml(settings), end="")


def _print_estimate(settings: Settings, as_json: bool) -> None:
    from daybreak.train import estimate
    from daybreak.train.given import estimated

    found = estimated(settings)
    if as_json:
        plain.print_json(found.to_dict())
        return
    for line in estimate.lines(found):
        print(line)


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        plain.print_json(_facts(outcome))
        return
    if outcome.ending == "stopped":
        print(
            f"{outcome.folder}: stopped at step {outcome.step:,} of {outcome.steps:,}, with a checkpoint; "
            "the same command goes on"
        )
        return
    scores = outcome.scores.get("all") or next(iter(outcome.scores.values()), None)
    told = f", {scores.bits_per_byte:.3f} bits per byte on held-out text" if scores else ""
    print(f"{outcome.folder}: {outcome.steps:,} steps done{told}")
    print(f'try: daybreak generate {outcome.exported} "..."')


def _facts(outcome: Outcome) -> dict[str, Any]:
    return {
        "folder": str(outcome.folder),
        "ending": outcome.ending,
        "step": outcome.step,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "scores": {name: vars(score) for name, score in outcome.scores.items()},
        "model": None if outcome.exported is None else str(outcome.exported),
    }
