"""Weights of 8 and 4 bits lose what rounding loses, in every family and mode; mutants lose more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak import families
from daybreak.compare import few_bits, few_bits_ledger, few_bits_mutants, parity, rounding
from daybreak.compare.few_bits import FOLDER, MODE_NAMES, PRODUCTS, SCHEMES, Cost, FewBits
from daybreak.compare.verify import SEED, Report, alone_model, trial_pair
from daybreak.engine import compiled, quantised_linear
from daybreak.engine.kernels.build import Library, library
from daybreak.engine.quantised import Scheme, quantise
from daybreak.families.trials import alone, trials
from daybreak.language_model import LanguageModel

CASES = [(name, label) for name in families.NAMES for label in (*trials(name), *alone(name))]
FIRST = [next(case for case in CASES if case[0] == name) for name in families.NAMES]
SUBJECTS = {"zero points", "scales", "groups", "numbers", "rows", "activations", "biases"}


def model(name: str, label: str, folder: Path) -> LanguageModel:
    if label in trials(name):
        return trial_pair(name, label, folder).model
    return alone_model(name, alone(name)[label], folder)


@pytest.mark.parametrize(
    ("name", "label"),
    [case if case in FIRST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_no_more_is_lost_than_rounding_loses(name: str, label: str, tmp_path: Path) -> None:
    found = list(few_bits.compare(model(name, label, tmp_path), tmp_path, label, SEED))
    assert [one.scheme for one in found] == list(SCHEMES)
    for one in found:
        assert set(one.costs) == set(MODE_NAMES)
        assert not one.failures(), one
        # A bound of nothing, or one that anything keeps, would say nothing.
        assert 1e-5 < one.noise < (2e-3 if one.scheme.startswith("int8") else 0.15)


@pytest.mark.parametrize(("name", "label"), FIRST)
def test_no_mutant_passes(name: str, label: str, tmp_path: Path) -> None:
    verdicts = list(few_bits_mutants.judge(model(name, label, tmp_path), tmp_path, SEED))
    assert {one.subject for one in verdicts} >= SUBJECTS - {"biases"}
    assert len(verdicts) >= 30
    assert not [one for one in verdicts if not one.killed_by]


def test_every_family_is_there() -> None:
    assert {name for name, _ in CASES} == set(families.NAMES)


def test_every_kind_of_mutant_occurs(tmp_path: Path) -> None:
    """Also, that a decoder is right again behind a mutant."""
    made = model("gpt_neox", "parallel", tmp_path)
    assert {one.subject for one in few_bits_mutants.judge(made, tmp_path, SEED)} == SUBJECTS
    opened = few_bits.opened_source(tmp_path, None, None, False)
    few = few_bits.quantised(opened, SCHEMES["int8, groups of 32 with zero points"])
    tokens = torch.arange(9)[None]
    before = few.logits(tokens)
    for _, _, wrong in few_bits_mutants.mutants(made.decoder, few):
        with wrong:
            assert not torch.equal(few.logits(tokens), before)
        assert torch.equal(few.logits(tokens), before)


def test_what_only_the_logits_tell_is_told(tmp_path: Path) -> None:
    """Products are right, but keys and values are kept for one place too few."""
    made = model("gpt_neox", "parallel", tmp_path)
    opened = few_bits.opened_source(tmp_path, None, None, False)
    scheme = SCHEMES["int8"]
    pair = few_bits.pair_of(made, few_bits.quantised(opened, scheme), SEED)
    noise = few_bits.noise_of(made.decoder, pair, scheme, SEED)
    right = few_bits.cost(parity.singles(pair), pair.truth, noise)
    assert right.kl < few_bits.FACTOR * noise.kl and right.lead < few_bits.LEAD
    late = few_bits.cost([logits.roll(1, 0) for logits in parity.singles(pair)], pair.truth, noise)
    assert late.kl > 100 * noise.kl and late.lead > few_bits.LEAD
    flat = few_bits.cost([0.95 * logits for logits in parity.singles(pair)], pair.truth, noise)
    assert flat.kl > few_bits.FACTOR * noise.kl


def test_without_kernels_inputs_are_not_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama", "shared heads", tmp_path)
    with_kernels = next(few_bits.compare(made, tmp_path, "any", SEED))
    for module in (quantised_linear, compiled, rounding):
        monkeypatch.setattr(module, "library", lambda: Library(None, "switched off"))
    for one in few_bits.compare(made, tmp_path, "any", SEED):
        assert not one.failures(), one
        if one.scheme == "int8" and library().functions is not None:
            assert one.noise < 0.8 * with_kernels.noise


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 100),
    st.sampled_from([*SCHEMES.values(), Scheme(4, 64, zeros=True), Scheme(8, 128)]),
    st.integers(0, 99),
)
def test_the_definition_is_what_weights_are_quantised_to(
    rows: int, width: int, scheme: Scheme, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=draw) * torch.logspace(-3, 2, rows)[:, None]
    weight[rows // 2] = 0
    assert torch.allclose(rounding.weights(weight, scheme), quantise(weight, scheme).whole(), atol=0)
    other = rounding.weights(weight, scheme, draw)
    steps = quantise(weight, scheme).scales.repeat_interleave(scheme.group or width, 1)[:, :width]
    assert ((other - weight).abs() <= 0.526 * steps + 1e-9).all()


def broken(change: Callable[[Tensor], Tensor]) -> Cost:
    truth = [torch.randn(5, 11, generator=torch.Generator().manual_seed(1))]
    noise = few_bits.Noise(1e-4, torch.full((5,), 0.01))
    return few_bits.cost([change(truth[0])], truth, noise)


def test_not_a_number_is_beyond_every_bound() -> None:
    def spoil(logits: Tensor) -> Tensor:
        return logits.masked_fill(torch.arange(5)[:, None] == 3, float("nan"))

    right, wrong = broken(lambda logits: logits), broken(spoil)
    assert right.kl == 0 and right.kept == 1 and right.lead == 0
    costs = {mode: right for mode in MODE_NAMES}
    assert not FewBits("opt", "x", "int8", 1e-4, costs, 1e-9).failures()
    assert FewBits("opt", "x", "int8", 1e-4, {**costs, FOLDER: wrong}, 1e-9).failures() == [FOLDER]
    assert FewBits("opt", "x", "int8", float("nan"), costs, 1e-9).failures() == list(MODE_NAMES)
    assert FewBits("opt", "x", "int8", 1e-4, costs, float("nan")).failures() == [PRODUCTS]


def test_failures_are_shown_everywhere() -> None:
    right, late = Cost(1.2e-4, 0.98, 1.5), Cost(1.2e-4, 0.9, 10.5)
    costs = {mode: right for mode in MODE_NAMES}
    good = FewBits("opt", "even", "int8", 1e-4, costs, 3e-9)
    bad = FewBits("opt", "odd", "int8", 1e-4, {**costs, "packed": late}, 0.3)
    report = Report("reference 1.0", few_bits=[good, bad])
    assert report.failed == [bad] and not report.passed
    shown = "\n".join(few_bits_ledger.plain(report.few_bits))
    assert "BEYOND THE BOUND in odd: packed, products" in shown and "in even" not in shown
    page = "\n".join(few_bits_ledger.section(report.few_bits))
    row = "| opt | even | full pass | 1.0e-04 | 3.0e-04 | 1.2e-04 | 1.20 | 90.0% | 10.5 | 3e-01 |"
    assert row in page.splitlines()
    told = few_bits_ledger.as_json(bad)
    assert told["failures"] == ["packed", PRODUCTS] and told["bounds"]["kl"] == pytest.approx(3e-4)
    assert told["modes"]["packed"] == {"kl": 1.2e-4, "kept": 0.9, "lead": 10.5}
