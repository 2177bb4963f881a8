"""One pass over tokens of several texts, compiled and in torch, beside the decoder's plain pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from daybreak.architecture import Alibi, Architecture, Blanks, Learned, Rotary
from daybreak.compare.redraw import redraw
from daybreak.engine.kernels.build import library
from daybreak.engine.pages import PageLayout, Pages, PageTable
from daybreak.engine.quantised import Scheme
from daybreak.engine.quantised_linear import Quantiser
from daybreak.engine.step import CompiledStep, Part, Stepper, TorchStep
from daybreak.model.decoder import Decoder
from tests.unit.architectures import any_architecture

STEPS = [
    pytest.param(CompiledStep, marks=pytest.mark.skipif(library().functions is None, reason=library().about)),
    TorchStep,
]
ROOM = 1 << 26


def decoder_of(architecture: Architecture, seed: int) -> Decoder:
    decoder = Decoder(architecture).eval()
    redraw(decoder, seed)
    return decoder


def texts_of(architecture: Architecture, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Token ids; for a model with blanks a context with one blank and then a piece."""
    draw = torch.Generator().manual_seed(seed)
    most = architecture.context if isinstance(architecture.positions, Learned) else 10**9
    found = []
    for length in lengths:
        tokens = torch.randint(architecture.vocabulary, (min(length, most),), generator=draw).tolist()
        if (blanks := architecture.blanks) is not None:
            ordinary = {*range(architecture.vocabulary)} - {blanks.start, *blanks.masks}
            tokens = [token if token in ordinary else blanks.end for token in tokens]
            half = len(tokens) // 2
            tokens = [blanks.mask, *tokens[:half], blanks.start, *tokens[half:]][: max(2, min(length, most))]
            if blanks.start not in tokens:
                tokens[-1] = blanks.start
        found.append(tokens)
    return found


class Reader:
    """Reads texts part by part."""

    def __init__(self, kind: type[Any], decoder: Decoder, stored: str = "float32") -> None:
        self.decoder = decoder
        self.pages = Pages(PageLayout.of(decoder.architecture, stored), ROOM)
        self.step: Stepper = kind(decoder, self.pages)
        self.tables: dict[int, PageTable] = {}

    def read(self, parts: Sequence[tuple[int, list[int], int, int]], *, forget: bool = True) -> list[Tensor]:
        """Of each part (text's number, all its tokens, begin, end) the logits."""
        made = [self._part(*part) for part in parts]
        with torch.inference_mode():
            logits = self.step.unembed(self.step.read(made))
        for part in made if forget else ():
            part.table.forget(part.end)
        return list(logits.split([len(part.tokens) for part in made]))

    def _part(self, number: int, tokens: list[int], begin: int, end: int) -> Part:
        table = self.tables.setdefault(number, PageTable(self.pages))
        assert table.reach(end)
        if self.decoder.architecture.blanks is None:
            return Part(table, tokens[begin:end], begin)
        reading = self.decoder.reading(torch.tensor([tokens]))
        assert reading.blocks is not None and reading.open_keys is not None
        positions, blocks = reading.positions[0].tolist(), reading.blocks[0].tolist()
        context = int(reading.open_keys.sum())
        return Part(table, tokens[begin:end], begin, positions[begin:end], blocks[begin:end], context)


def whole(decoder: Decoder, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return decoder.logits(torch.tensor([tokens]))[0]


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    assert found.shape == expected.shape
    assert ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3)).item() < bound


@pytest.mark.parametrize("kind", STEPS)
@settings(max_examples=40, deadline=None)
@given(any_architecture(), st.lists(st.integers(1, 45), min_size=1, max_size=4), st.integers(0, 2**20))
def test_texts_read_in_parts_are_the_decoders(
    kind: type[Any], architecture: Architecture, lengths: list[int], seed: int
) -> None:
    decoder = decoder_of(architecture, seed)
    texts = texts_of(architecture, lengths, seed)
    reader, draw = Reader(kind, decoder), torch.Generator().manual_seed(seed)
    done = [0] * len(texts)
    found: list[list[Tensor]] = [[] for _ in texts]
    while any(end < len(text) for end, text in zip(done, texts, strict=True)):
        parts = []
        for number, text in enumerate(texts):
            least = (
                1 if architecture.blanks is None else text.index(architecture.blanks.start) + 1 - done[number]
            )
            size = max(least, int(torch.randint(1, 20, (1,), generator=draw)))
            end = min(len(text), done[number] + size)
            if end > done[number]:
                parts.append((number, text, done[number], end))
        for part, logits in zip(parts, reader.read(parts), strict=True):
            found[part[0]].append(logits)
            done[part[0]] = part[3]
    for number, text in enumerate(texts):
        close(torch.cat(found[number]), whole(decoder, text), 2e-5)


