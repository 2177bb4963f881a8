"""One pass over tokens of several texts, each of which continues what its pages hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from daybreak.architecture import Rotary
from daybreak.engine.compiled import CompiledHead, CompiledLayers, why_not
from daybreak.engine.memory import available
from daybreak.engine.paged_cache import PagedCache
from daybreak.engine.pages import Pages, PageTable
from daybreak.model.adapters import selected
from daybreak.model.decoder import Decoder
from daybreak.model.positions import rotary_turns
from daybreak.model.reading import Reading


@dataclass(frozen=True, eq=False)
class Part:
    """New tokens of one text."""

    table: PageTable
    """It reaches to their end."""
    tokens: Sequence[int]
    start: int
    """The place of the first one."""
    positions: Sequence[int] | None = None
    """Where places do not say them."""
    blocks: Sequence[int] | None = None
    """Of a model with blanks the places within a piece."""
    context: int = 0
    """Places below are a context, whose tokens see all of it."""
    adapter: str | None = None
    """What corrects the weights for it."""

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def ends(self) -> list[int]:
        """Of what each token sees."""
        return [max(place + 1, self.context) for place in range(self.start, self.end)]


class Stepper(Protocol):
    """How a model reads."""

    exact: bool
    """What comes out for a token does not depend on those beside it, to the last bit."""

    def read(self, parts: Sequence[Part]) -> Tensor:
        """What the head reads, [all tokens, width], in the order of the parts."""

    def unembed(self, hidden: Tensor, adapters: Sequence[str | None] = ()) -> Tensor:
        """[rows, width] -> [rows, vocabulary] float32; `adapters`: those of the rows, where they have any."""


def stepper(decoder: Decoder, pages: Pages) -> Stepper:
    """The compiled step where it serves, else torch."""
    return TorchStep(decoder, pages) if why_not(decoder) else AdaptedStep(decoder, pages)


class CompiledStep:
    """All tokens at once."""

    exact = True

    def __init__(self, decoder: Decoder, pages: Pages) -> None:
        self._decoder = decoder
        layout, device = pages.layout, decoder.tokens.weight.device
        # Weights that do not fit are pages of files, which come and go; each layer's are asked for early.
        self.streamed = weight_bytes(decoder) > available(device)
        self._layers = CompiledLayers(decoder, layout.stored, layout.groups, streamed=self.streamed)
        assert self._layers.layer_bytes == pages.layout.layer_bytes
        self._head = CompiledHead(decoder)

    def read(self, parts: Sequence[Part]) -> Tensor:
        reading = _flat(parts)
        hidden = self._decoder.embed(reading)[0].float().contiguous()  # [tokens, width]
        rotary = self._decoder.architecture.positions
        turns = rotary_turns(rotary, reading) if isinstance(rotary, Rotary) else None
        owners = torch.tensor([number for number, part in enumerate(parts) for _ in part.tokens])
        places = torch.tensor([place for part in parts for place in range(part.start, part.end)])
        ends = torch.tensor([end for part in parts for end in part.ends])
        lists = torch.tensor([part.table.places_of_lists() for part in parts]).T.contiguous()
        self._layers.run(hidden, turns, owners, places, ends, lists)
        if self._decoder.architecture.embedding_width is None:
            return hidden
        return self._decoder.project_out(hidden.to(self._decoder.tokens.weight.dtype)).float()  # type: ignore[no-any-return]

    def unembed(self, hidden: Tensor, adapters: Sequence[str | None] = ()) -> Tensor:
        del adapters
        return self._head(hidden)


def weight_bytes(decoder: Decoder) -> int:
    return sum(tensor.nbytes for tensor in decoder.state_dict().values())


def _flat(parts: Sequence[Part]) -> Reading:
    """The tokens of all parts in one row; who sees whom is told elsewhere."""
    tokens = torch.tensor([[token for part in parts for token in part.tokens]])
    positions = torch.tensor([[number for part in parts for number in _positions(part)]])
    blocks = None
    if any(part.blocks is not None for part in parts):
        blocks = torch.tensor([[number for part in parts for number in part.blocks or ()]])
    return Reading(tokens, positions, positions, blocks=blocks)


def _positions(part: Part) -> Sequence[int]:
    return range(part.start, part.end) if part.positions is None else part.positions


class TorchStep:
    """Single tokens of all texts at once, longer parts one after another."""

    exact = False

    def __init__(self, decoder: Decoder, pages: Pages) -> None:
        self._decoder, self._pages = decoder, pages

    def read(self, parts: Sequence[Part]) -> Tensor:
        short = [number for number, part in enumerate(parts) if len(part.tokens) == 1]
        found: dict[int, Tensor] = {}
        if short:
            rows = self._read([parts[number] for number in short])
            found.update(zip(short, rows, strict=True))
        for number, part in enumerate(parts):
            if number not in found:
                found[number] = self._read([part])[0]
        return torch.cat([found[number] for number in range(len(parts))])

    def unembed(self, hidden: Tensor, adapters: Sequence[str | None] = ()) -> Tensor:
        with selected(self._decoder, adapters or [None] * len(hidden)):
            return self._decoder.unembed(hidden.to(self._decoder.tokens.weight.dtype)).float()

    def _read(self, parts: Sequence[Part]) -> Tensor:
        """[parts, tokens, width]; all have as many tokens. Keys stand at the right, so that the newest are in
        line."""
        device = self._decoder.tokens.weight.device
        count, longest = len(parts[0].tokens), max(part.end for part in parts)
        tokens = torch.tensor([list(part.tokens) for part in parts])
        positions = torch.tensor([list(_positions(part)) for part in parts])
        lengths = torch.tensor([[part.end] for part in parts])
        places = torch.arange(longest)[None] - (longest - lengths)  # [parts, longest]
        real = places >= 0
        blocks = open_keys = None
        if parts[0].blocks is not None:
            blocks = torch.tensor([list(part.blocks or ()) for part in parts]).to(device)
            contexts = torch.tensor([[part.context] for part in parts])
            open_keys = (real & (places < contexts)).to(device)
        reading = Reading(
            tokens.to(device),
            positions.to(device),
            places.clamp(min=0).to(device),
            start=longest - count,
            real_keys=None if bool(real.all()) else real.to(device),
            blocks=blocks,
            open_keys=open_keys,
        )
        cache = PagedCache(self._pages, [part.table for part in parts], lengths[:, 0], count)
        with selected(self._decoder, [part.adapter for part in parts]):
            return self._decoder(reading, cache)  # type: ignore[no-any-return]


class AdaptedStep(CompiledStep):
    """The compiled step, and torch's for texts with an adapter: of those the compiled one knows nothing. What
    is in the pages is the same for both.
    """

    def __init__(self, decoder: Decoder, pages: Pages) -> None:
        super().__init__(decoder, pages)
        self._other = TorchStep(decoder, pages)

    def read(self, parts: Sequence[Part]) -> Tensor:
        adapted = [part for part in parts if part.adapter is not None]
        if not adapted:
            return super().read(parts)
        plain = [part for part in parts if part.adapter is None]
        rows = [*_rows(self._other.read(adapted), adapted)]
        if plain:
            rows += _rows(super().read(plain), plain)
        found = dict(zip(map(id, [*adapted, *plain]), rows, strict=True))
        return torch.cat([found[id(part)] for part in parts])

    def unembed(self, hidden: Tensor, adapters: Sequence[str | None] = ()) -> Tensor:
        adapted = [row for row, name in enumerate(adapters) if name is not None]
        if not adapted:
            return super().unembed(hidden)
        logits = self._other.unembed(hidden[adapted], [adapters[row] for row in adapted])
        plain = [row for row, name in enumerate(adapters) if name is None]
        every = torch.empty(len(hidden), logits.shape[1])
        every[adapted] = logits
        if plain:
            every[plain] = super().unembed(hidden[plain])
        return every


def _rows(read: Tensor, parts: Sequence[Part]) -> Sequence[Tensor]:
    """What was read of each part, in float32."""
    return torch.split(read.float(), [len(part.tokens) for part in parts])
