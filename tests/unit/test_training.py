"""The parts of training: loss, schedule, loop, start, score."""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import daybreak
from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, Batch, loss, token_losses
from daybreak.objectives.causal import Causal
from daybreak.quickstart.loop import Point, train
from daybreak.quickstart.optimizers import Rates, optimizers, set_rates
from daybreak.quickstart.pairs import count_pairs, fit_pairs
from daybreak.quickstart.schedule import Seconds, Steps, linear
from daybreak.quickstart.score import bits_per_byte
from daybreak.quickstart.start import start, tables
from daybreak.train import compiled as compiling
from daybreak.train import precision
from daybreak.train.compiled import compiled
from daybreak.train.muon import Muon
from daybreak.train.precision import faster_dtype, in_dtype
from daybreak.train.stop import Stop, stop_on_signals

VOCABULARY, WIDTH, CONTEXT = 60, 24, 16


def decoder(family: str = "gpt_neox", **changes: object) -> Decoder:
    sizes = {"vocabulary": VOCABULARY, "width": WIDTH, "layers": 2, "heads": 2, "context": CONTEXT}
    if family == "gpt_neox":
        sizes["positions"] = daybreak.architecture.Rotary(6)  # type: ignore[assignment]
    return daybreak.create(family, **(sizes | changes)).decoder


def cycle(batch: int = 4, period: int = 7) -> Iterator[Batch]:
    """Text that repeats itself: easy to learn."""
    rows = [[(begin + place) % period for place in range(CONTEXT + 1)] for begin in range(batch)]
    return itertools.repeat(Causal().batch(torch.tensor(rows)))


def quiet(point: Point) -> None:
    del point


def run(model: Decoder, steps: int, rates: Rates | None = None) -> int:
    chosen = optimizers(model, rates or Rates())
    return train(model, loss, cycle(), Steps(steps), chosen, Stop(), quiet)


# Loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [5, 512])
def test_the_loss_in_parts_is_the_loss(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daybreak.objectives.batch.ROWS", rows)
    model = decoder()
    torch.nn.init.normal_(model.head.weight)
    batch = torch.randint(VOCABULARY, (3, CONTEXT + 1))
    logits = model.logits(batch[:, :-1])
    wanted = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    torch.testing.assert_close(loss(model, Causal().batch(batch)), wanted)


def test_what_is_not_to_be_scored_costs_nothing() -> None:
    tokens = torch.randint(VOCABULARY, (2, CONTEXT))
    targets = tokens.clone()
    targets[0, :5] = UNSCORED
    model = decoder()
    losses = token_losses(model, Batch(model.reading(tokens), targets)).view(2, CONTEXT)
    assert (losses[0, :5] == 0).all() and (losses[0, 5:] > 0).all() and (losses[1] > 0).all()


# Schedule ---------------------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls_to_nothing() -> None:
    rates = [linear(number / 1000) for number in range(1001)]
    top = rates.index(max(rates))
    assert 15 <= top <= 25 and max(rates) == pytest.approx(1, abs=1e-3)
    assert rates[0] > 0 and rates[-1] == 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_a_budget_of_seconds_is_used_up_by_time() -> None:
    budget = Seconds(10.0, started=time.perf_counter() - 5)
    assert budget.fraction(0) == pytest.approx(0.5, abs=0.05)
    assert budget.fraction(10**9) == pytest.approx(0.5, abs=0.05)


# Loop -------------------------------------------------------------------------------------------------------


def test_every_parameter_learns_and_belongs_to_one_optimizer() -> None:
    model = decoder()
    chosen = optimizers(model, Rates())
    held = [id(p) for optimizer in chosen for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    run(model, 5)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_rates_are_shares_of_the_highest() -> None:
    chosen = optimizers(decoder(), Rates(matrices=0.5, embeddings=0.25, head=0.2, vectors=0.125))
    for factor in (0.5, 1.0):
        set_rates(chosen, factor)
        found = [group["lr"] for optimizer in chosen for group in optimizer.param_groups]
        assert found == [0.5 * factor, 0.25 * factor, 0.2 * factor, 0.125 * factor]


def test_it_learns() -> None:
    model = decoder()
    before = loss(model, next(cycle())).item()
    assert run(model, 60) == 60
    assert before > 3
    assert loss(model, next(cycle())).item() < 0.5


def test_the_same_seed_gives_the_same_model() -> None:
    first, second = decoder(), decoder()
    run(first, 4)
    run(second, 4)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_points_say_where_training_stands() -> None:
    points: list[Point] = []
    model = decoder()
    train(model, loss, cycle(), Steps(25), optimizers(model, Rates()), Stop(), points.append)
    assert [point.step for point in points] == [10, 20]
    assert [point.tokens for point in points] == [10 * 4 * CONTEXT, 20 * 4 * CONTEXT]
    assert points[1].loss < points[0].loss
    assert points[0].seconds_left > 0 and points[0].tokens_per_second > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step(value: float) -> None:
    model = decoder()
    calls = itertools.count()

    def broken(model: Decoder, batch: Batch) -> Tensor:
        found = loss(model, batch)
        return found * value if next(calls) == 3 else found

    kept: dict[str, Tensor] = {}

    def batches() -> Iterator[Batch]:
        for batch in cycle():
            kept.update({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
            yield batch

    with pytest.raises(DaybreakError, match=r"loss is (nan|inf) at step 3.*lower the learning rate"):
        train(model, broken, batches(), Steps(9), optimizers(model, Rates()), Stop(), quiet)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[name]) and bool(parameter.isfinite().all())


def test_a_request_to_stop_ends_it_after_the_step() -> None:
    stop = Stop()

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(cycle()):
            stop.asked = number == 2
            yield batch

    model = decoder()
    assert train(model, loss, batches(), Steps(100), optimizers(model, Rates()), stop, quiet) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_once_and_handlers_come_back(number: signal.Signals) -> None:
    seen: list[int] = []
    before = signal.signal(number, lambda received, frame: seen.append(received))
    try:
        with stop_on_signals() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked and not seen
            os.kill(os.getpid(), number)
            assert seen == [number]
        os.kill(os.getpid(), number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[bool] = []

    def inside() -> None:
        with stop_on_signals() as stop:
            found.append(stop.asked)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]


def test_muon_orthogonalises_in_the_dtype_that_is_fast() -> None:
    """float32 gives the singular values that bfloat16 gives, but for its rounding."""
    for shape in ((24, 16), (16, 24)):
        weights = {dtype: torch.nn.Parameter(torch.zeros(shape)) for dtype in (torch.bfloat16, torch.float32)}
        for dtype, one in weights.items():
            one.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            Muon([one], dtype, lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
        low, exact = weights[torch.bfloat16].detach(), weights[torch.float32].detach()
        values = torch.linalg.svdvals(exact)
        assert values.min() > 0.6 and values.max() < 1.5
        assert 0 < (low - exact).abs().max() < 0.05


@pytest.mark.parametrize(("slower", "sizes"), [(100, [256]), (1.5, [256, 512, 1024])])
def test_slow_products_are_not_measured_at_length(
    slower: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor without bfloat16 may take seconds for what takes others a hundredth."""
    measured = []

    def seconds(size: int, dtype: torch.dtype) -> float:
        measured.append(size)
        return slower if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert precision.faster_dtype() == torch.float32
    assert sorted(set(measured)) == sizes


def test_bfloat16_products_leave_weights_and_loss_in_float32() -> None:
    model = decoder()
    torch.nn.init.normal_(model.head.weight)
    batch = next(cycle())
    low = in_dtype(loss, torch.bfloat16)(model, batch)
    assert faster_dtype() in (torch.bfloat16, torch.float32)
    assert low.dtype == torch.float32
    assert low.item() != loss(model, batch).item()
    torch.testing.assert_close(low, loss(model, batch), rtol=2e-2, atol=0)


# Compiling --------------------------------------------------------------------------------------------------


def test_without_a_compiler_it_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = compiled(loss, decoder(), next(cycle()))
    assert found.loss_of is loss
    assert found.problem is not None and "no C++ compiler" in found.problem


def test_a_compiler_that_fails_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **settings: object) -> None:
        raise RuntimeError("Python.h: no such file\nmore")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", broken)
    model = decoder()
    found = compiled(loss, model, next(cycle()))
    assert found.loss_of is loss
    assert found.problem == "compiling failed (RuntimeError: Python.h: no such file)"


def test_the_warm_up_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    monkeypatch.setattr(compiling, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", lambda loss_of, dynamic: loss_of)
    model = decoder()
    before = [parameter.clone() for parameter in model.parameters()]
    assert compiled(loss, model, next(cycle())).problem is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))


# Start ------------------------------------------------------------------------------------------------------


def documents(count: int = 20, length: int = 80) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """A chain: every token has three that follow it, with shares 1/2, 1/3, 1/6."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = [0]
        for _ in range(length):
            ids.append((ids[-1] * 3 + random.choice(3, p=[1 / 2, 1 / 3, 1 / 6])) % VOCABULARY)
        found.append(np.array(ids, dtype=np.int32))
    return found


def test_pairs_are_counted() -> None:
    counts = count_pairs([np.array([0, 1, 2, 1, 2], dtype=np.int32), np.array([2], dtype=np.int32)], 3)
    assert counts.tolist() == [[0, 1, 0], [0, 0, 2], [0, 1, 0]]


def test_the_tables_predict_as_well_as_pairs_can() -> None:
    text = documents()
    model = decoder()
    start(model, tables(model, text, seed=0))
    counts = count_pairs(text, VOCABULARY)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -(counts * shares.clamp(min=1e-9).log()).sum() / counts.sum()
    losses = [
        loss(model, Causal().batch(torch.from_numpy(ids[None].astype(np.int64)))).item() for ids in text
    ]
    assert float(entropy) < np.mean(losses) < float(entropy) + 0.1


def test_more_iterations_predict_better() -> None:
    counts = count_pairs(documents(), VOCABULARY)

    def loss(iterations: int) -> float:
        found = fit_pairs(counts, WIDTH, free=4, seed=3, iterations=iterations)
        assert not any(table[..., -4:].any() for table in (found.embedding, found.head, found.bias))
        logits = (functional.layer_norm(found.embedding, (WIDTH,)) + found.bias) @ found.head.T
        return float(-(counts * logits.log_softmax(-1)).sum() / counts.sum())

    assert loss(50) < loss(25) < loss(0) < math.log(VOCABULARY)


@pytest.mark.parametrize("distance", [1, 2])
def test_the_first_heads_look_back(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(width=128, positions=daybreak.architecture.Rotary(32))
    start(model, None)
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(query: Tensor, key: Tensor, value: Tensor, sight: object, scale: float, dropout: float) -> Tensor:
        seen.append((query, key))
        return value

    monkeypatch.setattr("daybreak.model.attention.attend", spy)
    model.logits(torch.randint(VOCABULARY, (1, CONTEXT)))
    query, key = (part[0, distance - 1] for part in seen[0])  # [length, head_width]
    scores = query @ key.T
    for place in range(4, CONTEXT):
        assert int(scores[place, : place + 1].argmax()) == place - distance


def test_some_heads_copy_what_followed_the_last_time() -> None:
    """Random tokens, and the same again: nothing but copying can help with the second half."""
    model = decoder(width=128, positions=daybreak.architecture.Rotary(32), context=2 * CONTEXT)
    half = torch.stack([torch.randperm(VOCABULARY)[:CONTEXT] for _ in range(64)])
    batch = torch.cat([half, half], dim=1)
    text = [np.random.default_rng(n).integers(0, VOCABULARY, 500).astype(np.int32) for n in range(20)]

    def loss_by_half() -> list[float]:
        losses = token_losses(model, Causal().batch(batch)).view(64, -1)
        return [losses[:, : CONTEXT - 1].mean().item(), losses[:, CONTEXT:].mean().item()]

    start(model, tables(model, text, seed=0))
    first, second = loss_by_half()
    assert second < first - 0.5
    model.blocks[1].get_submodule("attention.out").weight.data.zero_()
    first, second = loss_by_half()
    assert abs(second - first) < 0.1


@pytest.mark.parametrize("family", ["gpt", "gpt2", "gpt_j", "bloom"])
def test_other_designs_start_as_far_as_they_have_a_place(family: str) -> None:
    changes = {"positions": daybreak.architecture.Rotary(6, "neighbours")} if family == "gpt_j" else {}
    model = decoder(family, **changes)
    start(model, tables(model, documents(), seed=0))
    batch = next(cycle())
    assert math.isfinite(loss(model, batch).item())
    assert not model.blocks[0].get_submodule("mlp.down").weight.any()  # type: ignore[operator]


# Score ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 16), (7, 3), (1, 1)])
def test_bits_per_byte_is_the_slow_sum(context: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daybreak.quickstart.score.ROOM", 3 * context)
    model = decoder()
    torch.nn.init.normal_(model.head.weight)
    texts = [np.random.default_rng(n).integers(0, VOCABULARY, n).astype(np.int32) for n in (1, 2, 17, 33)]
    total = 0.0
    for ids in texts:
        first = 1
        while first < len(ids):
            end = min(len(ids), first + (context if first == 1 else stride))
            begin = max(0, end - 1 - context)
            logits = model.logits(torch.from_numpy(ids[None, begin : end - 1].astype(np.int64)))[0]
            for token in range(first, end):
                total -= logits[token - 1 - begin].log_softmax(-1)[ids[token]].item()
            first = end
    done: list[tuple[int, int]] = []
    found = bits_per_byte(model, texts, 100, context, stride, lambda *pair: done.append(pair))
    assert found == pytest.approx(total / math.log(2) / 100, rel=1e-5)
    assert done[-1][0] == done[-1][1] == max(done)[0]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("context", "stride"), [(16, 8), (7, 3)])
def test_bits_per_byte_with_blanks_is_the_slow_sum(both: bool, context: int, stride: int) -> None:
    """Every window fits the table of positions, and what fills up a short one is not read."""
    blanks = Blanks(start=59, end=58, mask=57, rest=56, sentence=55)
    model = decoder("glm", blanks=blanks, context=context)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    texts = [np.random.default_rng(n).integers(0, 50, n).astype(np.int32) for n in (1, 2, 9, 17, 33)]
    reads = context - 1

    def prompt(beginning: Sequence[int]) -> list[int]:
        if both:
            return [*beginning, blanks.rest, blanks.start]
        return [blanks.rest, blanks.start, *beginning]

    total = 0.0
    for ids in texts:
        first = 1
        while first < len(ids):
            end = min(len(ids), first + (reads if first == 1 else stride))
            begin = max(0, end - 1 - reads)
            before = prompt(ids[begin:first].tolist())
            logits = model.logits(torch.tensor([[*before, *ids[first : end - 1].tolist()]]))[0]
            for token in range(first, end):
                total -= logits[len(before) - 1 + token - first].log_softmax(-1)[ids[token]].item()
            first = end
    found = bits_per_byte(model, texts, 100, reads, stride, None, prompt)
    assert found == pytest.approx(total / math.log(2) / 100, rel=1e-5)
