"""Penalties, filters and chance: against the reference's processors, definitions and statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as reference

from daybreak.engine import sampling
from daybreak.engine.settings import Sampling, resolve
from daybreak.errors import DaybreakError

NO_IDS = torch.zeros(1, 0, dtype=torch.int64)


def random_logits(seed: int, rows: int, vocabulary: int, steps: int | None) -> Tensor:
    """Logits with a third of them -inf in one row; `steps` makes ties: so many values per unit."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=generator) * 3
    if steps is not None:
        logits = (logits * steps).round() / steps
    logits[0, torch.rand(vocabulary, generator=generator) < 0.33] = -math.inf
    logits[0, 0] = 0.5
    return logits


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 60), st.sampled_from([None, 1, 4]))


@given(cases, st.integers(1, 70))
def test_top_k_keeps_what_the_reference_keeps(case: Any, k: int) -> None:
    logits = random_logits(*case)
    assert_same(sampling.keep_top_k(logits, k), reference.TopKLogitsWarper(k)(NO_IDS, logits))


@given(cases, st.floats(0, 1, exclude_max=True))
def test_top_p_keeps_what_the_reference_keeps(case: Any, p: float) -> None:
    logits = random_logits(*case)
    assert_same(sampling.keep_top_p(logits, p), reference.TopPLogitsWarper(p)(NO_IDS, logits))


@given(cases, st.floats(0, 1))
def test_min_p_keeps_what_the_reference_keeps(case: Any, p: float) -> None:
    logits = random_logits(*case)
    assert_same(sampling.keep_min_p(logits, p), reference.MinPLogitsWarper(p)(NO_IDS, logits))


@given(cases, st.floats(0.01, 0.99))
def test_typical_keeps_what_the_reference_keeps(case: Any, mass: float) -> None:
    logits = random_logits(*case)
    assert_same(sampling.keep_typical(logits, mass), reference.TypicalLogitsWarper(mass)(NO_IDS, logits))


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 0.625, 0.75, 0.875])
def test_boundaries_fall_as_in_the_reference(p: float) -> None:
    """Probabilities that float32 holds exactly, so that the sum meets the bound."""
    logits = torch.tensor([[0.5, 0.125, 0.25, 0.125], [0.25, 0.25, 0.25, 0.25]]).log()
    assert_same(sampling.keep_top_p(logits, p), reference.TopPLogitsWarper(p)(NO_IDS, logits))
    if p:
        assert_same(sampling.keep_typical(logits, p), reference.TypicalLogitsWarper(p)(NO_IDS, logits))
    assert_same(sampling.keep_min_p(logits, p), reference.MinPLogitsWarper(p)(NO_IDS, logits))


@given(cases, st.floats(0.05, 0.95), st.integers(1, 59))
def test_few_candidates_give_the_same_as_the_whole_vocabulary(case: Any, p: float, candidates: int) -> None:
    logits = random_logits(*case)
    for keep in (sampling.keep_top_p, sampling.keep_typical):
        whole, few = keep(logits, p).isfinite(), keep(logits, p, candidates).isfinite()
        differ = (whole != few).any(-1)
        # Sums in another order may move the border by one token or tie, but only where the rest meets p to
        # the last bits.
        core = (logits.softmax(-1) * (whole & few)).sum(-1)
        assert ((core - p).abs()[differ] < 1e-5).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
def test_a_real_vocabulary_takes_the_short_way_and_keeps_the_same(p: float) -> None:
    logits = torch.randn(3, 50_257, generator=torch.Generator().manual_seed(1)) * 4
    assert sampling._keep_top_p_of_few(logits, 0.5, 512) is not None
    ours, theirs = sampling.keep_top_p(logits, p), reference.TopPLogitsWarper(p)(NO_IDS, logits)
    assert (ours.isinf() != theirs.isinf()).sum() <= 1


def test_tokens_that_tie_across_the_candidates_border_are_all_considered() -> None:
    logits = torch.zeros(1, 40)
    kept = sampling.keep_top_p(logits, 0.5, candidates=8)
    assert_same(kept, reference.TopPLogitsWarper(0.5)(NO_IDS, logits))
    assert int(kept.isfinite().sum()) == 20


