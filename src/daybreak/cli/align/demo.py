"""`daybreak align demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from daybreak.align.demo.settings import DemoSettings
from daybreak.field_docs import field_docs

STOPPED = 130
_HELP = field_docs(DemoSettings)


def _field(name: str) -> Any:
    """An option that is a field of the settings, explained by the sentence under it."""
    return typer.Option(help=_HELP[name])


def demo(
    minutes: Annotated[float, _field("minutes")] = DemoSettings.minutes,
    seeds: Annotated[int, _field("seeds")] = DemoSettings.seeds,
    seed: Annotated[int, _field("seed")] = DemoSettings.seed,
    model: Annotated[str | None, _field("model")] = DemoSettings.model,
    source: Annotated[Path | None, _field("source")] = DemoSettings.source,
    room: Annotated[int, _field("room")] = DemoSettings.room,
    out: Annotated[Path, typer.Option(help="The folder for everything.")] = Path("runs/align-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """Align a small model with a stated labeller: demonstrations, rankings, reward model, PPO, PPO-ptx, DPO.

    The model writes Python functions behind `def` lines; the labeller is a program that wants them to parse,
    to say in a docstring what they do, to return something, and to use what they are given. All models are
    measured on prompts from files that nothing was learned from, and so is what alignment cost in bits per
    byte. The same command started again goes on where it was.

    Exit status: 0, or 2 for wrong input, or 130 where it was stopped.
    """
    settings = DemoSettings(minutes=minutes, seeds=seeds, seed=seed, model=model, source=source, room=room)
    from daybreak.align.demo.report import lines, table
    from daybreak.align.demo.run import demo as logic
    from daybreak.cli.plain import print_json
    from daybreak.cli.training_screen import TrainingScreen

    with TrainingScreen() as screen:
        found = logic(settings, out, screen)
    if as_json:
        print_json({"folder": str(found.folder), "finished": found.finished, "seeds": list(found.results)})
    elif found.results:
        print(table(found.results), *lines(found.results), sep="\n")
        print(f"answers beside each other: {found.folder}/answers.md; curves: {found.folder}/curves.png")
    if not found.finished and not as_json:
        print(f"{found.folder}: stopped; the same command goes on")
    return 0 if found.finished else STOPPED
