"""The course of a run: batch sizes, length and learning rates, step by step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak import settings as reading
from daybreak.errors import DaybreakError
from daybreak.train.amount import Amount
from daybreak.train.course import Course
from daybreak.train.settings import Settings


def course(context: int = 100, **tree: Any) -> Course:
    return Course(reading.build(Settings, tree), context)


@pytest.mark.parametrize(
    "text, value, unit",
    [
        ("2000 steps", 2000, "steps"),
        ("1 step", 1, "steps"),
        ("375M tokens", 375e6, "tokens"),
        ("0.5B tokens", 5e8, "tokens"),
        ("183,105 sequences", 183105, "sequences"),
        ("9_765_625 sequences", 9765625, "sequences"),
        ("1 %", 1, "%"),
        ("12.5%", 12.5, "%"),
    ],
)
def test_amounts_are_read_as_papers_print_them(text: str, value: float, unit: str) -> None:
    assert Amount.parse(text, "length") == Amount(value, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "2000", "tokens", "-1 steps", "3 epochs", "1e5 steps", "2 k steps tokens"]
)
def test_what_is_no_amount_is_named(text: str) -> None:
    with pytest.raises(DaybreakError, match=r"schedule\.warmup.*2000 steps"):
        course(schedule={"warmup": text})


def test_a_run_ends_with_the_first_step_that_reads_enough() -> None:
    assert course(length="1000 steps").steps == 1000
    batch = {"sequences": 7}
    assert course(length="100 sequences", batch=batch).steps == 15  # 14 steps read 98
    assert course(length="9800 tokens", batch=batch).steps == 14
    assert course(length="9801 tokens", batch=batch).steps == 15


RAMP = {"sequences": 32, "ramp_from": 8, "ramp_by": 8, "ramp_over": "240 sequences"}


def test_the_batch_grows_in_equal_parts_of_what_it_grows_over() -> None:
    found = course(batch=RAMP, length="1000 sequences")
    sizes = [found.batch(step) for step in range(30)]
    assert sizes == sorted(sizes) and set(sizes) == {8, 16, 24, 32}
    read = [found.before(step) for step in range(31)]
    assert [later - now for now, later in itertools.pairwise(read)] == sizes
    # Three growths: the batch is larger once a third, two thirds, all of the 240 sequences are read.
    assert [
        min(n for n, size in zip(read, sizes, strict=False) if size >= wanted) for wanted in (16, 24, 32)
    ] == [
        80,
        160,
        256,  # 24 does not divide what is left
    ]


@given(
    first=st.integers(1, 8),
    growths=st.integers(0, 6),
    by=st.integers(1, 8),
    over=st.integers(0, 500),
    unit=st.sampled_from(["steps", "sequences", "tokens"]),
)
def test_steps_and_sequences_agree_wherever_the_run_is(
    first: int, growths: int, by: int, over: int, unit: str
) -> None:
    batch = {
        "sequences": first + growths * by,
        "ramp_from": first,
        "ramp_by": by,
        "ramp_over": f"{over} {unit}",
    }
    found = course(context=3, batch=batch, length="600 sequences")
    read = 0
    for step in range(found.steps + 3):
        assert found.before(step) == read
        read += found.batch(step)
    assert found.before(found.steps) >= 600 > found.before(found.steps - 1)
    assert found.batch(10**9) == batch["sequences"]


def test_a_batch_that_cannot_grow_so_is_refused() -> None:
    with pytest.raises(DaybreakError, match="ramp_by must divide"):
        course(batch={"sequences": 32, "ramp_from": 8, "ramp_by": 7, "ramp_over": "10 steps"})
    with pytest.raises(DaybreakError, match="ramp_over is a share"):
        course(batch={**RAMP, "ramp_over": "10 %"})


def rates(length: int = 100, **schedule: Any) -> list[float]:
    found = course(length=f"{length} steps", schedule=schedule)
    return [found.rate(step) for step in range(length)]


def test_the_warm_up_is_a_straight_line_that_does_not_begin_at_zero() -> None:
    found = rates(name="constant", warmup="10 steps")
    assert found[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert found[10:] == [1.0] * 90


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_the_rate_falls_from_the_warm_up_to_the_floor(name: str) -> None:
    found = rates(name=name, warmup="10 steps", decay="60 steps", floor=0.1)
    assert found[10] == 1.0 and all(a > b for a, b in itertools.pairwise(found[10:61]))
    assert found[60:] == pytest.approx([0.1] * 40)
    assert found[35] == pytest.approx(0.55)  # half way
    quarter = (1 + math.cos(math.pi * 0.24)) / 2 if name == "cosine" else 0.76
    assert found[22] == pytest.approx(0.1 + 0.9 * quarter)


def test_wsd_stays_and_falls_at_the_end() -> None:
    found = rates(name="wsd", warmup="10 %", floor=0.0)
    assert found[9:91] == [1.0] * 82
    assert found[91:] == pytest.approx([0.9 - 0.1 * step for step in range(9)])


def test_inverse_sqrt_halves_when_four_times_as_much_is_read() -> None:
    found = rates(name="inverse_sqrt", warmup="10 steps", floor=0.0)
    assert found[10] == 1.0 and found[40] == pytest.approx(0.5) and found[90] == pytest.approx(1 / 3)


def test_amounts_of_other_units_mean_the_same() -> None:
    batch = {"sequences": 4}
    one = course(
        context=50, batch=batch, length="100 steps", schedule={"warmup": "20 steps", "decay": "80 steps"}
    )
    two = course(
        context=50,
        batch=batch,
        length="20000 tokens",
        schedule={"warmup": "80 sequences", "decay": "16k tokens"},
    )
    assert one.steps == two.steps
    assert [one.rate(step) for step in range(100)] == [two.rate(step) for step in range(100)]


def test_the_schedule_counts_sequences_where_the_batch_grows() -> None:
    """A warm-up over sequences is half done when half of the sequences are read, not half of the steps."""
    found = course(
        batch=RAMP, length="2000 sequences", schedule={"warmup": "480 sequences", "name": "constant"}
    )
    half = next(step for step in range(100) if found.before(step + 1) >= 240)
    assert found.rate(half) == pytest.approx(found.before(half + 1) / 480)


def test_settings_that_make_no_sense_are_refused() -> None:
    for tree, named in (
        ({"length": "50 %"}, "length"),
        ({"batch": {"sequences": 0}}, "batch.sequences"),
        ({"ema": 1.0}, "ema"),
        ({"checkpoints": {"keep": 0}}, "checkpoints.keep"),
    ):
        with pytest.raises(DaybreakError, match=named):
            reading.build(Settings, tree)
    assert dataclasses.asdict(Settings())  # the defaults do
