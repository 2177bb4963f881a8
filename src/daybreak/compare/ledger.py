"""docs/parity.md: what was compared, how far apart, and which wrong models were noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from daybreak import __version__, families
from daybreak.compare import few_bits_ledger
from daybreak.compare.few_bits_ledger import table
from daybreak.compare.parity import greatest
from daybreak.compare.verify import BF16_FACTOR, MODE_NAMES, Comparison, Report, worst

_HEAD = """# Parity ledger

Written by `daybreak verify --all`; do not edit. daybreak {version} on torch {torch}, on CPU, beside
{reference}.

Every number is the largest difference between our logits and the reference's, relative to the reference's
largest logit, over all shapes listed below. The reference reads each text alone, unpadded, in one pass
and with eager attention; we read it in the mode named. Texts with blanks have one or two of them, filled,
half filled or still empty. Every parameter is drawn anew (biases and norms
too), every number of the configuration is distinct and not its default, and the weights travel through
files that the reference saved. Gradients are compared tensor by tensor, relative to the tensor's largest.

**{verdict}** Mutants killed: **{killed} of {mutants}**.
"""


def markdown(report: Report) -> str:
    """The whole page."""
    return "\n".join(
        [
            _HEAD.format(
                version=__version__,
                reference=report.reference,
                torch=torch.__version__,
                verdict=verdict(report),
                killed=len(report.mutants) - len(report.survivors),
                mutants=len(report.mutants),
            ),
            *_float32(report),
            *_bfloat16(report),
            *few_bits_ledger.section(report.few_bits),
            *_shapes(report),
            *_mutants(report),
        ]
    )


def verdict(report: Report) -> str:
    """One sentence."""
    if not report.failed:
        return "Every comparison is within its bound."
    count = len(report.comparisons) + len(report.few_bits)
    return f"{len(report.failed)} of {count} comparisons are beyond their bound."


def plain(report: Report) -> Iterator[str]:
    """What the terminal shows: a line per family or checkpoint and dtype, then the verdict."""
    yield f"largest difference from {report.reference}, relative to the largest logit"
    width = max(len(mode) for mode in MODE_NAMES)
    for name in _names(report):
        for dtype in ("float32", "bfloat16"):
            found = worst(report.comparisons, name, dtype)
            mine = [c for c in report.comparisons if c.family == name and c.dtype == dtype]
            yield f"\n{name}, {dtype} ({len(mine)} {'shape' if len(mine) == 1 else 'shapes'})"
            for mode in MODE_NAMES:
                failed = [c.label for c in mine if mode in c.failures()]
                yield f"  {mode:<{width}}  {found[mode]:.1e}" + (
                    f"  BEYOND THE BOUND in {', '.join(failed)}" if failed else ""
                )
    yield from few_bits_ledger.plain(report.few_bits)
    yield ""
    if report.mutants:
        yield f"mutants killed: {len(report.mutants) - len(report.survivors)} of {len(report.mutants)}"
        for family, v in report.survivors:
            yield f"  SURVIVED in {family}: {v.kind}, {v.subject}: {v.change}"
    yield verdict(report)


def as_json(report: Report) -> dict[str, Any]:
    """The report for machines."""
    return {
        "reference": report.reference,
        "passed": report.passed,
        "comparisons": [_comparison(c) for c in report.comparisons],
        "few_bits": [few_bits_ledger.as_json(one) for one in report.few_bits],
        "mutants": {"total": len(report.mutants), "killed": len(report.mutants) - len(report.survivors)},
        "survivors": [
            {"family": family, "kind": v.kind, "subject": v.subject, "change": v.change}
            for family, v in report.survivors
        ],
    }


def _comparison(c: Comparison) -> dict[str, Any]:
    return {
        "family": c.family,
        "shape": c.label,
        "dtype": c.dtype,
        "differences": c.differences,
        "bounds": {mode: c.bound(mode) for mode in c.differences},
        "failures": c.failures(),
    }


def _names(report: Report) -> list[str]:
    present = {c.family for c in report.comparisons}
    return [name for name in families.NAMES if name in present]


def _float32(report: Report) -> Iterator[str]:
    yield "## float32: at most 1e-5\n"
    rows = []
    for name in _names(report):
        found = worst(report.comparisons, name, "float32")
        rows.append([name, *(f"{found[mode]:.1e}" for mode in MODE_NAMES)])
    yield from table(["family", *MODE_NAMES], rows)


def _bfloat16(report: Report) -> Iterator[str]:
    yield f"## bfloat16: at most {BF16_FACTOR:g} times the reference's own distance from float32\n"
    yield "The truth is the reference computing in float32 with the rounded weights.\n"
    rows = []
    for name in _names(report):
        found = worst(report.comparisons, name, "bfloat16")
        mine = [c for c in report.comparisons if c.family == name and c.dtype == "bfloat16"]
        own = [f"{greatest(c.reference_own[key] for c in mine):.1e}" for key in ("full pass", "gradients")]
        rows.append([name, *own, *(f"{found[mode]:.1e}" for mode in MODE_NAMES)])
    yield from table(["family", "reference itself", "its gradients", *MODE_NAMES], rows)


def _shapes(report: Report) -> Iterator[str]:
    yield "## Shapes\n"
    rows = [
        [c.family, c.label, c.reference, f"{greatest(c.differences.values()):.1e}"]
        for c in report.comparisons
        if c.dtype == "float32"
    ]
    yield from table(["family", "shape", "beside", "largest float32 difference, any mode"], rows)
    absent = [
        name for name in families.NAMES if name not in _names(report) and not families.by_name(name).hf_class
    ]
    if absent:
        yield f"Without a reference: {', '.join(absent)}; tests compare with loops written from the paper.\n"


def _mutants(report: Report) -> Iterator[str]:
    yield "## Mutants\n"
    yield (
        "Deliberately wrong models: each changes one field of the architecture, one line of the "
        "weight table, one fact of a reading, or something of the weights of few bits. The careful loader is "
        "switched off, so that most must be told by their logits alone; those of few bits are told by any of "
        "the three bounds.\n"
    )
    total = Counter((v.kind, _subject(v.kind, v.subject)) for _, v in report.mutants)
    killed = Counter((v.kind, _subject(v.kind, v.subject)) for _, v in report.mutants if v.killed_by)
    loading = Counter(
        (v.kind, _subject(v.kind, v.subject)) for _, v in report.mutants if v.killed_by == "loading"
    )
    rows = [
        [kind, subject, f"{killed[kind, subject]} of {count}", str(loading[kind, subject])]
        for (kind, subject), count in sorted(total.items())
    ]
    yield from table(["what is wrong", "where", "killed", "of these by not loading"], rows)
    for family, survivor in report.survivors:
        yield f"- SURVIVED in {family}: {survivor.kind}, {survivor.subject}: {survivor.change}"


def _subject(kind: str, subject: str) -> str:
    return "layouts, orders and swaps" if kind == "weights" else subject
