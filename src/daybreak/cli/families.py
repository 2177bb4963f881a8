"""`daybreak families`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from daybreak.cli import plain


def families(
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """List the families in the order of history, what each decided, and how large its models are."""
    from daybreak.compare.describe import overview

    told = overview()
    if as_json:
        plain.print_json(told)
        return
    head = ["family", "year", "sizes", "smallest to largest", "what it decided"]
    print(plain.columns([head, *map(_row, told)], right=frozenset({2})))
    print("\n`daybreak describe NAME` tells more of a family or a model, `daybreak diff ONE OTHER` compares.")


def _row(family: dict[str, Any]) -> list[str]:
    counts = sorted(size["parameters"] for size in family["sizes"])
    ends = [plain.count(counts[0]), plain.count(counts[-1])]
    span = " to ".join(ends) if len(counts) > 1 else ends[0]
    return [family["name"], str(family["year"]), str(len(counts)), span, family["story"]]
