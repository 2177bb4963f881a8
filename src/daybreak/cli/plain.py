"""Text for terminals and pipes alike: no colour, no boxes, the same at every width of the window."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import Any

LINE = 110


def columns(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset(), indent: int = 0) -> str:
    """Rows in aligned columns, two spaces apart; the last is wrapped, those in `right` stand flush right."""
    last = len(rows[0]) - 1
    widths = [max(len(row[k]) for row in rows) for k in range(last)]
    lead = indent + sum(widths) + 2 * last
    return "\n".join(_row(row, widths, right, indent, lead) for row in rows)


def _row(row: Sequence[str], widths: Sequence[int], right: frozenset[int], indent: int, lead: int) -> str:
    cells = [row[k].rjust(w) if k in right else row[k].ljust(w) for k, w in enumerate(widths)]
    start = " " * indent + "".join(cell + "  " for cell in cells)
    wrapped = textwrap.wrap(row[-1], LINE - lead, break_long_words=False, break_on_hyphens=False) or [""]
    return (start + ("\n" + " " * lead).join(wrapped)).rstrip()


def count(number: int) -> str:
    """A number of parameters with three digits: 70.4M, 1.41B, 176B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:
            value = number / size
            decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{decimals}f}{unit}"
    return str(number)


def size(number: int) -> str:
    """Bytes in powers of 1024: 237 MiB, 13.2 GiB."""
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def print_json(data: Any) -> None:
    """Machine-readable output with the keys in the order they were given."""
    print(json.dumps(data, indent=2, ensure_ascii=False))
