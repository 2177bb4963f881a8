"""AWD-LSTM and its classifier: the equations, each dropout, pooling, long texts in windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak import families
from daybreak.errors import DaybreakError
from daybreak.families.recurrent import NO_DROPOUT, Dropouts, Lstm, count
from daybreak.model import awd_lstm
from daybreak.model.awd_classifier import AwdClassifier, concat_pool, initialise_head
from daybreak.model.awd_lstm import AwdLstm, detached, initialise_lstm, locked
from tests.reference import lstm as loops

SHAPE = Lstm(vocabulary=23, width=6, hidden=9, layers=3)


def model(shape: Lstm = SHAPE, seed: int = 1, **dropouts: float) -> AwdLstm:
    made = AwdLstm(shape, dataclasses.replace(NO_DROPOUT, **dropouts))
    loops.redrawn(made, seed)
    return made.eval()


def text(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, SHAPE.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def exact(made: AwdLstm, tokens: Tensor) -> Tensor:
    rows = loops.logits(dict(made.named_parameters()), made.shape.layers, tokens.tolist())
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_are_those_of_the_loops(layers: int) -> None:
    made = model(dataclasses.replace(SHAPE, layers=layers))
    tokens = text(2, 7)
    for row in range(2):
        theirs = exact(made, tokens[row])
        single, double = made.logits(tokens)[row], model_in_double(made, tokens)[row]
        assert (single - theirs).abs().max() <= 2e-6 * theirs.abs().max()
        assert (double - theirs).abs().max() <= 1e-13 * theirs.abs().max()


def model_in_double(made: AwdLstm, tokens: Tensor) -> Tensor:
    other = AwdLstm(made.shape).double().eval()
    other.load_state_dict(made.state_dict())
    return other.unembed(other(tokens).dropped)


def test_a_wrong_gate_would_be_noticed() -> None:
    """Gates in another order, the state's bias left out: the comparison above is not blind."""
    tokens = text(1, 5)
    made = model()
    right = exact(made, tokens[0])
    with torch.no_grad():
        swapped = made.layers[1].state_weight
        swapped.copy_(swapped.view(4, -1).flip(0).view_as(swapped))
    assert (made.logits(tokens)[0] - right).abs().max() > 1e-3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_state_carried_on_reads_as_at_once(parts: list[int], seed: int) -> None:
    made, tokens = model(), text(2, sum(parts), seed=seed)
    whole, state, found = made(tokens), None, []
    for part in torch.split(tokens, parts, dim=1):
        read = made(part, state)
        state = detached(read.state)
        found.append(read.raw)
    assert torch.allclose(torch.cat(found, 1), whole.raw, atol=1e-6)
    assert torch.allclose(state[-1][1], whole.state[-1][1], atol=1e-6)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_padding_anywhere_changes_nothing(mask: list[list[bool]]) -> None:
    made, tokens, kept = model(), text(len(mask), 5), torch.tensor(mask)
    found = made.logits(tokens, kept)
    for row in range(len(mask)):
        if kept[row].any():
            alone = made.logits(tokens[row, kept[row]][None])
            assert torch.allclose(found[row, kept[row]], alone[0], atol=1e-6)


# Dropouts


def test_the_locked_mask_is_the_same_at_every_token_and_another_for_each_text() -> None:
    torch.manual_seed(0)
    dropped = locked(torch.ones(3, 50, 200), 0.25)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert not torch.equal(dropped[0], dropped[1])
    assert 0.15 < (dropped[:, 0] == 0).float().mean() < 0.35
    assert locked(dropped, 0.0) is dropped


def test_words_are_dropped_as_rows_and_the_others_scaled() -> None:
    made = model(embedding=0.5)
    torch.manual_seed(1)
    tokens = torch.arange(SHAPE.vocabulary).repeat(2, 3)
    ratio = made.embed(tokens, 0.5) / made.tokens(tokens)
    assert torch.equal(ratio.round(decimals=4).unique(), torch.tensor([0.0, 2.0]))
    assert torch.equal(ratio[..., :1].expand_as(ratio).round(decimals=4), ratio.round(decimals=4))
    assert torch.equal(ratio[0, :23], ratio[1, 23:46]), "a word is there or not, wherever it occurs"


def test_weights_are_dropped_once_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made, drawn = model(weight=0.5).train(), []
    true: Callable[..., Tensor] = torch.lstm

    def watched(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        drawn.append(arguments[2][1])
        return true(*arguments)  # type: ignore[return-value]

    monkeypatch.setattr(awd_lstm.torch, "lstm", watched)
    made(text(2, 11))
    assert len(drawn) == 3, "one call of each layer, whatever the length"
    for layer, used in zip(made.layers, drawn, strict=True):
        ratio = (used / layer.state_weight).round(decimals=4)
        assert torch.equal(ratio.unique(), torch.tensor([0.0, 2.0]))
    made(text(2, 11))
    assert not torch.equal(drawn[0], drawn[3])


def test_the_weights_that_are_trained_are_the_whole_ones() -> None:
    """What DropConnect leaves out has no gradient in that step, and the parameter itself stays whole."""
    made = model(weight=0.5).train()
    before = made.layers[0].state_weight.detach().clone()
    torch.manual_seed(3)
    made(text(2, 8)).raw.sum().backward()
    gradient = made.layers[0].state_weight.grad
    assert gradient is not None
    assert torch.equal(made.layers[0].state_weight, before)
    assert 0.3 < (gradient == 0).float().mean() < 0.7


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Dropouts)])
def test_every_dropout_is_used_in_training_and_only_there(name: str) -> None:
    made, tokens = model(**{name: 0.5}), text(2, 9)
    plain = model()(tokens).dropped
    assert torch.equal(made(tokens).dropped, plain)
    made.train()
    assert not torch.allclose(made(tokens).dropped, plain)


