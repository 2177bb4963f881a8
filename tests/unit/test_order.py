"""The order of sequences: exact shares, every stretch once, the same for ever."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from daybreak.data.order import WINDOW, Mixing, Walk, permuted

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.one_of(st.integers(1, 1000), st.floats(1e-6, 1e6), st.sampled_from([0.1, 0.2, 0.7])),
    min_size=1,
)
SEEDS = st.integers(0, 1 << 40)


@given(st.integers(1, 800), SEEDS)
def test_a_permutation_meets_every_number_once(size: int, key: int) -> None:
    assert sorted(permuted(number, size, key) for number in range(size)) == list(range(size))


@given(st.integers(1, 10**15), SEEDS, st.data())
def test_a_permutation_of_any_size_is_instant_and_inside(size: int, key: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, size - 1))
    assert 0 <= permuted(number, size, key) < size


def test_all_orders_of_a_few_are_equally_frequent() -> None:
    keys = 3000
    for size in (2, 3, 4, 5):
        found = Counter(tuple(permuted(number, size, key) for number in range(size)) for key in range(keys))
        orders = math.factorial(size)
        wanted = keys / orders
        assert len(found) == orders
        chi_squared = sum((count - wanted) ** 2 / wanted for count in found.values())
        assert chi_squared < orders - 1 + 5 * math.sqrt(2 * orders)


@given(WEIGHTS, SEEDS, st.sampled_from([0, 1, 7, 10**10]))
def test_every_window_mixes_exactly(weights: dict[str, float], seed: int, window: int) -> None:
    mixing = Mixing(weights, seed)
    total = sum(Fraction(repr(float(weight))) for weight in weights.values())
    places = [mixing.place(window * WINDOW + row) for row in range(WINDOW)]
    counts = Counter(name for name, _ in places)
    before, after = (
        dict(zip(weights, mixing.before(number), strict=True)) for number in (window, window + 1)
    )
    assert sum(before.values()) == window * WINDOW
    rising = sorted(weights, key=lambda name: float(weights[name]))
    for rank, name in enumerate(rising):
        wanted = Fraction(repr(float(weights[name]))) / total * window * WINDOW
        # Off by rounding, and by its part of the others' rounding, over all windows before together.
        assert abs(before[name] - wanted) <= Fraction(1, 2) + Fraction(rank, 2 * (len(rising) - rank))
        assert counts[name] == after[name] - before[name]
        numbers = [number for source, number in places if source == name]
        assert numbers == list(range(before[name], after[name]))


def test_shares_that_a_window_can_give_are_given_in_every_window() -> None:
    mixing = Mixing({"a": 0.5, "b": 0.375, "c": 0.125}, seed=1)
    for window in (0, 1, 2, 10**6):
        counts = Counter(mixing.place(window * WINDOW + row)[0] for row in range(WINDOW))
        assert counts == {"a": WINDOW // 2, "b": WINDOW * 3 // 8, "c": WINDOW // 8}


def test_a_source_of_a_tiny_share_comes_in_its_turn() -> None:
    mixing = Mixing({"large": 0.9999, "small": 0.0001}, seed=0)
    assert [mixing.before(window)[1] for window in (0, 19, 20, 40)] == [0, 0, 1, 1]
    assert mixing.before(10**9)[1] == WINDOW * 10**5


@given(WEIGHTS, SEEDS, st.lists(st.integers(0, 10**13), min_size=2, max_size=20))
def test_the_mixing_remembers_nothing(weights: dict[str, float], seed: int, sequences: list[int]) -> None:
    mixing = Mixing(weights, seed)
    forwards = [mixing.place(sequence) for sequence in sequences]
    backwards = [mixing.place(sequence) for sequence in reversed(sequences)]
    assert forwards == backwards[::-1] == [Mixing(weights, seed).place(sequence) for sequence in sequences]


@given(st.integers(2, 400), st.data(), SEEDS, st.sampled_from([0, 1, 10**12]))
def test_an_epoch_reads_every_stretch_once(tokens: int, data: st.DataObject, seed: int, epoch: int) -> None:
    length = data.draw(st.integers(1, tokens - 1))
    walk = Walk("text", tokens, length, seed)
    places = [walk.place(epoch * walk.stretches + number) for number in range(walk.stretches)]
    assert {found for found, _ in places} == {epoch}
    read = Counter((first + offset) % tokens for _, first in places for offset in range(length))
    assert set(read.values()) == {1}
    assert tokens - len(read) < length


def test_epochs_seeds_and_sources_differ() -> None:
    def epoch(source: str, seed: int, number: int) -> list[int]:
        walk = Walk(source, 10_000, 100, seed)
        return [walk.place(number * walk.stretches + k)[1] for k in range(walk.stretches)]

    found = [epoch("a", 0, 0), epoch("a", 0, 1), epoch("a", 1, 0), epoch("b", 0, 0)]
    assert len({tuple(one) for one in found}) == 4
    # Not only another order: another cut.
    assert len({min(one) for one in found}) == 4
    mixings = [[Mixing({"a": 1, "b": 1}, seed).place(n) for n in range(WINDOW)] for seed in (0, 1)]
    assert mixings[0] != mixings[1]


def test_a_window_is_in_random_order() -> None:
    mixing = Mixing({"a": 1, "b": 1}, 0)
    names = [mixing.place(sequence)[0] for sequence in range(100 * WINDOW)]
    halves = Counter(
        names[row] for window in range(100) for row in range(window * WINDOW, window * WINDOW + 128)
    )
    assert abs(halves["a"] - 6400) < 300
    runs = sum(one != other for one, other in pairwise(names))
    assert abs(runs / len(names) - 0.5) < 0.02
    totals = list(accumulate(1 if name == "a" else -1 for name in names))
    assert all(totals[end - 1] == 0 for end in range(WINDOW, len(names) + 1, WINDOW))


def test_the_order_of_version_1_stays_what_it_is() -> None:
    # A run that goes on tomorrow must read what it would have read today. Whoever changes these numbers
    # raises VERSION, so that runs of the older order are refused and not continued with another one.
    mixing = Mixing({"books": 0.25, "code": 0.1, "web": 0.65}, seed=7)
    assert [mixing.place(sequence) for sequence in (0, 1, 2, 3, 255, 256, 10**6, 10**12)] == [
        *(("web", 0), ("web", 1), ("books", 0), ("code", 0), ("books", 63), ("web", 166)),
        *(("web", 650_002), ("books", 250_000_000_000)),
    ]
    walk = Walk("web", 1_000_003, 2048, seed=7)
    assert [walk.place(number) for number in (0, 1, 2, 487, 488, 489, 10**12)] == [
        *((0, 568400), (0, 607312), (0, 287824), (0, 834640), (1, 280943), (1, 393583)),
        (2_049_180_327, 578083),
    ]
    assert [permuted(number, 10, 3) for number in range(10)] == [1, 5, 3, 4, 6, 9, 2, 0, 7, 8]
    assert [permuted(number, 10**12, 3) for number in range(3)] == [
        120_808_724_713,
        328_357_657_071,
        931_216_359_905,
    ]
