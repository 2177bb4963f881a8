"""`daybreak verify`: is it the same model?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daybreak.errors import DaybreakError

if TYPE_CHECKING:
    from daybreak.compare.folders import Departure
    from daybreak.compare.verify import Report

DIFFERENT = 1


def verify(
    model: Annotated[str | None, typer.Argument(help="A folder or a repository of the hub.")] = None,
    other: Annotated[str | None, typer.Argument(help="A second one, to compare with layer by layer.")] = None,
    family: Annotated[str | None, typer.Option(help="Compare random models of this family.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Compare all families and write the ledger.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Write the ledger here (with --all: docs/parity.md where docs/ exists)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Compare logits with the reference in every mode, or two checkpoints with each other.

    Against the reference weights of 8 and 4 bits are compared as well, with the same model's in float32.

    Exit status: 0 if everything is within the bounds, 1 if not, 2 for wrong input.
    """
    if sum((model is not None, family is not None, everything)) != 1:
        raise DaybreakError("name one of: a MODEL, two models, --family NAME, or --all")
    if other is not None:
        return _folders(str(model), other, as_json)
    report = _report(model, family, revision)
    if write is None and everything and Path("docs").is_dir():
        write = Path("docs/parity.md")
    return _print(report, write, as_json)


def _report(model: str | None, family: str | None, revision: str | None) -> Report:
    from daybreak import families
    from daybreak.compare.verify import verify_checkpoint, verify_families
    from daybreak.families.trials import trials

    if model is not None:
        return verify_checkpoint(model, revision, _progress)
    names = (families.by_name(family).name,) if family else families.NAMES
    if not any(map(trials, names)):
        raise DaybreakError(
            f"{family} has no reference to be compared with: its weights were never published"
        )
    return verify_families(names, _progress)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print(report: Report, write: Path | None, as_json: bool) -> int:
    from daybreak.compare import ledger

    _progress("")
    if write is not None:
        write.write_text(ledger.markdown(report) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(ledger.as_json(report), indent=2))
        return 0 if report.passed else DIFFERENT
    for line in ledger.plain(report):
        print(line)
    if write is not None:
        print(f"ledger: {write}")
    return 0 if report.passed else DIFFERENT


def _folders(first: str, second: str, as_json: bool) -> int:
    from daybreak.compare.folders import compare_folders

    found = compare_folders(first, second)
    if as_json:
        fields = {name: [str(a), str(b)] for name, (a, b) in found.fields.items()}
        print(
            json.dumps(
                {
                    "same": found.same,
                    "first_module": found.module,
                    "difference": found.difference,
                    "modules": found.checked,
                    "fields": fields,
                    "weights": found.weights,
                },
                indent=2,
            )
        )
    else:
        _print_departure(found)
    return 0 if found.same else DIFFERENT


def _print_departure(found: Departure) -> None:
    for name, (one, other) in found.fields.items():
        print(f"architecture: {name} is {one} in the first, {other} in the second")
    if found.weights:
        name, value = next(iter(found.weights.items()))
        print(
            f"weights: {len(found.weights)} parameters differ, the first is {name} ({value:.1e} "
            f"of its largest value)"
        )
    if found.module is None and not found.same:
        print(f"different, though the {found.checked} modules agree on the tokens that were read")
    elif found.same:
        print(f"same: all weights, and the outputs of {found.checked} modules (not compared: tokenizers)")
    else:
        print(
            f"different: {found.module} is the first module whose output departs, by {found.difference:.1e}"
        )
