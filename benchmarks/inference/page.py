"""The place in a page of documentation where a run is written."""

from __future__ import annotations

from pathlib import Path

BEGIN = "<!-- written by make bench: begin -->"
END = "<!-- written by make bench: end -->"


def replaced(page: str, text: str) -> str:
    """The page with `text` between the markers. Raises ValueError where they do not stand there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must hold {BEGIN!r} and then {END!r}, once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.split(END)[1]}"


def write(file: Path, text: str) -> None:
    file.write_text(replaced(file.read_text(encoding="utf-8"), text), encoding="utf-8")
