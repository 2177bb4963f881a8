"""Spikes are seen, ordinary noise is not, and the watcher of a resumed run says what it would have said."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.errors import DaybreakError
from daybreak.train.settings import WatchSettings
from daybreak.train.watch import Seen, Verdict, Watch

SETTINGS = WatchSettings(window=30, warmup=5)
POLICIES = ("log", "skip", "roll_back")


def ordinary(count: int, first: int = 1, loss: float = 3.0, noise: float = 0.05) -> Iterator[Seen]:
    rng = random.Random(first)
    for step in range(first, first + count):
        yield Seen(
            step=step,
            loss=loss + rng.gauss(0, noise),
            gradient_norm=0.5 * math.exp(rng.gauss(0, 0.3)),
            embedding_gradient_norm=0.1 * math.exp(rng.gauss(0, 0.3)),
        )


def look(watch: Watch, steps: Iterable[Seen]) -> list[Verdict]:
    return [watch.look(seen) for seen in steps]


def settled(policy: str = "log", **changes: float) -> Watch:
    watch = Watch(replace(SETTINGS, policy=policy, **changes))  # type: ignore[arg-type]
    assert all(verdict == Verdict(None, "go") for verdict in look(watch, ordinary(60)))
    return watch


def spike(step: int = 61, **changes: float | bool | None) -> Seen:
    return replace(next(ordinary(1, step)), **changes)  # type: ignore[arg-type]


def kind(verdict: Verdict) -> str | None:
    return verdict.event.kind if verdict.event is not None else None


def test_a_falling_noisy_loss_is_no_event() -> None:
    watch = Watch(WatchSettings(policy="skip"))
    rng = random.Random(0)
    for step in range(3000):
        loss = 3 + 8 * math.exp(-step / 150) + rng.gauss(0, 0.15)
        norm = (0.3 + 4 * math.exp(-step / 50)) * math.exp(rng.gauss(0, 0.5))
        assert watch.look(Seen(step, loss, norm, norm / 5)) == Verdict(None, "go"), step


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": 6.0}, "loss spike"),
        ({"gradient_norm": 12.0}, "gradient spike"),
        ({"embedding_gradient_norm": 9.0}, "embedding gradient spike"),
        ({"loss": math.nan}, "not finite"),
        ({"loss": math.inf}, "not finite"),
        ({"gradient_norm": math.inf}, "not finite"),
        ({"embedding_gradient_norm": math.nan}, "not finite"),
        ({"loss": math.nan, "overflow": True}, "not finite"),
        ({"loss_scale": 0.5}, "loss scale"),
    ],
)
def test_every_kind_under_every_policy(changes: dict[str, float], expected: str) -> None:
    actions = {
        "loss spike": ("go", "skip", "roll_back"),
        "gradient spike": ("go", "skip", "skip"),
        "embedding gradient spike": ("go", "skip", "skip"),
        "not finite": ("skip", "skip", "skip"),
        "loss scale": ("go", "go", "roll_back"),
    }[expected]
    for policy, action in zip(POLICIES, actions, strict=True):
        verdict = settled(policy).look(spike(**changes))
        assert (kind(verdict), verdict.action) == (expected, action)
        assert verdict.event is not None and verdict.event.step == 61


def test_an_event_says_its_figures() -> None:
    event = settled().look(spike(loss=6.0)).event
    assert event is not None and event.usual is not None
    assert event.value == 6.0 and event.usual == pytest.approx(3, abs=0.05)
    assert event.text == f"the loss is 6, {6 / event.usual:.3g} times its usual {event.usual:.4g}"


def test_a_large_factor_within_the_noise_is_no_spike() -> None:
    watch = Watch(SETTINGS)
    noisy = [replace(seen, loss=2.0 + (step % 3)) for step, seen in enumerate(ordinary(40))]
    assert all(verdict.event is None for verdict in look(watch, noisy))
    assert watch.look(spike(loss=4.5)).event is None


def test_nothing_but_what_is_not_finite_counts_at_the_beginning() -> None:
    watch = Watch(SETTINGS)
    wild = [Seen(step, 10.0 * 4**step, 10.0 * 20**step, 1.0 * 30**step) for step in range(5)]
    assert all(verdict.event is None for verdict in look(watch, wild))
    assert kind(Watch(SETTINGS).look(Seen(0, math.nan, 1.0))) == "not finite"


def test_an_overflow_of_float16_is_normal_and_leaves_no_trace_in_the_norms() -> None:
    watch, other = settled("skip"), settled("skip")
    for step in range(61, 69):
        seen = spike(step, gradient_norm=math.inf, embedding_gradient_norm=math.nan)
        overflow = replace(seen, overflow=True, loss_scale=2.0 ** (80 - step))
        assert watch.look(overflow) == Verdict(None, "skip")
    assert watch.state()["gradient"] == other.state()["gradient"]
    json.dumps(watch.state(), allow_nan=False)


def test_a_loss_spike_is_seen_beside_an_overflow() -> None:
    verdict = settled().look(spike(loss=9.0, overflow=True, gradient_norm=math.inf))
    assert (kind(verdict), verdict.action) == ("loss spike", "skip")


def test_the_loss_scale_is_told_once_and_ends_a_run_that_only_overflows() -> None:
    watch = settled("log", most=4)
    overflow = {"overflow": True, "gradient_norm": math.inf, "embedding_gradient_norm": math.inf}
    scales = [2.0, 1.0, 0.5, 0.25, 0.125, 0.0625]
    verdicts = [watch.look(spike(61 + n, loss_scale=scale, **overflow)) for n, scale in enumerate(scales)]  # type: ignore[arg-type]
    assert [kind(verdict) for verdict in verdicts] == [None, None, "loss scale", None, None, "loss scale"]
    assert [verdict.action for verdict in verdicts] == ["skip"] * 5 + ["stop"]


def test_a_loss_scale_that_recovers_may_fall_again() -> None:
    watch = settled()
    found = [
        kind(watch.look(spike(61 + n, loss_scale=scale))) for n, scale in enumerate([0.5, 0.5, 2.0, 0.5])
    ]
    assert found == ["loss scale", None, None, "loss scale"]


@pytest.mark.parametrize("policy", POLICIES)
def test_spikes_do_not_poison_the_figures(policy: str) -> None:
    """Every fifth step is a spike: the last is noticed as the first."""
    watch = settled(policy)
    for step in range(61, 161):
        if step % 5 == 0:
            assert kind(watch.look(spike(step, loss=6.0))) == "loss spike", step
        else:
            assert watch.look(spike(step)).event is None, step


def test_skipped_steps_leave_no_trace_in_the_figures() -> None:
    watch, other = settled("skip"), settled("skip")
    look(watch, (spike(step, loss=6.0, gradient_norm=50.0) for step in range(61, 66)))
    assert watch.state() == {**other.state(), "not_taken": 5}


def test_skipping_in_a_row_ends_the_run_with_a_remedy() -> None:
    watch = settled("skip", most=3)
    verdicts = look(watch, (spike(step, loss=6.0) for step in (61, 62, 63)))
    assert [verdict.action for verdict in verdicts] == ["skip", "skip", "stop"]
    assert verdicts[-1].event is not None and verdicts[-1].event.kind == "loss spike"
    assert "3 steps in a row" in verdicts[-1].event.text and "--watch.policy log" in verdicts[-1].event.text


def test_a_good_step_ends_the_row() -> None:
    watch = settled("skip", most=3)
    losses = [6.0, 6.0, 3.0, 6.0, 6.0, 3.0]
    actions = [watch.look(spike(61 + n, loss=loss)).action for n, loss in enumerate(losses)]
    assert actions == ["skip", "skip", "go", "skip", "skip", "go"]


def test_a_new_level_is_accepted_where_spikes_are_only_logged() -> None:
    watch = settled("log")
    found = [kind(watch.look(spike(step, loss=6.0))) for step in range(61, 121)]
    assert found[0] == "loss spike" and found[-20:] == [None] * 20


@pytest.mark.parametrize(("policy", "action"), [("log", "go"), ("skip", "go"), ("roll_back", "roll_back")])
def test_a_slow_rise_is_noticed_though_no_step_is_a_spike(policy: str, action: str) -> None:
    watch = settled(policy)
    rising = (replace(seen, loss=seen.loss * 1.002**n) for n, seen in enumerate(ordinary(200, 61)))
    events = [verdict for verdict in look(watch, rising) if verdict.event is not None]
    assert [kind(verdict) for verdict in events] == ["slow rise"] * len(events)
    assert 1 <= len(events) <= 2 and all(verdict.action == action for verdict in events)


def test_a_slow_rise_is_noticed_over_restarts() -> None:
    """A run that is restarted at every step has the same lowest median behind it."""
    whole, watch = settled(), settled()
    steps = [replace(seen, loss=seen.loss * 1.002**n) for n, seen in enumerate(ordinary(200, 61))]
    expected = look(whole, steps)
    found = []
    for seen in steps:
        state, watch = json.loads(json.dumps(watch.state())), Watch(SETTINGS)
        watch.restore(state)
        found.append(watch.look(seen))
    assert found == expected and "slow rise" in [kind(verdict) for verdict in found]


def test_gradients_that_stay_bad_lead_back_and_then_to_the_end() -> None:
    watch = settled("roll_back", most=3)
    verdicts = look(watch, (spike(step, gradient_norm=math.nan) for step in range(61, 65)))
    assert [verdict.action for verdict in verdicts] == ["skip", "skip", "roll_back", "stop"]
    assert verdicts[-1].event is not None and "no checkpoint" in verdicts[-1].event.text


def test_a_return_has_the_figures_of_then_and_counts() -> None:
    watch = settled("roll_back", most=3)
    state = json.loads(json.dumps(watch.state()))
    for count in (1, 2, 3):
        look(watch, ordinary(10, 61, loss=2.8))
        assert watch.look(spike(71, loss=6.0)).action == "roll_back"
        ended = watch.returned(60, state)
        assert watch.state() == {**state, "returns": {"60": count}}
        assert (ended is not None) == (count == 3)
    assert ended is not None and "step 60 3 times" in ended
    assert watch.returned(80, state) is None, "another checkpoint has a count of its own"


NUMBERS = st.one_of(
    st.floats(0, 10), st.sampled_from([math.nan, math.inf, 1e9]), st.floats(2.9, 3.1), st.floats(2.9, 3.1)
)
STEPS = st.lists(
    st.builds(
        Seen,
        step=st.integers(0, 1000),
        loss=NUMBERS,
        gradient_norm=NUMBERS,
        embedding_gradient_norm=st.none() | NUMBERS,
        loss_scale=st.none() | st.sampled_from([0.25, 0.5, 1.0, 2.0, 65536.0]),
        overflow=st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=80)
@given(STEPS, st.sampled_from(POLICIES), st.integers(0, 30))
def test_a_restored_watcher_says_the_same(steps: list[Seen], policy: str, at: int) -> None:
    chosen = WatchSettings(policy=policy, window=8, warmup=3, most=4, rise_factor=1.05)  # type: ignore[arg-type]
    whole, first, second = Watch(chosen), Watch(chosen), Watch(chosen)
    expected = look(whole, steps)
    found = look(first, steps[:at])
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    found += look(second, steps[at:])
    assert repr(found) == repr(expected)  # repr: nan is not equal to itself
    assert second.state() == whole.state()


@settings(deadline=None, max_examples=80)
@given(STEPS, st.sampled_from(POLICIES))
def test_what_is_not_finite_is_never_taken(steps: list[Seen], policy: str) -> None:
    watch = Watch(WatchSettings(policy=policy, window=8, warmup=3))  # type: ignore[arg-type]
    for seen, verdict in zip(steps, look(watch, steps), strict=True):
        numbers = (seen.loss, seen.gradient_norm, seen.embedding_gradient_norm or 0.0)
        if seen.overflow or not all(map(math.isfinite, numbers)):
            assert verdict.action != "go"


def test_a_shorter_window_after_a_restart_takes_the_newest() -> None:
    watch, shorter = settled(), Watch(replace(SETTINGS, window=10))
    shorter.restore(watch.state())
    assert shorter.state()["loss"] == watch.state()["loss"][-10:]


@pytest.mark.parametrize(
    "changes",
    [{"loss_factor": 1.0}, {"warmup": 1}, {"warmup": 200}, {"most": 0}, {"back": 0}, {"lr_factor": 1.5}],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(DaybreakError, match=f"watch.{next(iter(changes))} is"):
        WatchSettings(**changes)  # type: ignore[arg-type]