SHAPE = {"vocabulary": 97, "context": 128, "layers": 3, "width": 48, "heads": 4, "inner": 80}
VARIED = [
    Architecture(**SHAPE),
    Architecture(**SHAPE, positions=Alibi(), embedding_norm=True, activation="gelu"),
    Architecture(**SHAPE, positions=Rotary(8, "neighbours"), block="parallel", shared_norm=True),
    Architecture(**SHAPE, windows=(None, 20), scaled_scores=False),
    Architecture(**SHAPE, positions=Rotary(12), key_heads=2, gated=True, norm="rms", activation="silu"),
]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
def test_a_piece_is_turned_by_its_blank_and_by_its_own_places(kind: type[Any], pairs: Any) -> None:
    blanks = Blanks(start=90, end=91, mask=92, rest=93)
    architecture = Architecture(**SHAPE, positions=Rotary(6, pairs, blocks=True), blanks=blanks)
    decoder = decoder_of(architecture, 9)
    context = [number * 7 % 89 for number in range(20)]
    tokens = [*context[:12], blanks.mask, *context[12:], blanks.start, *context[::-1]]
    reader = Reader(kind, decoder)
    end = tokens.index(blanks.start) + 1  # a context is read at once
    cuts = (0, end, end + 1, end + 9, len(tokens))
    found = [reader.read([(0, tokens, *part)])[0] for part in itertools.pairwise(cuts)]
    close(torch.cat(found), whole(decoder, tokens), 2e-5)


@pytest.mark.skipif(library().functions is None, reason=library().about)
@pytest.mark.parametrize("bits", [None, 16, 8, 4])
@pytest.mark.parametrize("architecture", VARIED)
def test_a_token_does_not_depend_on_those_beside_it(architecture: Architecture, bits: int | None) -> None:
    """To the last bit: alone or beside others, at once or in parts."""
    decoder = decoder_of(architecture, 1)
    if bits == 16:
        decoder.to(torch.bfloat16)
    elif bits is not None:
        quantise(decoder, bits)
    texts = texts_of(architecture, [70, 33, 1, 16, 50], 2)
    alone = []
    for text in texts:
        reader = Reader(CompiledStep, decoder)
        alone.append(torch.cat([reader.read([(0, text, i, i + 1)])[0] for i in range(len(text))]))
    together = Reader(CompiledStep, decoder).read([(n, text, 0, len(text)) for n, text in enumerate(texts)])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def quantise(decoder: Decoder, bits: int) -> None:
    weights = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
    quantiser = Quantiser(decoder, Scheme.usual(bits))
    for name, layer in quantiser.layers.items():
        layer.to_empty(device="cpu")
        layer.take(weights[name], name)
        if layer.bias is not None:
            layer.bias.copy_(weights[name.replace("weight", "bias")])


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("architecture", VARIED)
@pytest.mark.parametrize(("stored", "bound"), [("bfloat16", 0.03), ("int8", 0.06)])
def test_keys_and_values_in_fewer_bits(
    kind: type[Any], architecture: Architecture, stored: str, bound: float
) -> None:
    decoder = decoder_of(architecture, 3)
    (text,) = texts_of(architecture, [60], 4)
    reader = Reader(kind, decoder, stored)
    parts = [reader.read([(0, text, begin, min(60, begin + 7))])[0] for begin in range(0, 60, 7)]
    found, exact = torch.cat(parts), whole(decoder, text)
    close(found, exact, bound)
    assert not torch.equal(found, exact)


@pytest.mark.skipif(library().functions is None, reason=library().about)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "int8"])
def test_both_ways_keep_the_same_pages(stored: str) -> None:
    """What one way stored the other reads."""
    for architecture in VARIED:
        decoder = decoder_of(architecture, 5)
        (text,) = texts_of(architecture, [40], 6)
        reader = Reader(CompiledStep, decoder, stored)
        reader.read([(0, text, 0, 30)], forget=False)
        first = reader.read([(0, text, 30, 40)], forget=False)[0]
        reader.step = TorchStep(decoder, reader.pages)
        close(reader.read([(0, text, 30, 40)])[0], first, 2e-5 if stored == "float32" else 0.02)


@pytest.mark.skipif(library().functions is None, reason=library().about)
def test_weights_in_bfloat16_are_read_where_they_lie() -> None:
    for architecture in VARIED:
        decoder = decoder_of(architecture, 7).to(torch.bfloat16)
        (text,) = texts_of(architecture, [50], 8)
        found = Reader(CompiledStep, decoder).read([(0, text, 0, 50)])[0]
        close(found, whole(decoder.float(), text), 0.03)  # the embedding's sum is rounded
