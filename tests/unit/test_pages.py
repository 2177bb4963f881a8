"""Pages of keys and values: who finds which, which go first, how many a text needs, what stands in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daybreak.engine.engine import Engine
from daybreak.engine.paged_cache import PagedCache
from daybreak.engine.pages import PAGE, PageLayout, Pages, PageTable, keys_of
from tests.unit.test_engine import model_of, outcome, text, tokens_of
from tests.unit.test_step import STEPS, VARIED, Reader, decoder_of, texts_of


def pages_of(windows: tuple[int | None, ...], count: int) -> Pages:
    """Room for so many pages."""
    layout = PageLayout("float32", windows, tuple(range(len(windows))), 1, 4)
    return Pages(layout, count * layout.page_bytes(0))


def left(pages: Pages, keys: list[bytes]) -> PageTable:
    """A text of these blocks that was read."""
    table = PageTable(pages)
    assert table.reach(len(keys) * PAGE)
    for block, key in zip(table.blocks, keys, strict=True):
        pages.know(block, key)
    return table


def test_a_block_is_known_with_all_that_comes_before_it() -> None:
    model = model_of("gpt2")
    one, two, other, end = (tokens_of(n, PAGE) for n in range(4))
    engine = Engine(model)
    outcome(engine, [text([*one, *two, 1]), text([*other, *end, 1])])
    prompt = [*other, *two, *end, 5]
    assert outcome(engine, [text(prompt, logprobs=0)]) == outcome(Engine(model), [text(prompt, logprobs=0)])


def test_a_start_is_known_as_far_as_windows_still_see() -> None:
    pages, keys = pages_of((None, 20), 6), keys_of(tokens_of(1, 48))
    table = left(pages, keys)
    table.forget(48)  # places from 29 on are seen
    assert pages.new() is None  # there is no room, but the first block's page behind the window was given up
    assert pages.find(keys) == table.blocks
    assert pages.find(keys[:2]) == pages.find(keys[:1]) == []


def test_what_was_left_first_is_given_up_first() -> None:
    pages = pages_of((None,), 4)
    for number in range(4):
        left(pages, [bytes([number])]).release()
    for number in range(4):
        assert [bool(pages.find([bytes([n])])) for n in range(4)] == [n >= number for n in range(4)]
        assert pages.new() is not None
    assert pages.new() is None


def test_of_a_text_the_end_is_given_up_first() -> None:
    """Starts are what others have in common."""
    pages, keys = pages_of((None,), 4), keys_of(tokens_of(1, 64))
    left(pages, keys).release()
    for number in range(3, -1, -1):
        assert pages.new() is not None
        assert len(pages.find(keys)) == number


def test_what_was_given_up_and_read_again_is_known_again() -> None:
    pages, keys = pages_of((None,), 2), keys_of(tokens_of(1, 32))
    left(pages, keys).release()
    other = left(pages, keys_of(tokens_of(2, 32)))
    assert not pages.find(keys)
    other.release()
    again = left(pages, keys)
    assert pages.find(keys) == again.blocks


def test_where_pages_of_one_kind_are_out_those_of_others_stay() -> None:
    pages, keys = pages_of((None, 20), 100), keys_of(tokens_of(1, 48))
    pages.pools[0]._count = 3
    table = left(pages, keys)
    first = table.blocks[0]
    table.forget(48)  # the first block's page of the layers with a window is the one that was left first
    table.release()
    assert pages.new() is not None
    assert pages.find(keys[:1]) == [first]


def test_half_a_block_is_none() -> None:
    pages = pages_of((None, 20), 3)
    assert pages.new() is not None
    used = pages.used
    assert pages.new() is None and pages.used == used


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 70)), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
)
def test_no_text_needs_more_than_is_told(windows: list[int | None], parts: list[int]) -> None:
    pages = pages_of(tuple(windows), 1000)
    table, most, read = PageTable(pages), 0, 0
    for part in parts:
        assert table.reach(read + part)
        read += part
        most = max(most, pages.used)
        table.forget(read)
    assert most <= pages.layout.bytes_for(read, max(parts))


def kept(reader: Reader, length: int, part: int) -> Tensor:
    """Keys (0) or values (1) of the first layer, [length, key heads, head_width]."""
    table = reader.tables[0]
    numbers, scales = PagedCache(reader.pages, [table], torch.tensor([length]), 1)._views(0, part)
    places = torch.arange(length)
    pages = torch.tensor(table.numbers(0))[places // PAGE]
    found = numbers[pages, places % PAGE].float()
    return found if scales is None else found * scales[pages, places % PAGE][..., None]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
def test_numbers_are_kept_as_the_nearest(kind: type[Any], stored: str) -> None:
    """Half a step away at most: of the last of 8 bits, or of 127 to the largest of a token and head."""
    for architecture in VARIED:
        decoder = decoder_of(architecture, 3)
        (one,) = texts_of(architecture, [30], 4)
        readers = [Reader(kind, decoder, how) for how in ("float32", stored)]
        for reader in readers:
            reader.read([(0, one, 0, 30)], forget=False)
        for part in (0, 1):
            exact, found = (kept(reader, 30, part) for reader in readers)
            top = exact.abs().amax(-1, keepdim=True)
            step = exact.abs() / 2**7 if stored == "bfloat16" else top / 127
            assert ((found - exact).abs() <= step * 0.5001 + 1e-7).all()
