"""The start of designs with blanks, a tied head and trained positions."""

from __future__ import annotations

import pytest
import torch

import daybreak
from daybreak.architecture import Blanks
from daybreak.language_model import LanguageModel
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch, loss, token_losses
from daybreak.objectives.blank_infilling import BlankInfilling, Mixture
from daybreak.objectives.causal import Causal
from daybreak.quickstart.start import start
from daybreak.quickstart.task import numbers
from daybreak.quickstart.tied_start import TiedTables, count_targets, fit_tied, has_place

VOCABULARY, LENGTH, WIDTH = 60, 64, 192
BLANKS = Blanks(start=59, end=58, sentence=57, rest=56, mask=55)
ORDINARY = 50


def fresh(**changes: object) -> LanguageModel:
    sizes = {"vocabulary": VOCABULARY, "width": WIDTH, "layers": 2, "heads": 3, "context": LENGTH}
    return daybreak.create("glm", **(sizes | {"blanks": BLANKS} | changes))


def chain(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Every token has two that follow it, with shares 2/3 and 1/3."""
    random = torch.Generator().manual_seed(seed)
    text = [torch.randint(ORDINARY, (rows,), generator=random)]
    for _ in range(length - 1):
        step = (torch.rand(rows, generator=random) < 1 / 3).long()
        text.append((text[-1] * 3 + 7 * step) % ORDINARY)
    return torch.stack(text, 1)


@pytest.fixture(scope="module")
def tables() -> TiedTables:
    counts = count_targets([Causal(BLANKS).batch(chain(200, LENGTH + 1))], VOCABULARY)
    return fit_tied(counts, WIDTH, seed=0)


@pytest.fixture()
def decoder(tables: TiedTables) -> Decoder:
    found = fresh().decoder
    start(found, tables)
    return found


def test_targets_are_counted() -> None:
    counts = count_targets([Causal().batch(torch.tensor([[0, 1, 2, 1, 2]]))] * 2, 3)
    assert counts.tolist() == [[0, 2, 0], [0, 0, 4], [0, 2, 0]]


def test_the_first_prediction_is_as_good_as_pairs_can_be(decoder: Decoder) -> None:
    batch = Causal(BLANKS).batch(chain(8, LENGTH + 1, seed=1))
    found = token_losses(decoder, batch).view(8, -1)[:, 2:].mean().item()
    assert 0.6 < found < 0.9  # 0.64 is the entropy of two shares of 2/3 and 1/3
    assert loss(fresh().decoder, batch).item() > 3.5


def test_heads_look_one_place_back(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sight: object,
        scale: float,
        dropout: float,
    ) -> object:
        seen.append(query @ key.transpose(-1, -2) * scale)  # [batch, heads, length, length]
        return value

    monkeypatch.setattr("daybreak.model.attention.attend", spy)
    batch = BlankInfilling(BLANKS, Mixture(least=0.3)).batch(chain(1, LENGTH + 1), [0])
    decoder(batch.reading)
    assert batch.reading.blocks is not None and batch.reading.open_keys is not None
    scores = seen[0][0].masked_fill(~batch.reading.visible(None)[0], -1e9)
    context = int(batch.reading.open_keys.sum())
    for place in range(1, LENGTH):
        block = int(batch.reading.blocks[0, place])
        if place < context:
            assert int(scores[0, place, :context].argmax()) == place - 1
        if block > 1:
            assert int(scores[1, place].argmax()) == place - 1


@pytest.mark.parametrize("inside", [False, True])
def test_some_heads_copy_what_followed(inside: bool, tables: TiedTables) -> None:
    """Random tokens, and the same again in a piece: behind a context of them, or all in one piece."""
    decoder = fresh(context=2 * LENGTH).decoder
    start(decoder, tables)
    half = torch.stack([torch.randperm(ORDINARY)[: LENGTH // 2] for _ in range(32)])
    opening = torch.tensor([[BLANKS.rest, BLANKS.start]]).expand(32, 2)
    order = [opening, half, half] if inside else [half, opening, half]
    tokens = torch.cat(order, 1)
    targets = torch.full_like(tokens, -100)
    targets[:, -half.shape[1] : -1] = half[:, 1:]
    batch = Batch(decoder.reading(tokens), targets)
    copying = loss(decoder, batch).item()
    decoder.blocks[1].get_submodule("attention.out").weight.data.zero_()  # type: ignore[operator, union-attr]
    assert copying < loss(decoder, batch).item() - 0.5


def test_other_designs_have_no_place() -> None:
    assert has_place(fresh().architecture)
    assert not has_place(fresh(layers=1).architecture)
    assert not has_place(fresh(width=96).architecture)
    assert not has_place(daybreak.create("gpt2", vocabulary=60, width=192, layers=2, heads=3).architecture)


def test_training_goes_on_from_it(decoder: Decoder) -> None:
    objective = BlankInfilling(BLANKS, Mixture(spans=0.5, rest=0.5))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    losses = []
    for step in range(25):
        found = loss(decoder, objective.batch(chain(8, LENGTH + 1, seed=step), numbers(step, 8)))
        losses.append(found.item())
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
