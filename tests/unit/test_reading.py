"""Padding, packing and caching never change what a text's tokens see: properties over random arrangements."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak.architecture import Alibi, Architecture, Learned, Positions, Rotary
from daybreak.compare.reference import redraw
from daybreak.errors import DaybreakError
from daybreak.model.cache import Cache
from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading

KINDS: list[Positions] = [Learned(2), Rotary(4, "halves"), Rotary(4, "neighbours"), Alibi()]
FEW = settings(max_examples=30, deadline=None)


@cache
def decoder(kind: int, window: int | None) -> Decoder:
    shape = Architecture(
        vocabulary=31,
        context=24,
        layers=2,
        width=24,
        heads=3,
        inner=20,
        positions=KINDS[kind],
        windows=(None, window),
    )
    model = Decoder(shape).eval()
    redraw(model, seed=kind)
    return model


def read(model: Decoder, text: list[int]) -> Tensor:
    return model.logits(torch.tensor([text]))[0]


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


kinds = st.integers(0, len(KINDS) - 1)
windows = st.sampled_from([None, 1, 3])
texts = st.lists(st.integers(0, 30), min_size=1, max_size=12)


@FEW
@given(kinds, windows, texts, st.data())
@torch.no_grad()
def test_padding_anywhere_changes_nothing(
    kind: int, window: int | None, text: list[int], data: st.DataObject
) -> None:
    model = decoder(kind, window)
    length = data.draw(st.integers(len(text), len(text) + 6))
    places = sorted(data.draw(st.permutations(range(length)))[: len(text)])
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, places] = True
    tokens = torch.randint(0, 31, (1, length))
    tokens[mask] = torch.tensor(text)
    close(model.logits(tokens, mask)[mask], read(model, text))


@FEW
@given(kinds, windows, st.lists(texts, min_size=1, max_size=4), st.integers(0, 3))
@torch.no_grad()
def test_packed_texts_do_not_see_each_other(
    kind: int, window: int | None, several: list[list[int]], spare: int
) -> None:
    model = decoder(kind, window)
    row = torch.tensor([[token for text in several for token in text] + [0] * spare])
    logits = model.logits(row, lengths=[[len(text) for text in several]])[0]
    begin = 0
    for text in several:
        close(logits[begin : begin + len(text)], read(model, text))
        begin += len(text)


@FEW
@given(kinds, windows, st.lists(texts, min_size=1, max_size=3), st.data())
@torch.no_grad()
def test_a_cached_padded_batch_equals_single_passes(
    kind: int, window: int | None, several: list[list[int]], data: st.DataObject
) -> None:
    """Rows padded on any side, read in random chunks: the padding of an earlier chunk stays hidden in later
    ones.
    """
    model = decoder(kind, window)
    longest = max(map(len, several))
    sides = [data.draw(st.booleans()) for _ in several]
    mask = torch.zeros(len(several), longest, dtype=torch.bool)
    tokens = torch.zeros(len(several), longest, dtype=torch.int64)
    for row, (text, left) in enumerate(zip(several, sides, strict=True)):
        span = slice(longest - len(text), None) if left else slice(0, len(text))
        mask[row, span] = True
        tokens[row, span] = torch.tensor(text)
    cuts = sorted({0, longest, *data.draw(st.lists(st.integers(0, longest), max_size=4))})
    store = Cache(model.architecture, len(several), capacity=2)
    parts = [model.logits(tokens[:, a:b], mask[:, a:b], cache=store) for a, b in itertools.pairwise(cuts)]
    logits = torch.cat(parts, dim=1)
    for row, text in enumerate(several):
        close(logits[row, mask[row]], read(model, text))


@FEW
@given(kinds, windows, texts, st.data())
def test_no_token_sees_a_later_one(
    kind: int, window: int | None, text: list[int], data: st.DataObject
) -> None:
    """The gradient proves it: a logit does not depend on the embedding of a later token, nor of one out of
    sight.
    """
    model = decoder(kind, window)
    place = data.draw(st.integers(0, len(text) - 1))
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hook = model.tokens.register_forward_hook(keep)
    model.logits(torch.tensor([text]))[0, place].sum().backward()
    hook.remove()
    reach = seen[0].grad[0].abs().sum(-1) > 0  # type: ignore[index]
    assert not bool(reach[place + 1 :].any())
    assert bool(reach[place])


@torch.no_grad()
def test_a_window_ends_where_it_says() -> None:
    """One layer, window 3: token 5 sees 3, 4 and 5 and no other."""
    shape = Architecture(vocabulary=31, context=24, layers=1, width=24, heads=3, inner=20, windows=(3,))
    model = Decoder(shape).eval()
    redraw(model, seed=5)
    text = [4, 8, 15, 16, 23, 30]
    right = read(model, text)[5]
    for place in range(5):
        other = [*text[:place], (text[place] + 7) % 31, *text[place + 1 :]]
        changed = float((read(model, other)[5] - right).abs().max()) > 1e-4
        assert changed == (place >= 3)


def test_the_fused_path_is_taken_where_nothing_needs_a_mask() -> None:
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    right_padded = torch.arange(9)[None] < torch.tensor([[9], [4]])
    assert Reading.of(tokens).is_plain_causal(None)
    assert Reading.of(tokens).is_plain_causal(9)
    assert not Reading.of(tokens).is_plain_causal(8)
    assert Reading.of(tokens, right_padded).is_plain_causal(None)
    assert Reading.of(tokens, torch.ones_like(tokens)).is_plain_causal(None)
    assert not Reading.of(tokens, right_padded.flip(1)).is_plain_causal(None)
    assert not Reading.of(tokens, lengths=[[4, 5], [9]]).is_plain_causal(None)


def test_a_cache_forgets_nothing_when_rows_are_selected() -> None:
    model = decoder(1, None)
    tokens = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6]])
    store = Cache(model.architecture, 2, capacity=2)
    with torch.no_grad():
        model.logits(tokens[:, :3], cache=store)
        store.select(torch.tensor([1, 1, 0]))
        logits = model.logits(tokens[[1, 1, 0], 3:], cache=store)
        for row, text in zip(logits[:, 0], (tokens[1], tokens[1], tokens[0]), strict=True):
            close(row, read(model, text.tolist())[-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": torch.zeros(4, dtype=torch.int64)}, "shape [batch, length]"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"tokens": torch.zeros(1, 4)}, "whole numbers"),
        ({"mask": torch.ones(2, 3)}, "the mask has shape [2, 3]"),
        ({"mask": torch.tensor([[0.0, 0.0, -1e9, -1e9], [0.0] * 4])}, "other values than 0 and 1"),
        ({"mask": torch.tensor([[1, 1, 2, 2], [1, 1, 1, 1]])}, "packed texts by their lengths"),
        ({"lengths": [[4]]}, "given for 1 rows"),
        ({"lengths": [[4], [2, 3]]}, "do not fit a row of 4"),
        ({"lengths": [[4], [0, 2]]}, "do not fit"),
        ({"lengths": [[4], [4]], "mask": torch.ones(2, 4)}, "neither a mask nor a cache"),
        ({"cache": Cache(Architecture(layers=1, width=8, heads=1), 3)}, "the cache holds 3 texts"),
    ],
)
def test_what_does_not_fit_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DaybreakError) as error:
        Reading.of(**{"tokens": torch.zeros(2, 4, dtype=torch.int64), **arguments})  # type: ignore[arg-type]
    assert message in str(error.value)


def test_a_reading_that_does_not_continue_the_cache_is_refused() -> None:
    model = decoder(1, None)
    tokens = torch.tensor([[1, 2, 3, 4]])
    store = Cache(model.architecture, 1)
    with torch.no_grad():
        model.logits(tokens, cache=store)
        with pytest.raises(DaybreakError, match="the cache holds 4 tokens"):
            model(Reading.of(tokens), store)
        with pytest.raises(DaybreakError, match="packed"):
            model(Reading.of(tokens, lengths=[[2, 2]]), Cache(model.architecture, 1))


def test_a_text_beyond_the_position_table_is_named() -> None:
    model = decoder(0, None)
    with pytest.raises(DaybreakError, match=r"25 tokens.*ends at 24"):
        model.logits(torch.zeros(1, 25, dtype=torch.int64))
    padded = torch.arange(30)[None] >= 10  # 20 real tokens in a row of 30: nothing is too long
    model.logits(torch.zeros(1, 30, dtype=torch.int64), padded)
