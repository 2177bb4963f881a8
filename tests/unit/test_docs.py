"""The pages that speak of code say what the code says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.compare.words import WORDS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def rows() -> list[list[str]]:
    """The table of docs/architecture.md: field, default, who decided otherwise, reason."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def elsewhere(field: str) -> str:
    """Families, or single sizes of a family, whose value is not GPT-2's."""
    found = []
    for family in families.everyone():
        value = getattr(Architecture(), field)
        sizes = [size for size in family.sizes if getattr(family.architecture(size), field) != value]
        if len(sizes) == len(family.sizes):
            found.append(family.name)
        elif len(sizes) > 3:
            found.append(f"{family.name} ({len(sizes)} of {len(family.sizes)} sizes)")
        else:
            found += sizes
    return ", ".join(found)


def test_every_field_stands_in_the_table_in_order() -> None:
    assert [row[0].strip("`") for row in rows()] == [field.name for field in dataclasses.fields(Architecture)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: str(row[0]).strip("`"))
def test_the_table_says_what_the_families_say(row: list[str]) -> None:
    field = row[0].strip("`")
    default, others, reason = row[1:]
    assert default == WORDS[field].say(Architecture())
    if not WORDS[field].scale:
        assert others == (elsewhere(field) or "none")
    assert len(reason) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" in index} == pages


def test_the_layout_in_contributing_lists_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "daybreak"
    rooms = {p.name for p in package.iterdir() if p.name not in ("__pycache__", "__init__.py", "py.typed")}
    layout = text[text.index("src/daybreak/\n") : text.index("tests/\n")]
    listed = set(re.findall(r"^  ([a-z_]+(?:\.py|/))", layout, re.MULTILINE))
    assert {name.rstrip("/") for name in listed} == rooms


def test_the_page_in_contributing_is_the_page() -> None:
    """The walk through a family quotes real code."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    page = (ROOT / "src" / "daybreak" / "families" / "gpt_j.py").read_text(encoding="utf-8")
    quoted = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(quoted) >= 3
    for block in quoted:
        for line in block.splitlines():
            assert line.strip() in page or line.strip() == "...", (
                f"CONTRIBUTING.md quotes {line!r}, the page has no such line"
            )


def test_decisions_are_numbered_once() -> None:
    numbers = [path.name[:3] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
    assert all(
        re.fullmatch(r"\d{3}-[a-z0-9-]+\.md", path.name)
        for path in (ROOT / "docs" / "decisions").glob("*.md")
    )
