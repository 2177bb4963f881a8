"""Texts with blanks: the layout against loops over single tokens, and what each token may see."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.architecture import Architecture, Blanks, Learned, Positions, Rotary
from daybreak.compare.reference import redraw
from daybreak.errors import DaybreakError
from daybreak.model.blanks import lay_out
from daybreak.model.cache import Cache
from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading
from tests.unit.test_reading import close, read

START, END, MASK, SENTENCE, REST = 1, 2, 3, 4, 5
FEW = settings(max_examples=40, deadline=None)
KINDS: list[tuple[Positions, bool]] = [
    (Learned(blocks=True), False),
    (Rotary(6, "halves"), True),
    (Rotary(4, "halves", blocks=True, half_frequencies=True), False),
]


def blanks(runs_on: bool = False) -> Blanks:
    return Blanks(START, END, MASK, REST, SENTENCE, runs_on)


def slow_layout(text: list[int], runs_on: bool) -> tuple[list[int], list[int], list[bool]]:
    """Token by token, from the rule's words."""
    context = text[: text.index(START)] if START in text else text
    if REST in context:
        marks = [context.index(REST)]
    else:
        marks = [place for place, token in enumerate(context) if token in (MASK, SENTENCE)]
    positions, block, piece, inside = [], [], 0, 0
    for place, token in enumerate(text):
        if token == START and piece < len(marks):
            piece, inside = piece + 1, 0
        inside += 1
        if piece == 0:
            positions.append(place)
            block.append(0)
        else:
            positions.append(place if runs_on and REST in context else marks[piece - 1])
            block.append(inside)
    return positions, block, [place < len(context) for place in range(len(text))]


plain = st.integers(6, 30)


@st.composite
def contexts(draw: st.DrawFn) -> list[int]:
    """At least one blank, anywhere."""
    text: list[int] = draw(st.lists(plain | st.sampled_from([MASK, SENTENCE, REST, END]), max_size=7))
    place = draw(st.integers(0, len(text)))
    return [*text[:place], draw(st.sampled_from([MASK, SENTENCE, REST])), *text[place:]]


pieces = st.lists(plain, max_size=4).map(lambda tokens: [START, *tokens])
texts = st.builds(
    lambda context, parts: [*context, *(token for part in parts for token in part)],
    contexts(),
    st.lists(pieces, max_size=3),
)


@given(texts, st.booleans())
def test_the_layout_is_what_the_rule_says(text: list[int], runs_on: bool) -> None:
    found = lay_out(torch.tensor([text]), None, blanks(runs_on))
    positions, block, context = slow_layout(text, runs_on)
    assert found.positions[0].tolist() == positions
    assert found.blocks[0].tolist() == block
    assert found.context[0].tolist() == context


def test_the_figure_of_the_paper() -> None:
    """x1 x2 [M] x4 [M] with spans (x5 x6) and (x3): figure 2 of the paper, its pieces in order."""
    x1, x2, x3, x4, x5, x6 = range(11, 17)
    text = [x1, x2, MASK, x4, MASK, START, x3, START, x5, x6]
    found = lay_out(torch.tensor([text]), None, blanks())
    assert [1 + p for p in found.positions[0].tolist()] == [
        1,
        2,
        3,
        4,
        5,
        3,
        3,
        5,
        5,
        5,
    ]  # counted from 1 there
    assert found.blocks[0].tolist() == [0, 0, 0, 0, 0, 1, 2, 1, 2, 3]


def test_a_piece_without_a_blank_is_refused() -> None:
    with pytest.raises(DaybreakError, match="no blank before it"):
        lay_out(torch.tensor([[7, 8, START, 9]]), None, blanks())


@cache
def decoder(kind: int) -> Decoder:
    positions, runs_on = KINDS[kind]
    shape = Architecture(
        vocabulary=31,
        context=32,
        layers=2,
        width=24,
        heads=3,
        inner=20,
        positions=positions,
        residual="normed",
        blanks=blanks(runs_on),
    )
    model = Decoder(shape).eval()
    redraw(model, seed=kind)
    return model


kinds = st.integers(0, len(KINDS) - 1)


@FEW
@given(kinds, texts, st.data())
@torch.no_grad()
def test_padding_anywhere_changes_nothing(kind: int, text: list[int], data: st.DataObject) -> None:
    """Padding may hold any token, a start or a mask among them."""
    model = decoder(kind)
    length = data.draw(st.integers(len(text), len(text) + 6))
    places = sorted(data.draw(st.permutations(range(length)))[: len(text)])
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, places] = True
    tokens = torch.randint(0, 31, (1, length))
    tokens[mask] = torch.tensor(text)
    close(model.logits(tokens, mask)[mask], read(model, text))