@given(cases, st.floats(0.1, 3), st.lists(st.integers(0, 59), min_size=1, max_size=9))
def test_repetition_penalty_equals_the_reference(case: Any, penalty: float, text: list[int]) -> None:
    logits = random_logits(*case)
    ids = torch.tensor([[token % logits.shape[1] for token in text]] * logits.shape[0])
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, ids, True)
    theirs = reference.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    assert_same(sampling.penalise_repetition(logits, seen, penalty), theirs)


def test_presence_and_frequency_follow_their_definition() -> None:
    logits, counts = torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    assert sampling.penalise_presence(logits, counts, 0.5, 0.25).tolist() == [[1.0, 0.25, -0.25]]


@given(
    cases,
    st.floats(0.1, 3),
    st.integers(0, 50),
    st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([1.0, 0.7]),
)
def test_all_filters_apply_in_the_reference_s_order(
    case: Any, heat: float, k: int, p: float, min_p: float, typical: float
) -> None:
    logits = random_logits(*case)
    theirs = reference.TemperatureLogitsWarper(heat)(NO_IDS, logits)
    for wanted, warper in (
        (k, lambda: reference.TopKLogitsWarper(k)),
        (p < 1, lambda: reference.TopPLogitsWarper(p)),
        (min_p, lambda: reference.MinPLogitsWarper(min_p)),
        (typical < 1, lambda: reference.TypicalLogitsWarper(typical)),
    ):
        theirs = warper()(NO_IDS, theirs) if wanted else theirs
    settings_ = Sampling(temperature=heat, top_k=k, top_p=p, min_p=min_p, typical_p=typical)
    assert_same(sampling.narrow(logits, settings_), theirs)


# Chance


def noise(keys: Tensor, step: int, vocabulary: int) -> Tensor:
    return sampling.gumbel(keys[:, None], step, torch.arange(vocabulary))


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    keys = torch.tensor([sampling.stream_key(7, [1, 2], sample) for sample in range(20_000)])
    _, ids = sampling.draw(probabilities.log().expand(len(keys), -1), keys, 0)
    shares = torch.bincount(ids, minlength=5) / len(keys)
    assert shares[4] == 0
    # Five standard deviations of a share of 20,000 draws are at most 0.018.
    assert (shares - probabilities).abs().max() < 0.018


def test_noise_has_gumbel_s_moments_and_no_memory() -> None:
    key = torch.tensor([sampling.stream_key(0, [], 0)])
    steps = torch.cat([noise(key, step, 4096) for step in range(64)])
    assert steps.isfinite().all()
    assert abs(float(steps.mean()) - 0.57722) < 0.013  # 5 sigma of 262,144 draws
    assert abs(float(steps.var()) - math.pi**2 / 6) < 0.04
    for a, b in ((steps[:-1], steps[1:]), (steps[:, :-1], steps[:, 1:])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.01


@given(st.integers(-(2**70), 2**70), st.lists(st.integers(0, 50_000), max_size=5), st.integers(0, 1000))
def test_noise_of_a_row_depends_on_nothing_but_its_key_step_and_ids(
    seed: int, prompt: list[int], step: int
) -> None:
    keys = torch.tensor([sampling.stream_key(seed, prompt, sample) for sample in range(3)])
    assert len(set(keys.tolist())) == 3
    together = noise(keys, step, 50)
    alone = torch.cat([noise(key[None], step, 40) for key in keys])
    assert torch.equal(together[:, :40], alone)
    assert not torch.equal(together, noise(keys, step + 1, 50))


def test_minus_infinity_is_never_drawn_and_a_single_choice_always() -> None:
    logits = torch.full((500, 30), -math.inf)
    logits[:, 11] = -5.0
    best, ids = sampling.draw(logits, torch.arange(500), 3)
    assert ids.eq(11).all() and best.isfinite().all()


def test_removed_tokens_do_not_change_which_of_the_others_is_drawn() -> None:
    keys, logits = torch.arange(60), torch.randn(60, 200, generator=torch.Generator().manual_seed(4))
    for kept in (3, 40, 60, 199):  # noise for all tokens, or for the few that are left
        removed = logits.masked_fill(torch.arange(200) >= kept, -math.inf)
        expected = (removed + noise(keys, 2, 200)).max(-1)
        best, ids = sampling.draw(removed, keys, 2)
        assert torch.equal(ids, expected.indices) and torch.equal(best, expected.values)


def test_nearly_equal_logits_draw_the_same_token() -> None:
    """What batching does to float32 logits changes next to no draw, whatever the distribution's shape."""
    keys = torch.arange(400)
    for spread in (0.0, 1.0, 5.0):
        logits = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(2)) * spread
        disturbed = logits + torch.randn(400, 20_000, generator=torch.Generator().manual_seed(3)) * 1e-6
        same = sampling.draw(logits.expand(400, -1), keys, 0)[1] == sampling.draw(disturbed, keys, 0)[1]
        assert int((~same).sum()) == 0


