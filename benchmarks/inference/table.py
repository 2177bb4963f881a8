"""The figures for people, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.inference.figures import (
    BATCHES,
    COLD,
    FIRST,
    LOAD,
    MEMORY,
    PREFILL,
    Measured,
    Middle,
    Record,
    Report,
    decode,
    middle,
)

COLUMNS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    (FIRST, "first token, ms", lambda seconds: 1000 * seconds),
    (PREFILL, "prefill, tokens/s", float),
    *((decode(batch), f"decode, batch {batch}", float) for batch in BATCHES),
    (MEMORY, "memory, MiB", lambda size: size / 2**20),
    (LOAD, "load, s", float),
    (COLD, "cold start, s", float),
)
"""A figure, its heading, and how it is turned into the heading's unit."""
MISSING = "–"


def report(found: Report) -> str:
    """Everything that was measured."""
    parts = [_machine(found), *(shape(each) for each in found.shapes)]
    return "\n\n".join(parts)


def _machine(found: Report) -> str:
    machine, plan = found.machine, found.plan
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['date']} on {machine['processor']}, {machine['cores']} cores, "
        f"{plan['threads']} threads for everyone; {versions}. Prompts of {plan['prompt']} random tokens, of "
        f"{plan['together']} each in a batch of several, and of {plan['prefill']} for prefill. Medians, with "
        "the least and the greatest in brackets; behind a figure of decoding its share of the roof."
    )


def shape(found: Measured) -> str:
    """A heading, the table, and what is to be said of it."""
    lines = [f"### {found.title}", ""]
    if not any(record.samples for record in found.records):
        return "\n".join([*lines, f"Nothing was measured: {found.problem or 'nobody can run it'}."])
    if found.roof is not None:
        roofs = _cell(middle([roof / 1e9 for roof in found.roofs]))
        new = ", ".join(map(str, found.new))
        lines += [
            f"Memory is read at {roofs} GB/s. Rounds: {found.rounds}; tokens written after each prompt of a "
            f"batch of 1, 4, 16: {new}.",
            "",
        ]
    lines += [
        "| | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |",
        "|---" + "|---:" * len(COLUMNS) + "|",
    ]
    lines += [_row(record, found.roof) for record in found.records if record.samples]
    notes = list(_notes(found))
    return "\n".join([*lines, "", *notes] if notes else lines)


def _row(record: Record, roof: float | None) -> str:
    cells = []
    for figure, _, unit in COLUMNS:
        samples = [unit(value) for value in record.samples.get(figure, [])]
        cells.append(_cell(middle(samples)))
        for batch in BATCHES:
            if figure == decode(batch) and roof and (share := record.share(batch, roof)) is not None:
                cells[-1] += f" {100 * share:.0f} %"
    return f"| {record.title} | " + " | ".join(cells) + " |"


def _cell(found: Middle | None) -> str:
    if found is None:
        return MISSING
    spread = f" ({number(found.low)}–{number(found.high)})" if found.low != found.high else ""
    return number(found.median) + spread


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _notes(found: Measured) -> Iterator[str]:
    """What is missing, with its reason, and who writes other greedy tokens."""
    if found.problem is not None:
        yield f"- It ended early: {found.problem}."
    reasons: dict[str, list[str]] = {}
    for record in found.records:
        if record.problem is not None:
            reasons.setdefault(record.problem, []).append(record.title)
    for reason, titles in reasons.items():
        yield f"- {', '.join(titles)}: {reason}."
    exact = [record for record in found.records if record.exact and record.same is not None]
    if len(exact) < 2:
        return
    compared = found.new[-1]
    reference = min(exact, key=lambda record: record.place)
    others = [record for record in exact if record is not reference]
    alike = [record.title for record in others if min(record.same or [0]) >= compared]
    if alike:
        yield f"- The same greedy tokens as {reference.title}: {', '.join(alike)}."
    for record in others:
        if record.title not in alike:
            whole = sum(count >= compared for count in record.same or [])
            yield (
                f"- {record.title} writes the same {compared} greedy tokens as {reference.title} in "
                f"{whole} of {len(record.same or [])} texts, in the others the first "
                f"{min(record.same or [0])} at least."
            )
