"""`daybreak data stats`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from daybreak.cli import plain

HEAD = ["", "tokens", "documents", "bytes", "bytes/token"]


def stats(
    folder: Annotated[Path, typer.Argument(help="A folder that 'daybreak data build' wrote.")],
    picture: Annotated[Path | None, typer.Option(help="Draw them into this file (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> None:
    """Tokens, documents and bytes by source, language and length of document; what was left out as copies."""
    from daybreak.data.statistics import statistics

    found = statistics(folder)
    if picture is not None:
        from daybreak.data.statistics_picture import picture as draw

        draw(found, picture)
    if as_json:
        plain.print_json(found)
        return
    _print(found)
    if picture is not None:
        print(f"\n{picture}: the same as a picture")


def _print(found: Mapping[str, Any]) -> None:
    sources = {**found["sources"], "together": found["total"]}
    print(_table("source", sources, ("held out", "copies left out"), _further))
    print()
    print(_table("language", found["languages"]))
    print()
    rows = [["document of", "documents", "tokens", ""]]
    most = max((each["documents"] for each in found["lengths"]), default=1)
    for each in found["lengths"]:
        span = f"{each['from']:,} to {each['to']:,} tokens"
        bar = "#" * round(40 * each["documents"] / most)
        rows.append([span, f"{each['documents']:,}", f"{each['tokens']:,}", bar])
    print(plain.columns(rows, right=frozenset({0, 1, 2})))


def _further(each: Mapping[str, Any]) -> list[str]:
    held = each["splits"]["validation"]["tokens"] if "splits" in each else None
    return ["" if held is None else f"{held:,}", f"{sum(each['duplicates'].values()):,}"]


def _table(
    what: str, groups: Mapping[str, Any], names: tuple[str, ...] = (), further: Any = lambda each: []
) -> str:
    rows = [[what, *HEAD[1:], *names, ""]]
    for name, each in groups.items():
        rate = "" if each["bytes_per_token"] is None else f"{each['bytes_per_token']:.2f}"
        counts = (f"{each['tokens']:,}", f"{each['documents']:,}", plain.size(each["bytes"]))
        rows.append([name, *counts, rate, *further(each), ""])
    return plain.columns(rows, right=frozenset(range(1, len(rows[0]) - 1)))