# Settings


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": -1}, "temperature is -1; it must be a number of at least 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be a number of at least 0 and at most 1"),
        ({"typical_p": 0.0}, "above 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number of at least 0"),
        ({"n": 0}, "n is 0"),
        ({"n": 2, "temperature": 0}, "all samples are the same"),
        ({"stop": ["a", ""]}, "stop holds ''"),
        ({"stop": [3]}, "stop holds 3"),
        ({"stop_tokens": ["x"]}, "stop_tokens holds 'x'"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"seed": "one"}, "seed is 'one'"),
    ],
)
def test_senseless_settings_are_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        Sampling(**wrong)
    assert named in str(caught.value)


def test_greedy_unless_something_asks_for_chance() -> None:
    assert Sampling().greedy
    assert Sampling(temperature=0, top_k=5).greedy
    assert Sampling(n=2).heat == Sampling(top_k=5).heat == 1.0
    assert resolve({}, {}).greedy
    assert resolve({}, {"top_p": 0.9}).heat == 1.0
    for idle in ({"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.0}, {"typical_p": 1}, {"n": 1}):
        assert resolve({}, idle).greedy
        assert resolve({"temperature": 0.7, "top_k": 9}, idle).greedy
    assert resolve({}, {"top_k": 0, "n": 2}).heat == 1.0
    for wrong in ({"n": "x"}, {"top_k": "x"}):
        with pytest.raises(DaybreakError, match="whole number"):
            resolve({}, wrong)
    assert Sampling(stop="ab").stop == ("ab",)


def test_the_file_s_defaults_hold_and_arguments_go_before_them() -> None:
    file = {"do_sample": True, "temperature": 0.7, "top_k": 9, "max_length": 50, "eos_token_id": [1, 2]}
    assert resolve(file, {}) == Sampling(temperature=0.7, top_k=9, max_length=50)
    assert resolve(file, {"temperature": 0.0}).greedy
    assert resolve(file, {"max_new_tokens": 3}).room(80) == 3
    assert resolve(file, {}).room(20) == 30
    assert resolve({"max_length": 50, "max_new_tokens": 7}, {}).room(20) == 7
    assert resolve({"max_new_tokens": 7}, {"max_length": 50}).room(20) == 30
    assert resolve(
        {"temperature": 0.7, "top_k": 9}, {}
    ).greedy  # without do_sample the file speaks of no sampling
    assert resolve({"temperature": 0.7, "top_k": 9}, {"top_p": 0.5}).heat == 0.7
    assert resolve({"do_sample": True}, {}).heat == 1.0
    with pytest.raises(DaybreakError, match="no room is left"):
        resolve(file, {}).room(50)


@pytest.mark.parametrize(
    ("key", "value"), [("num_beams", 4), ("penalty_alpha", 0.6), ("bad_words_ids", [[3]])]
)
def test_what_the_file_asks_for_and_is_not_supported_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(DaybreakError, match=key):
        resolve({key: value}, {})


def test_harmless_keys_and_unknown_settings() -> None:
    resolve({"num_beams": 1, "use_cache": True, "transformers_version": "4", "guidance_scale": None}, {})
    with pytest.raises(DaybreakError, match="did you mean 'temperature'"):
        resolve({}, {"temprature": 1})