def test_penalties() -> None:
    read = awd_lstm.Read(torch.tensor([[[1.0], [4.0], [2.0]]]), torch.tensor([[[2.0], [0.0], [1.0]]]), [])
    assert awd_lstm.activation_penalty(read, 2.0) == pytest.approx(2 * 5 / 3)
    assert awd_lstm.slowness_penalty(read, 0.5) == pytest.approx(0.5 * (9 + 4) / 2)
    assert awd_lstm.slowness_penalty(awd_lstm.Read(read.raw[:, :1], read.dropped, []), 1.0) == 0


@pytest.mark.parametrize("values", [{"input": 1.0}, {"weight": -0.1}, {"hidden": True}])
def test_dropouts_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(DaybreakError, match=f"dropout of {next(iter(values))}"):
        Dropouts(**values)


# The classifier


def classifier(window: int = 4, longest: int = 100, **dropouts: float) -> AwdClassifier:
    made = AwdClassifier(model(**dropouts), 3, inner=5, window=window, longest=longest)
    initialise_head(made.head)
    return made.eval()


@given(st.lists(st.integers(1, 11), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_pooling_is_that_of_the_loops_whatever_the_padding(
    lengths: list[int], window: int, longest: int
) -> None:
    made = classifier(window, longest)
    tokens = text(len(lengths), max(lengths) + 2)
    outputs, counted = made.outputs(tokens, torch.tensor(lengths))
    found = concat_pool(outputs, counted)
    weights = {name: one.double().tolist() for name, one in made.encoder.named_parameters()}
    for row, length in enumerate(lengths):
        theirs = loops.outputs(weights, 3, tokens[row, :length].tolist())[-longest:]
        assert torch.allclose(found[row].double(), torch.tensor(loops.pooled(theirs)).double(), atol=1e-5)


def test_a_batch_scores_as_its_texts_alone() -> None:
    made, lengths = classifier(), [3, 9, 1, 6]
    tokens = text(4, 9)
    found = made(tokens, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = made(tokens[row : row + 1, :length], torch.tensor([length]))
        assert torch.allclose(found[row], alone[0], atol=1e-5)


def test_gradients_reach_every_window_that_enters_the_pool() -> None:
    """Three windows of a text: words that occur in one window only have a gradient; with a shorter pool the
    first window's words have none."""
    for longest, reached in ((12, {1, 2, 3}), (8, {2, 3}), (4, {3})):
        made = classifier(4, longest)
        tokens = torch.tensor([[1] * 4 + [2] * 4 + [3] * 4])
        made(tokens, torch.tensor([12])).square().sum().backward()
        gradient = made.encoder.tokens.weight.grad
        assert gradient is not None
        assert {row for row in range(23) if gradient[row].abs().max() > 0} == reached


def test_groups_hold_every_parameter_that_is_trained() -> None:
    made = classifier()
    groups = made.groups()
    assert len(groups) == 5
    held = {id(parameter) for group in groups for parameter in group}
    every = {id(parameter) for parameter in made.parameters()}
    assert every - held == {id(made.encoder.head_bias)}, "of a language model alone"


# The page


@pytest.mark.parametrize("size", ["awd-lstm-1150", "awd-lstm-1152"])
def test_published_counts(size: str) -> None:
    page = families.recurrent("ulmfit")
    assert page is not None
    shape = page.shape(size)
    with torch.device("meta"):
        held = sum(parameter.numel() for parameter in AwdLstm(shape).parameters())
    assert held == page.sizes[size].parameters == sum(count(shape).values())
    assert count(shape)["recurrent"] == {"awd-lstm-1150": 20_211_600, "awd-lstm-1152": 20_273_280}[size]
    assert page.read(page.write(shape)) == shape


def test_fresh_weights() -> None:
    made = AwdLstm(SHAPE)
    initialise_lstm(made, seed=4)
    assert made.tokens.weight.abs().max() <= 0.1 and made.head_bias.abs().max() == 0
    for layer in made.layers:
        assert 0.8 * layer.width**-0.5 < layer.state_weight.abs().max() <= layer.width**-0.5
    again = AwdLstm(SHAPE)
    initialise_lstm(again, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_what_makes_no_sense_is_refused() -> None:
    page = families.recurrent("ulmfit")
    assert page is not None
    with pytest.raises(DaybreakError, match="hidden is 0"):
        page.shape(hidden=0)
    with pytest.raises(DaybreakError, match=r"no field 'hiden' \(did you mean 'hidden'\?\)"):
        page.shape(hiden=3)
    with pytest.raises(DaybreakError, match="direction is 'left'"):
        page.shape(direction="left")
    with pytest.raises(DaybreakError, match="no size 'awd-lstm-1151'"):
        page.shape("awd-lstm-1151")
    with pytest.raises(DaybreakError, match=r"has no 'hidden'"):
        page.read({"vocabulary": 3, "width": 4})
