"""`daybreak quickstart`: the main job on real text, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daybreak.field_docs import field_docs
from daybreak.quickstart.run_folder import check_target
from daybreak.quickstart.settings import Settings

if TYPE_CHECKING:
    from daybreak.quickstart.report import Report

INTERRUPTED = 130
_HELP = field_docs(Settings)
_OWN = ("out", "force", "as_json")


def _field(name: str, *flags: str) -> Any:
    """An option that is a field of the settings, explained by the sentence under it."""
    return typer.Option(*flags, help=_HELP[name])


def quickstart(
    family: Annotated[str, _field("family")] = Settings.family,
    objective: Annotated[str | None, _field("objective")] = Settings.objective,
    seconds: Annotated[float, _field("seconds")] = Settings.seconds,
    steps: Annotated[int | None, _field("steps")] = Settings.steps,
    out: Annotated[Path, typer.Option(help="The folder to leave the model in.")] = Path("runs/quickstart"),
    seed: Annotated[int, _field("seed")] = Settings.seed,
    vocabulary: Annotated[int, _field("vocabulary")] = Settings.vocabulary,
    layers: Annotated[int, _field("layers")] = Settings.layers,
    width: Annotated[int, _field("width")] = Settings.width,
    heads: Annotated[int, _field("heads")] = Settings.heads,
    context: Annotated[int, _field("context")] = Settings.context,
    batch: Annotated[int, _field("batch")] = Settings.batch,
    samples: Annotated[int, _field("samples")] = Settings.samples,
    source: Annotated[Path | None, _field("source")] = Settings.source,
    compiling: Annotated[bool, _field("compiling", "--compile/--no-compile")] = Settings.compiling,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder, whatever is in it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Train, score and sample a small language model on the source of Python's own standard library.

    What it leaves behind is an ordinary Hugging Face folder: config.json, model.safetensors, tokenizer.json.

    Exit status: 0, or 130 if it was interrupted (what was learned is saved), or 2 for wrong input.
    """
    given = {name: value for name, value in locals().items() if name not in _OWN}
    settings = Settings(**given)
    check_target(out, force)
    began = time.perf_counter()
    from daybreak.cli.live import Live
    from daybreak.quickstart.report import Clock
    from daybreak.quickstart.run import quickstart as run

    with Live() as live:
        report = run(settings, out, live, Clock(live, began), force)
    _print(report, as_json)
    return 0 if report.finished else INTERRUPTED


def _print(report: Report, as_json: bool) -> None:
    from daybreak.cli.plain import print_json
    from daybreak.quickstart.words import lines

    if as_json:
        print_json(report.to_dict())
    else:
        for line in lines(report):
            print(line)
