"""What became of every document: added from the tallies of all tasks, and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daybreak.data.build.plan import Plan
from daybreak.data.build.tally import read_json

NAMED = 10_000
"""Problems that the report of a source names one by one."""
KINDS = {"exact": "equal to another", "near": "near another"}
FATES = ("written", "filtered", "duplicates", "damaged", "empty")


def make_report(plan: Plan, reports: Path) -> dict[str, Any]:
    """The tree of report.json."""
    sources = {}
    for number, source in enumerate(plan.recipe.sources):
        ranks = [rank for rank, task in enumerate(plan.tasks) if task.source == number]
        sources[source.name] = _of_source(ranks, reports)
        sources[source.name]["files"] = sum(len(plan.tasks[rank].inputs) for rank in ranks)
    total = {fate: sum(each["documents"][fate] for each in sources.values()) for fate in ("read", *FATES)}
    return {
        "documents": total,
        "sources": sources,
        "files_of_other_kinds": _named(plan.other_kinds),
        "files_reached_twice": _named(plan.twice),
        "seconds": _seconds(reports),
    }


def _named(files: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    names = [{"source": source, "file": name} for source, name in files[:NAMED]]
    return {"count": len(files), "named": names}


def _of_source(ranks: list[int], reports: Path) -> dict[str, Any]:
    read, unique, tokens = (
        [tally for rank in ranks if (tally := _tally(reports / stage / f"{rank:05d}.json"))]
        for stage in ("read", "unique", "tokens")
    )
    filtered, reasons, copies = (
        sum((Counter(tally[key]) for tally in tallies), Counter[str]())
        for tallies, key in ((read, "dropped"), (read, "left"), (unique, "dropped"))
    )
    documents = {
        "read": _sum(read, "read"),
        "written": _sum(tokens, "read"),
        "filtered": filtered.total(),
        "duplicates": copies.total(),
        "damaged": _sum(read, "damaged"),
        "empty": _sum(read, "empty"),
    }
    assert documents["read"] == sum(documents[fate] for fate in FATES), documents
    problems = [problem for tally in read for problem in tally["problems"]]
    return {
        "documents": documents,
        "bytes": {"read": _sum(read, "bytes"), "written": _sum(tokens, "bytes")},
        "filtered": dict(filtered.most_common()),
        "reasons": dict(reasons.most_common()),
        "duplicates": {kind: copies[kind] for kind in KINDS},
        "problems": problems[:NAMED],
        "problems_not_named": max(0, documents["damaged"] + documents["empty"] - len(problems)),
    }


def _tally(file: Path) -> Any:
    return read_json(file) if file.exists() else None


def _sum(tallies: list[Any], key: str) -> int:
    return sum(tally[key] for tally in tallies)


def _seconds(reports: Path) -> dict[str, float]:
    """Processor time by step, over all workers together."""
    seconds: Counter[str] = Counter()
    for file in reports.glob("*/*.json"):
        spent = read_json(file)["seconds"]
        stage = "reading back" if file.parent.name == "unique" else None
        for step, value in (spent if isinstance(spent, dict) else {"gathering shards": spent}).items():
            seconds[stage if stage and step == "reading" else step] += value
    return {step: round(value, 3) for step, value in seconds.most_common()}


def in_words(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people: the sum, then everything that was left out, and why."""
    documents = report["documents"]
    parts = ", ".join(f"{documents[fate]:,} {fate}" for fate in FATES if documents[fate] or fate == "written")
    yield f"{documents['read']:,} documents read: {parts}"
    for name, source in report["sources"].items():
        yield from (f"  {name}: {line}" for line in _of_one(source))
    for key, what in (
        ("files_of_other_kinds", "files that no reader takes"),
        ("files_reached_twice", "files reached a second time, and read once"),
    ):
        if count := report[key]["count"]:
            first = ", ".join(entry["file"] for entry in report[key]["named"][:3])
            yield f"  {count:,} {what}: {first}{', ...' if count > 3 else ''}"


def _reasons(name: str, reasons: Mapping[str, int]) -> str:
    """The most frequent three, in brackets; filters with one reason only name none."""
    mine = [
        f"{reason.removeprefix(f'{name}: ')} {count:,}"
        for reason, count in reasons.items()
        if reason.startswith(f"{name}: ")
    ]
    further = f", {len(mine) - 3} other reasons" if len(mine) > 3 else ""
    return f" ({', '.join(mine[:3])}{further})" if mine else ""


def _of_one(source: Mapping[str, Any]) -> Iterator[str]:
    for name, count in source["filtered"].items():
        yield f"{count:,} left out by {name}{_reasons(name, source['reasons'])}"
    for kind, count in source["duplicates"].items():
        if count:
            yield f"{count:,} {KINDS[kind]}"
    for problem in source["problems"][:5]:
        place = "" if problem["place"] is None else f", line or row {problem['place']}"
        yield f"{problem['kind']}: {problem['file']}{place}: {problem['what']}"
    further = max(0, len(source["problems"]) - 5) + source["problems_not_named"]
    if further:
        yield f"{further:,} more such; report.json names them"
