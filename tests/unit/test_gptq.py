"""Rounding for inputs, beside loops that take the paper at its word."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from daybreak.engine.calibration import hessian
from daybreak.engine.gptq import Inputs, fitted
from daybreak.engine.quantised import MIDDLE, Quantised, Scheme, quantise
from daybreak.engine.searched import SHARES, searched
from daybreak.errors import DaybreakError
from tests.reference import gptq as plainly

SCHEMES = [Scheme(4, 32), Scheme(4, 32, zeros=True), Scheme(4, 64), Scheme(4), Scheme(8), Scheme(8, 32, True)]


def drawn(rows: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix, and the Hessian of inputs that hang together and are of different sizes."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=draw) / width**0.5
    inputs = torch.randn(200, width, generator=draw) @ mixing
    inputs *= torch.logspace(-1, 1, width)[torch.randperm(width, generator=draw)]
    return torch.randn(rows, width, generator=draw), hessian([inputs[:80], inputs[80:]])


def ends(scheme: Scheme) -> tuple[int, int]:
    return 0 if scheme.zeros and scheme.bits == 4 else 1, 2 * MIDDLE[scheme.bits] - 1


def zeros_of(found: Quantised) -> Tensor:
    return torch.full_like(found.scales, MIDDLE[found.bits]) if found.zeros is None else found.zeros


@pytest.mark.parametrize("width", [1, 32, 45, 150])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_is_what_loops_find(scheme: Scheme, width: int) -> None:
    """Groups that do not divide the width, and widths beyond the columns that are rounded together."""
    weight, known = drawn(3, width, width)
    found = fitted(weight, Inputs.of(known), scheme)
    group, (first, last) = scheme.group or width, ends(scheme)
    expected = plainly.rounded(weight, known, found.scales, zeros_of(found), group, first, last)
    assert torch.equal(found.numbers.long(), expected)
    assert found.scales.shape == (3, -(-width // group)) and (found.zeros is None) != scheme.zeros


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_less_is_lost_than_by_rounding(scheme: Scheme) -> None:
    weight, known = drawn(40, 160)
    near, found = quantise(weight, scheme), fitted(weight, Inputs.of(known), scheme)
    lost = [plainly.weighted(weight, one.whole(), known) for one in (near, found)]
    assert lost[1] < 0.6 * lost[0]


def test_rows_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, known = drawn(37, 48)
    whole = fitted(weight, Inputs.of(known), Scheme(4, 32, True))
    monkeypatch.setattr("daybreak.engine.gptq.AT_ONCE", 5 * 48)
    parts = fitted(weight, Inputs.of(known), Scheme(4, 32, True))
    assert torch.equal(whole.numbers, parts.numbers) and torch.equal(whole.scales, parts.scales)
    assert whole.zeros is not None and parts.zeros is not None and torch.equal(whole.zeros, parts.zeros)


def test_a_factor_does_not_matter() -> None:
    weight, known = drawn(5, 64)
    assert torch.equal(
        fitted(weight, Inputs.of(known), Scheme(4, 32)).numbers,
        fitted(weight, Inputs.of(known * 1024), Scheme(4, 32)).numbers,
    )


def test_inputs_that_are_never_there() -> None:
    """Their weights are rounded to the nearest, and change no other; with no others it is rounding alone."""
    weight, known = drawn(6, 64)
    dead = torch.arange(0, 64, 3)
    known[dead], known[:, dead] = 0, 0
    found = fitted(weight, Inputs.of(known), Scheme(4, 32))
    step = found.scales.repeat_interleave(32, 1)[:, dead]
    near = (weight[:, dead] / step + 8).round().clamp(1, 15)
    assert torch.equal(found.numbers[:, dead].float(), near)
    nothing = fitted(weight, Inputs.of(torch.zeros(64, 64)), Scheme(4, 32))
    near = (weight / nothing.scales.repeat_interleave(32, 1) + 8).round().clamp(1, 15)
    assert torch.equal(nothing.numbers.float(), near)


@pytest.mark.parametrize("tokens", [1, 20])
def test_fewer_tokens_than_inputs(tokens: int) -> None:
    """The Hessian has no inverse but for the damping."""
    inputs = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(1))
    weight, known = drawn(8, 96)[0], hessian([inputs])
    found = fitted(weight, Inputs.of(known), Scheme(4, 32))
    near = quantise(weight, Scheme(4, 32))
    lost = [plainly.weighted(weight, one.whole(), known) for one in (near, found)]
    assert lost[1] < 0.1 * lost[0]


def test_weights_that_are_zero_stay_zero() -> None:
    weight, known = drawn(4, 64)
    weight[1], weight[2, :32] = 0, 0
    found = fitted(weight, Inputs.of(known), Scheme(4, 32)).whole()
    assert not found[1].any() and not found[2, :32].any()


def test_what_is_not_finite() -> None:
    weight, known = drawn(4, 64)
    with pytest.raises(
        DaybreakError, match=r"up\.weight: what it reads of the calibration text is not finite"
    ):
        Inputs.of(known.where(known != known.max(), float("nan")), "up.weight")
    weight[3, 3] = float("inf")
    with pytest.raises(DaybreakError, match=r"up\.weight has weights that are not finite"):
        fitted(weight, Inputs.of(known), Scheme(4, 32), "up.weight")


@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_is_what_loops_find(bits: int) -> None:
    weight = torch.randn(45, 3, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(45, generator=torch.Generator().manual_seed(3))
    grid = searched(weight, importance, Scheme(bits, 32))  # type: ignore[arg-type]
    last, middle = 2 * MIDDLE[bits] - 1, MIDDLE[bits]
    for group, inputs in enumerate((slice(0, 32), slice(32, 45))):
        for row in range(3):
            values, weights = weight[inputs, row].tolist(), importance[inputs].tolist()
            scale, _ = plainly.best_share(values, weights, SHARES, last, middle)
            assert float(grid.scales[group, row]) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_search_loses_no_more_than_the_largest_weights_scale(scheme: Scheme) -> None:
    weight = torch.randn(20, 160, generator=torch.Generator().manual_seed(4)) ** 3
    none = Inputs.of(torch.eye(160))
    lost = [
        (one.whole() - weight).square().sum()
        for one in (quantise(weight, scheme), fitted(weight, none, scheme))
    ]
    assert lost[1] <= lost[0] and (scheme.bits == 8 or lost[1] < 0.98 * lost[0])


def test_hessian() -> None:
    parts = [torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(5)), torch.ones(1, 3, 7)]
    flat = torch.cat([part.flatten(0, 1) for part in parts])
    expected = sum(torch.outer(one, one) for one in flat) / 13
    torch.testing.assert_close(hessian(parts), expected)
