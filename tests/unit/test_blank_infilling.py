"""Blank infilling: what is blanked out, what is predicted where, and that nothing later is seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import daybreak
from daybreak.architecture import Blanks
from daybreak.errors import DaybreakError
from daybreak.model.blanks import lay_out
from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading
from daybreak.objectives.batch import UNSCORED, Batch, loss, token_losses
from daybreak.objectives.blank_infilling import (
    ALL_THREE,
    PACKED_SPANS_AND_REST,
    SPANS_AND_SENTENCES,
    BlankInfilling,
    Mixture,
    Row,
    blanked,
)
from daybreak.objectives.causal import Causal
from daybreak.objectives.sentences import Lines, Sentences
from daybreak.objectives.spans import LONGEST, Stretch, draw_lengths, length_shares, place, taken_apart
from daybreak.quickstart import task
from daybreak.text.train_tokenizer import train_tokenizer

VOCABULARY = 97
BLANKS = Blanks(start=96, end=95, sentence=94, rest=93, mask=92)
OPENING, CLOSING = 91, 90
FRAME = ((OPENING,), (CLOSING,))
WORDS = 90
"""Ids of ordinary tokens; multiples of ten end a sentence."""
SENTENCES = Sentences(frozenset(range(0, WORDS, 10)))
MIXTURES = [
    ALL_THREE,
    SPANS_AND_SENTENCES,
    PACKED_SPANS_AND_REST,
    Mixture(sentences=1.0, spans=0.0, least=0.2, most=0.5),
]


def infilling(mixture: Mixture, seed: int = 0, blanks: Blanks = BLANKS) -> BlankInfilling:
    return BlankInfilling(blanks, mixture, SENTENCES, FRAME, seed)


def text(length: int, seed: int) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(0, WORDS, length)]


def documents(row: Row) -> list[Row]:
    """The texts of a packed row, without padding."""
    found = []
    for number in sorted({*row.documents} - {-1}):
        keep = [mine == number for mine in row.documents]
        parts = (row.tokens, row.targets, row.positions, row.blocks, row.context, row.documents)
        found.append(Row(*(list(itertools.compress(part, keep)) for part in parts)))  # type: ignore[arg-type]
    return found


def filled(row: Row) -> list[int]:
    """The context with the targets of every piece in place of its blank, read off positions and targets."""
    pieces: dict[int, list[int]] = {}
    for token, target, position, block in zip(
        row.tokens, row.targets, row.positions, row.blocks, strict=True
    ):
        if block:
            assert (token == BLANKS.start) == (block == 1)
            pieces.setdefault(position, []).append(target)
    found = []
    for position, (token, seen) in enumerate(zip(row.tokens, row.context, strict=True)):
        if seen and token in BLANKS.masks:
            *piece, end = pieces.pop(position)
            assert end == BLANKS.end and piece and not {*piece} & {BLANKS.end, UNSCORED}
            found += piece
        elif seen and token not in (OPENING, CLOSING):
            found.append(token)
    assert not pieces
    return found


# What is blanked out ----------------------------------------------------------------------------------------


def test_span_lengths_are_poisson_on_1_to_39() -> None:
    shares = length_shares()
    assert len(shares) == LONGEST == 39 and shares.sum() == pytest.approx(1)
    assert shares[2] == pytest.approx(shares[1]) == pytest.approx(4.5 / (np.exp(3) - 1))
    random = np.random.default_rng(0)
    drawn = np.concatenate([draw_lengths(500, 0.15, random) for _ in range(300)])
    counts = np.bincount(drawn, minlength=40)[1:]
    assert len(drawn) > 5000
    assert np.abs(counts / len(drawn) - shares).max() < 0.02
    assert drawn.mean() == pytest.approx(3 / (1 - np.exp(-3)), abs=0.1)


@given(st.integers(2, 300), st.floats(0.01, 0.5), st.integers(0, 2**32))
def test_spans_never_touch_and_are_enough(length: int, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = draw_lengths(length, share, random)
    spans = place(lengths, length, random)
    assert sorted(span.length for span in spans) == sorted(lengths)
    assert spans[0].begin >= 0 and spans[-1].end <= length
    assert all(one.end < other.begin for one, other in itertools.pairwise(spans))
    assert share * length <= sum(lengths) < length


def test_every_arrangement_is_as_likely() -> None:
    random = np.random.default_rng(0)
    drawn = [tuple((s.begin, s.end) for s in place([1, 2], 5, random)) for _ in range(3000)]
    counts = {arrangement: drawn.count(arrangement) for arrangement in drawn}
    expected = {
        ((a, a + m), (b, b + 3 - m)) for m in (1, 2) for a in range(5) for b in range(a + m + 1, 3 + m)
    }
    assert {*counts} == expected
    assert max(counts.values()) < 1.25 * min(counts.values())


@pytest.mark.parametrize("mixture", MIXTURES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_the_context_filled_again_is_the_text(mixture: Mixture, seed: int) -> None:
    """So every token is in the context or predicted, exactly once, and every target is right."""
    ids = text(120, seed)
    row = infilling(mixture).row(ids, 120, np.random.default_rng(seed))
    assert {len(part) for part in vars(row).values()} == {120}
    begin = 0
    for one in documents(row):
        whole = filled(one)
        assert whole == ids[begin : begin + len(whole)]
        begin += 120 // mixture.packed
        masked = sum(target not in (UNSCORED, BLANKS.end) for target in one.targets)
        marks = {token for token, seen in zip(one.tokens, one.context, strict=True) if seen} & {*BLANKS.masks}
        assert len(marks) == 1
        if marks == {BLANKS.mask}:
            assert masked >= mixture.least * len(whole)


def test_kinds_come_in_their_shares() -> None:
    objective = infilling(ALL_THREE)
    ids = text(130, 1)
    rows = [objective.row(ids, 130, np.random.default_rng([5, n])) for n in range(1000)]
    shares = [sum(mark in row.tokens for row in rows) / 1000 for mark in (92, 94, 93)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.05)  # three standard deviations


def test_the_rest_is_evenly_long() -> None:
    objective = infilling(Mixture(spans=0.0, rest=1.0, shortest_rest=0.25))
    ids = text(103, 1)
    sizes = np.array(
        [sum(objective.row(ids, 103, np.random.default_rng([7, n])).blocks[-1:]) - 1 for n in range(2000)]
    )
    assert (sizes.min(), sizes.max()) == (25, 98)  # of 100: 103 less [CLS], [gMASK] and the start token
    assert sizes.mean() == pytest.approx(61.5, abs=1.5)


def test_packed_rows_hold_several_texts() -> None:
    objective = infilling(Mixture(packed=4))
    row = objective.row(text(130, 2), 130, np.random.default_rng(0))
    assert row.documents == [0] * 32 + [1] * 32 + [2] * 32 + [3] * 32 + [-1] * 2
    assert all(one.positions[0] == 0 and one.tokens[0] == OPENING for one in documents(row))


def test_short_texts() -> None:
    objective = infilling(Mixture(spans=0.5, rest=0.5))
    for seed in range(50):
        assert filled(documents(objective.row([1, 2, 3, 4], 120, np.random.default_rng(seed)))[0])
    for length, kind in ((1, {}), (2, {"spans": 0.0, "rest": 1.0})):
        with pytest.raises(DaybreakError, match=f"a text of {length + (not kind) * 2} tokens is too short"):
            infilling(Mixture(**kind)).row(text(length, 0), 120, np.random.default_rng(0))
    # One sentence is never all that there is: spans are taken instead.
    alone = infilling(Mixture(spans=0.0, sentences=1.0)).row([1] * 50, 54, np.random.default_rng(0))
    assert BLANKS.mask in alone.tokens and BLANKS.sentence not in alone.tokens


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spans": 0.5}, "add up to 1"),
        ({"spans": 1.5, "rest": -0.5}, "add up to 1"),
        ({"least": 0.6}, "up to 0.5"),
        ({"least": 0.4, "most": 0.3}, "blanks take"),
        ({"packed": 0}, "at least 1"),
        ({"shortest_rest": 1.0}, "shortest_rest"),
    ],
)
def test_wrong_mixtures_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        Mixture(**wrong)  # type: ignore[arg-type]


def test_sentences_need_to_be_known() -> None:
    with pytest.raises(DaybreakError, match="what a sentence is"):
        BlankInfilling(BLANKS, SPANS_AND_SENTENCES)


# Sentences and lines ----------------------------------------------------------------------------------------

CODE = [
    f"def name_{n}(self, value{n}):\n    if value{n}:\n        return self.f([{n}])\n\n    # 1. x; y?\n" * 3
    for n in range(20)
]
TOKENIZER = train_tokenizer(CODE, 300, marks=["[MASK]", "<|startofpiece|>"])


def test_sentences_end_where_the_signs_say() -> None:
    ids = TOKENIZER.encode("one. two; three? four\n\n five")
    found = [TOKENIZER.decode(ids[s.begin : s.end]) for s in Sentences.of(TOKENIZER).find(ids)]
    assert "".join(found) == "one. two; three? four\n\n five"
    assert [part.strip() for part in found if part.strip()] == ["one.", "two;", "three?", "four", "five"]


@given(
    st.lists(st.sampled_from(["", "a", "  b = f(x):", "\t\tc[1]", " ", "é.", "    return d)"]), min_size=3)
)
def test_lines_are_whole_without_indentation_and_break(lines: list[str]) -> None:
    ids = TOKENIZER.encode("\n".join(lines), bos=True)
    units = Lines.of(TOKENIZER)
    found = units.find(ids)
    whole, stretches = taken_apart(ids, found)
    assert TOKENIZER.decode(whole) == "\n".join(lines)
    spelled = [TOKENIZER.decode(whole[s.begin : s.end]) for s in stretches]
    assert [part.strip(" \t") for part in spelled] == [
        part.strip(" \t") for part in lines[:-1] if part.strip()
    ]
    assert not any("\n" in part for part in spelled)
    rest = [token for n, token in enumerate(whole) if not any(s.begin <= n < s.end for s in stretches)]
    assert TOKENIZER.decode(rest).count("\n") == len(lines) - 1


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_blanked_lines_filled_again_are_the_text(seed: int) -> None:
    blanks = Blanks(start=301, end=302, mask=300, rest=303, sentence=304)
    objective = BlankInfilling(blanks, Mixture(spans=0.0, sentences=1.0, most=0.5), Lines.of(TOKENIZER))
    ids = TOKENIZER.encode("".join(CODE[:4]), bos=True)
    row = objective.row(ids, 150, np.random.default_rng(seed))
    assert len(row.tokens) == 150 and row.documents == [0] * 150
    seen = [token for token, context in zip(row.tokens, row.context, strict=True) if context]
    pieces = {
        position: [
            target
            for target, own, block in zip(row.targets, row.positions, row.blocks, strict=True)
            if block and own == position and target != blanks.end
        ]
        for position, token in enumerate(seen)
        if token == blanks.sentence
    }
    assert pieces
    whole = [token for n, given in enumerate(seen) for token in pieces.get(n, [given])]
    assert "".join(CODE).startswith(TOKENIZER.decode(whole))
    for piece in pieces.values():
        line = TOKENIZER.decode(piece)
        assert line == line.strip() and line in [one.strip() for one in "".join(CODE).splitlines()]


def test_marks_follow_the_vocabulary() -> None:
    assert TOKENIZER.vocabulary == 302
    assert TOKENIZER.special_id("[MASK]") == 300
    assert TOKENIZER.encode("a[MASK]b")[1] == 300
    assert TOKENIZER.encode("a[MASK]b", special=False) != TOKENIZER.encode("a[MASK]b")


# Layout -----------------------------------------------------------------------------------------------------


def test_positions_are_those_of_the_paper() -> None:
    """Figure 2: x1 .. x6 with the spans x3 and x5 x6, the second piece first. There positions count from 1,
    and the first row of the figure is ours plus 1."""
    row = blanked([1, 2, 3, 4, 5, 6], [Stretch(2, 3), Stretch(4, 6)], BLANKS.mask, [1, 0], BLANKS)
    start, mask, end, no = BLANKS.start, BLANKS.mask, BLANKS.end, UNSCORED
    assert row.tokens == [1, 2, mask, 4, mask, start, 5, 6, start, 3]
    assert row.targets == [no, no, no, no, no, 5, 6, end, 3, end]
    assert [position + 1 for position in row.positions] == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert row.blocks == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert row.context == [True] * 5 + [False] * 5


@pytest.mark.parametrize("runs_on", [False, True])
@given(seed=st.integers(0, 2**32), rest=st.booleans())
def test_in_order_it_is_what_the_tokens_themselves_say(runs_on: bool, seed: int, rest: bool) -> None:
    blanks = Blanks(start=96, end=95, sentence=94, rest=93, mask=92, runs_on=runs_on)
    random, ids = np.random.default_rng(seed), text(60, seed)
    spans = [Stretch(20, 60)] if rest else place(draw_lengths(60, 0.2, random), 60, random)
    mark = blanks.rest if rest else blanks.mask
    row = blanked(ids, spans, mark, range(len(spans)), blanks, FRAME)
    layout = lay_out(torch.tensor([row.tokens]), None, blanks)
    assert layout.positions.tolist() == [row.positions]
    assert layout.blocks.tolist() == [row.blocks]
    assert layout.context.tolist() == [row.context]


def same(one: Batch, other: Batch) -> bool:
    mine, its = one.reading, other.reading
    assert mine.blocks is not None and its.blocks is not None
    return (
        torch.equal(mine.tokens, its.tokens)
        and torch.equal(one.targets, other.targets)
        and torch.equal(mine.positions, its.positions)
        and torch.equal(mine.blocks, its.blocks)
    )


@given(st.integers(0, 2**40), st.integers(1, 4), st.sampled_from(MIXTURES))
def test_a_batch_that_processes_share_has_the_same_rows(first: int, ranks: int, mixture: Mixture) -> None:
    windows = torch.tensor([text(65, n) for n in range(6)])
    objective = infilling(mixture, seed=3)
    numbers = range(first, first + 6)
    whole = objective.batch(windows, numbers)
    for rank in range(ranks):
        rows = slice(rank, None, ranks)
        part = objective.batch(windows[rows], numbers[rows])
        assert torch.equal(part.reading.tokens, whole.reading.tokens[rows])
        assert torch.equal(part.reading.positions, whole.reading.positions[rows])
        assert torch.equal(part.targets, whole.targets[rows])


def test_what_is_drawn_depends_on_seed_and_number() -> None:
    windows = torch.tensor([text(65, 1)] * 2)
    first = infilling(ALL_THREE, seed=3).batch(windows, [7, 8])
    assert same(first, infilling(ALL_THREE, seed=3).batch(windows, [7, 8]))
    assert not same(first, infilling(ALL_THREE, seed=3).batch(windows, [8, 7]))
    assert not same(first, infilling(ALL_THREE, seed=4).batch(windows, [7, 8]))
    assert not torch.equal(first.reading.tokens[0], first.reading.tokens[1])


def test_the_quickstart_draws_as_it_did_from_seed_step_and_row() -> None:
    windows = torch.tensor([text(65, n) for n in range(3)])
    for seed, step in ((0, 0), (5, 1), (2**31, 70_000)):
        objective = infilling(ALL_THREE, seed=seed)
        batch = objective.batch(windows, task.numbers(step, 3))
        for row in range(3):
            wanted = objective.row(windows[row].tolist(), 64, np.random.default_rng([seed, step, row]))
            assert batch.reading.tokens[row].tolist() == wanted.tokens
            assert batch.targets[row].tolist() == wanted.targets


def test_documents_in_a_sequence_cannot_be_masked() -> None:
    windows = torch.tensor([text(65, 1)])
    for objective in (infilling(ALL_THREE), Causal(BLANKS)):
        with pytest.raises(DaybreakError, match=r"design with blanks.*data\.masking"):
            objective.batch(windows, [0], [[30, 35]])


# The model --------------------------------------------------------------------------------------------------


def decoder(family: str = "glm", seed: int = 1) -> Decoder:
    sizes = {"vocabulary": VOCABULARY, "width": 16, "layers": 2, "heads": 2, "context": 64, "blanks": BLANKS}
    if family == "chatglm":
        sizes["positions"] = daybreak.architecture.Rotary(4, blocks=True)
    model = daybreak.create(family, seed=seed, **sizes).decoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def may_see(batch: Batch, row: int, place: int) -> list[bool]:
    """Written out: the own document's context, and what comes before."""
    reading = batch.reading
    assert reading.open_keys is not None
    mine = None if reading.documents is None else reading.documents[row]
    return [
        (mine is None or bool(mine[key] == mine[place]))
        and (key <= place or bool(reading.open_keys[row, key]))
        for key in range(reading.length)
    ]