@FEW
@given(kinds, st.lists(texts, min_size=1, max_size=3), st.integers(0, 3))
@torch.no_grad()
def test_packed_texts_do_not_see_each_other(kind: int, several: list[list[int]], spare: int) -> None:
    model = decoder(kind)
    row = torch.tensor([[token for text in several for token in text] + [START] * spare])
    logits = model.logits(row, lengths=[[len(text) for text in several]])[0]
    begin = 0
    for text in several:
        close(logits[begin : begin + len(text)], read(model, text))
        begin += len(text)


@FEW
@given(kinds, st.lists(texts.filter(lambda t: START in t), min_size=1, max_size=3), st.data())
@torch.no_grad()
def test_a_cache_changes_nothing(kind: int, several: list[list[int]], data: st.DataObject) -> None:
    """Texts of different lengths, padded on the left, read up to the start token and then in pieces."""
    model = decoder(kind)
    first = max(text.index(START) + 1 for text in several)
    rest = max(len(text) - text.index(START) - 1 for text in several)
    tokens = torch.zeros(len(several), first + rest, dtype=torch.int64)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for row, text in enumerate(several):
        begin = first - text.index(START) - 1
        tokens[row, begin : begin + len(text)] = torch.tensor(text)
        mask[row, begin : begin + len(text)] = True
    cached, done, logits = Cache(model.architecture, len(several), 3), 0, []
    steps = [first]
    while sum(steps) < first + rest:
        steps.append(data.draw(st.integers(1, first + rest - sum(steps))))
    for step in steps:
        part = slice(done, done + step)
        logits.append(model.logits(tokens[:, part], mask[:, part], cache=cached))
        done += step
    whole = torch.cat(logits, dim=1)
    for row, text in enumerate(several):
        close(whole[row][mask[row]], read(model, text))


@FEW
@given(kinds, texts.filter(lambda t: START in t), st.data())
@torch.no_grad()
def test_who_sees_whom(kind: int, text: list[int], data: st.DataObject) -> None:
    """Another token in the context changes everything, another one in a piece only what follows it."""
    model, begin = decoder(kind), text.index(START)
    ordinary = [place for place, token in enumerate(text) if token >= 6]
    if not ordinary:
        return
    place = data.draw(st.sampled_from(ordinary))
    changed = [*text[:place], 6 + (text[place] - 5) % 25, *text[place + 1 :]]
    moved = (read(model, changed) - read(model, text)).abs().amax(-1) > 0
    assert bool(moved[place])
    if place >= begin:
        assert not bool(moved[:place].any())
    else:
        assert bool(moved.all())


def test_an_unfinished_context_is_not_continued() -> None:
    model = decoder(0)
    cached = Cache(model.architecture, 1)
    model.logits(torch.tensor([[7, MASK, 8]]), cache=cached)
    with pytest.raises(DaybreakError, match="a context that is not finished"):
        model.logits(torch.tensor([[9]]), cache=cached)


@torch.no_grad()
def test_a_layout_of_ones_own() -> None:
    """Pieces in another order than their blanks: the same sums, wherever the pieces stand."""
    model = decoder(0)
    text = [7, MASK, 8, MASK, START, 9, START, 10]
    swapped = [7, MASK, 8, MASK, START, 10, START, 9]
    layout = lay_out(torch.tensor([text]), None, blanks())
    order = torch.tensor([0, 1, 2, 3, 6, 7, 4, 5])
    for name in ("positions", "blocks", "context"):
        object.__setattr__(layout, name, getattr(layout, name)[:, order])
    found = model.unembed(model(Reading.laid_out(torch.tensor([swapped]), layout)))[0]
    close(found[:4], read(model, text)[:4])
    assert float((found[4] - read(model, swapped)[4]).abs().max()) > 1e-3


def test_a_layout_of_ones_own_is_not_continued_from_a_cache() -> None:
    model = decoder(0)
    tokens = torch.tensor([[7, MASK, START, 9]])
    reading = Reading.laid_out(tokens, lay_out(tokens, None, blanks()))
    with pytest.raises(DaybreakError, match="laid out by hand"):
        model(reading, Cache(model.architecture, 1))


@torch.no_grad()
def test_the_tables_are_used_to_their_last_row() -> None:
    """Both have a row more than the context of 32."""
    model = decoder(0)
    context = [7] * 32 + [MASK]
    assert model.logits(torch.tensor([[*context, START]])).isfinite().all()
    assert model.logits(torch.tensor([[MASK, START, *[8] * 31]])).isfinite().all()
    for text in ([7, *context, START], [MASK, START, *[8] * 32]):
        with pytest.raises(DaybreakError, match="position table ends"):
            model.logits(torch.tensor([text]))
