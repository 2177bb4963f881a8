"""Every family, every trial shape, every mode, both dtypes, through files that the reference saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from daybreak import families
from daybreak.compare import mutants, parity
from daybreak.compare.verify import MODE_NAMES, Comparison, compare, trial_pair
from daybreak.families.trials import trials

CASES = [(name, label) for name in families.NAMES for label in trials(name)]


@pytest.mark.parametrize(("name", "label"), CASES)
def test_equals_the_reference_in_every_mode_and_no_mutant_does(name: str, label: str, tmp_path: Path) -> None:
    both = trial_pair(name, label, tmp_path)
    verdicts = list(mutants.judge(both.pair, both.pair.other.tensors(tmp_path)))
    for comparison in compare(both, label):
        assert set(comparison.differences) == set(MODE_NAMES)
        assert not comparison.failures(), comparison
    assert len(verdicts) > 50
    assert not [verdict for verdict in verdicts if not verdict.killed_by]


def test_every_family_with_published_weights_is_compared() -> None:
    compared = {name for name, _ in CASES}
    published = {f.name for f in families.everyone() if any(size.hub for size in f.sizes.values())}
    assert compared >= published
    assert set(families.NAMES) - compared == {"gpt3"}, "loops of its own: test_gpt3.py"


def test_not_a_number_is_a_failure() -> None:
    broken = Comparison("any", "any", "float32", {"full pass": float("nan")})
    assert broken.failures() == ["full pass"]


def test_truth_is_far_from_zero_and_varies(tmp_path: Path) -> None:
    """A comparison of all but equal logits would prove nothing."""
    both = trial_pair("gpt2", "plain", tmp_path)
    for truth in both.pair.truth:
        assert float(truth.std()) > 0.1
    assert parity.BOUND == 1e-5
