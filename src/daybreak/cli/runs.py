"""`daybreak runs`: training runs, a list or the curves of some."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.cli import plain
from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.train.runs import History, Run

FOLDER = Path("runs")
NUMBERS = frozenset({2, 3, 4, 5})


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER] | show RUN...",
            help="A folder with runs (runs); or `show`, and runs by their folder or name.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="show: draw into this file, .png or .svg.")] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="show: over tokens, not steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List training runs, or show the curves of some, in the terminal and as a picture."""
    if words and words[0] == "show":
        _show(words[1:], out, tokens, as_json)
    elif len(words or []) > 1:
        raise DaybreakError(f"`daybreak runs` lists one folder; to see curves: daybreak runs show {words[0]}")  # type: ignore[index]
    elif out is not None or tokens:
        raise DaybreakError("--out and --tokens belong to `daybreak runs show RUN`")
    else:
        _list(Path(words[0]) if words else FOLDER, as_json)


def _list(folder: Path, as_json: bool) -> None:
    from daybreak.train.runs import find

    if folder != FOLDER and not folder.is_dir():
        raise DaybreakError(f"there is no folder {folder}; daybreak runs FOLDER lists the runs in it")
    found = find(folder)
    if as_json:
        plain.print_json([_plain(run) for run in found])
    elif not found:
        print(f"no runs in {folder}; `daybreak pretrain` makes one")
    else:
        head = ("run", "model", "step", "loss", "bits/byte", "tokens/s", "status", "last heard of")
        print(plain.columns([head, *(_row(run) for run in found)], right=NUMBERS))


def _row(run: Run) -> tuple[str, ...]:
    steps = f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    figures = (
        "" if value is None else form.format(value)
        for value, form in (
            (run.loss, "{:.4f}"),
            (run.bits_per_byte, "{:.4f}"),
            (run.tokens_per_second, "{:,.0f}"),
        )
    )
    return (run.name, run.model, steps, *figures, run.status, _ago(run.updated))


def _ago(then: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - then).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _plain(run: Run) -> dict[str, object]:
    return {**vars(run), "folder": str(run.folder), "updated": run.updated.isoformat()}


def _show(names: list[str], out: Path | None, tokens: bool, as_json: bool) -> None:
    from daybreak.train.runs import folder_of, history

    if not names:
        raise DaybreakError("name a run: daybreak runs show RUN; `daybreak runs` lists them")
    found = [history(folder_of(name, FOLDER)) for name in names]
    unit = "million tokens" if tokens else "steps"
    if tokens:
        found = [each.over_tokens() for each in found]
    if out is not None:
        from daybreak.train.runs_picture import picture

        picture(found, unit, out)
    if as_json:
        plain.print_json([_curves(each) for each in found])
    else:
        from daybreak.train.runs_chart import charts

        print("\n".join(charts(found, unit, braille=_has_braille())))
        if out is not None:
            print(f"\n{out} is written")


def _curves(found: History) -> dict[str, object]:
    return {
        "run": found.name,
        "curves": {name: vars(curve) for name, curve in found.curves.items()},
        "marks": [vars(mark) for mark in found.marks],
    }


def _has_braille() -> bool:
    try:
        "\u28ff".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
