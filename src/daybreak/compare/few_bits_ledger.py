"""What `few_bits` found, on the page of the ledger, on the terminal, and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from daybreak import families
from daybreak.compare.few_bits import BEYOND, FACTOR, LEAD, MODE_NAMES, SCHEMES, FewBits
from daybreak.compare.parity import greatest

_HEAD = f"""## 8 and 4 bits: at most {FACTOR:g} times what rounding costs

The truth is the same model with its weights in float32; so families without a reference are here, too. All
modes that need no gradients are read: {", ".join(MODE_NAMES)}.

A weight is off by up to half a step of its scale, and so is an input of a product. What such noise costs
is measured on the float32 model: all weights and inputs are rounded to steps that are drawn, up to 5 %
finer or coarser than ours, four times. The mean KL divergence of the next tokens, in nats, may be
{FACTOR:g} times that of the noise. Other digits lose as much on average; a thousand random models of these
shapes lost 0.6 to 2.1 times as much. A first choice may be given up where its lead is within
{LEAD:g} standard deviations of the noise after that token (among the thousand: 6.4). And every product
is computed once more from the same inputs, rounded by definition, in plain float32: of its error,
squared, {100 * BEYOND:g} % need not be that of rounding (among the thousand 0.5 %, of an input half way
between two numbers; else 1e-9).

Of each family the shape and mode that come closest to the bound; in the last three columns the worst of all
shapes and modes. "Given up" counts standard deviations.
"""
_COLUMNS = [
    *("family", "shape", "mode", "noise's KL", "KL at most", "KL", "times the noise's"),
    *("same first choice", "given up", "beyond rounding"),
]


def section(found: Sequence[FewBits]) -> Iterator[str]:
    """Of the ledger: a table for each scheme with a line for each family."""
    if not found:
        return
    yield _HEAD
    for scheme in SCHEMES:
        yield f"### {scheme}\n"
        yield from table(_COLUMNS, _rows(found, scheme))


def _rows(found: Sequence[FewBits], scheme: str) -> Iterator[list[str]]:
    for family in families.NAMES:
        mine = [one for one in found if one.family == family and one.scheme == scheme]
        if mine:
            worst, mode = max(((one, mode) for one in mine for mode in one.costs), key=_ratio)
            kl = worst.costs[mode].kl
            sizes = [f"{value:.1e}" for value in (worst.noise, worst.bound, kl)]
            ends = [f"{_kept(mine):.1%}", f"{_lead(mine):.1f}", _beyond(mine)]
            yield [family, worst.label, mode, *sizes, f"{kl / worst.noise:.2f}", *ends]


def plain(found: Sequence[FewBits]) -> Iterator[str]:
    """For the terminal: three lines for each family or checkpoint and scheme."""
    groups: dict[tuple[str, str], list[FewBits]] = {}
    for one in found:
        groups.setdefault((one.family, one.scheme), []).append(one)
    for (family, scheme), mine in groups.items():
        yield f"\n{family}, {scheme} ({len(mine)} {'shape' if len(mine) == 1 else 'shapes'}), beside float32"
        kl = greatest(_ratio((one, mode)) for one in mine for mode in one.costs)
        largest = greatest(cost.kl for one in mine for cost in one.costs.values())
        yield f"  KL divergence   {largest:.1e} nats, {kl:.2f} times rounding noise's (at most {FACTOR:g})"
        lead = f"the lead given up at most {_lead(mine):.1f} deviations (at most {LEAD:g})"
        yield f"  first choices   {_kept(mine):.1%} the same, {lead}"
        yield f"  products        {_beyond(mine)} of their error is not rounding (at most {BEYOND:g})"
        for one in mine:
            if failed := one.failures():
                yield f"  BEYOND THE BOUND in {one.label}: {', '.join(failed)}"


def as_json(one: FewBits) -> dict[str, Any]:
    """For machines."""
    return {
        "family": one.family,
        "shape": one.label,
        "scheme": one.scheme,
        "noise_kl": one.noise,
        "modes": {mode: vars(cost) for mode, cost in one.costs.items()},
        "beyond_rounding": one.beyond,
        "bounds": {"kl": one.bound, "lead": LEAD, "beyond_rounding": BEYOND},
        "failures": one.failures(),
    }


def table(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> Iterator[str]:
    """Of Markdown, with an empty line behind it."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def _ratio(one: tuple[FewBits, str]) -> float:
    """Not-a-number is the worst."""
    found, mode = one
    return greatest([found.costs[mode].kl / found.noise])


def _kept(found: Sequence[FewBits]) -> float:
    return min(cost.kept for one in found for cost in one.costs.values())


def _lead(found: Sequence[FewBits]) -> float:
    return greatest(cost.lead for one in found for cost in one.costs.values())


def _beyond(found: Sequence[FewBits]) -> str:
    return f"{greatest(one.beyond for one in found):.0e}"
