"""`daybreak diff`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daybreak.cli import plain


def diff(
    first: Annotated[str, typer.Argument(help="A family (gpt2), a model (gpt2-xl) or a local folder.")],
    second: Annotated[str, typer.Argument(help="What to compare it with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Tell in words what changed between two families, models or folders, and nothing else."""
    from daybreak.compare.differences import differences

    told = differences(first, second)
    if as_json:
        plain.print_json(told)
        return
    print(f"from {_side(told['first'])} to {_side(told['second'])}")
    if not told["changes"]:
        print("no field of the architecture differs")
        return
    print(plain.columns([row for change in told["changes"] for row in _rows(change, told)]))


def _side(side: dict[str, Any]) -> str:
    numbers = f", {side['parameters']:,} parameters" if "parameters" in side else ""
    return f"{side['name']} ({side['year']}{numbers})"


def _rows(change: dict[str, Any], told: dict[str, Any]) -> list[list[str]]:
    before, after = change["words"]
    return [
        ["", "", ""],
        [change["title"], told["first"]["name"], before],
        ["", told["second"]["name"], after],
    ]