@pytest.mark.parametrize("family", ["glm", "chatglm"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_gradient_reaches_what_may_be_seen_and_nothing_else(mixture: Mixture, family: str) -> None:
    model, windows = decoder(family), torch.tensor([text(65, n) for n in range(3)])
    batch = infilling(mixture).batch(windows, range(3))
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.tokens.register_forward_hook(keep)
    losses = token_losses(model, batch).view(batch.targets.shape)
    for row in range(3):
        for place_ in (batch.targets[row] != UNSCORED).nonzero()[::5, 0].tolist():
            seen[0].grad = None
            losses[row, place_].backward(retain_graph=True)  # type: ignore[no-untyped-call]
            assert seen[0].grad is not None
            reached = seen[0].grad.abs().sum(-1) > 0  # [batch, length]
            assert reached[row].tolist() == may_see(batch, row, place_)
            assert not reached[[n for n in range(3) if n != row]].any()


@pytest.mark.parametrize("mixture", MIXTURES)
def test_another_token_later_changes_no_earlier_prediction(mixture: Mixture) -> None:
    model, windows = decoder(), torch.tensor([text(65, n) for n in range(3)])
    batch = infilling(mixture).batch(windows, range(3, 6))
    before = token_losses(model, batch).view(batch.targets.shape)
    for row in range(3):
        inside = (batch.targets[row] != UNSCORED).nonzero()[:, 0].tolist()
        for place_ in inside[:: max(1, len(inside) // 4)]:
            tokens = batch.reading.tokens.clone()
            tokens[row, place_] = (tokens[row, place_] + 1) % WORDS
            layout = _layout(batch.reading)
            changed = Batch(Reading.laid_out(tokens, layout, batch.reading.documents), batch.targets)
            after = token_losses(model, changed).view(batch.targets.shape)
            differs = (after != before) & (batch.targets != UNSCORED)
            expected = [bool(n in inside and may_see(batch, row, n)[place_]) for n in range(64)]
            assert differs[row].tolist() == expected
            assert int(differs.sum()) == sum(expected)


def _layout(reading: Reading) -> daybreak.model.blanks.Layout:
    assert reading.blocks is not None and reading.open_keys is not None
    return daybreak.model.blanks.Layout(reading.positions, reading.blocks, reading.open_keys)


def test_the_loss_is_per_predicted_token() -> None:
    model, windows = decoder(), torch.tensor([text(65, n) for n in range(2)])
    batch = infilling(ALL_THREE).batch(windows, range(2))
    logits = model.unembed(model(batch.reading)).log_softmax(-1)
    chosen = [
        -logits[row, n, target]
        for row in range(2)
        for n, target in enumerate(batch.targets[row].tolist())
        if target != UNSCORED
    ]
    torch.testing.assert_close(loss(model, batch), torch.stack(chosen).mean())


def test_it_learns_to_fill_blanks() -> None:
    """Texts that repeat with period 7: what is missing follows from either side."""
    model = daybreak.create("glm", vocabulary=20, width=32, layers=2, heads=2, context=48, seed=0).decoder
    assert model.architecture.blanks is not None
    objective = BlankInfilling(model.architecture.blanks)
    windows = torch.tensor([[(n + begin) % 7 for n in range(49)] for begin in range(8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(150):
        found = loss(model, objective.batch(windows, task.numbers(step, 8)))
        losses.append(found.item())
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > 2.5 and np.mean(losses[-10:]) < 1.2  # blind: ln 7 = 1.95 and more


# Causal -----------------------------------------------------------------------------------------------------


def test_causal_with_blanks_is_a_blank_without_context() -> None:
    model, windows = decoder(), torch.tensor([text(33, n) for n in range(2)])
    batch = Causal(BLANKS).batch(windows)
    assert batch.reading.tokens.shape == (2, 32)
    assert batch.reading.tokens[:, :2].tolist() == [[BLANKS.rest, BLANKS.start]] * 2
    assert torch.equal(batch.targets[:, 1:], windows[:, :31])
    assert torch.equal(batch.reading.tokens[:, 2:], windows[:, :30])
    direct = model(model.reading(batch.reading.tokens))
    assert torch.equal(model(batch.reading), direct)


def test_causal_without_blanks_is_one_place_further() -> None:
    windows = torch.tensor([text(33, n) for n in range(2)])
    batch = Causal().batch(windows)
    assert torch.equal(batch.reading.tokens, windows[:, :-1]) and torch.equal(batch.targets, windows[:, 1:])
    assert batch.reading.is_plain_causal(None)
