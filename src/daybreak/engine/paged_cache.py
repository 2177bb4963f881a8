"""Pages as a cache that torch's attention reads: gathered for each layer, the newest keys of all texts in
line.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from daybreak.engine.pages import BYTES, PAGE, Pages, PageTable
from daybreak.model.reading import Reading

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class PagedCache:
    """The keys and values of some texts while they read `count` new tokens each."""

    def __init__(self, pages: Pages, tables: Sequence[PageTable], lengths: Tensor, count: int) -> None:
        """`lengths` [texts]: places of each text, the new ones included."""
        self._pages, self._layout, self._count = pages, pages.layout, count
        device = pages.pools[0].bytes.device
        longest = int(lengths.max())
        places = torch.arange(longest)[None] - (longest - lengths[:, None])  # [texts, longest]
        self._slots = (places.clamp(min=0) % PAGE).to(device)
        blocks = places.clamp(min=0) // PAGE
        self._pages_of_places: list[Tensor] = []
        for group in pages.groups:
            width = -(-longest // PAGE)
            numbers = [table.numbers(group)[:width] for table in tables]
            padded = torch.tensor([own + [0] * (width - len(own)) for own in numbers])
            self._pages_of_places.append(padded.gather(1, blocks).to(device))
        self._before = [
            self._layout.groups[:layer].count(group) for layer, group in enumerate(self._layout.groups)
        ]

    def admit(self, reading: Reading) -> None:
        """Nothing is to be noted: the reading was made for these texts."""

    def advance(self, length: int) -> None:
        """Tables know their lengths."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [texts, key heads, count, head_width]; returns those of all places."""
        pages = self._pages_of_places[self._layout.groups[layer]]  # [texts, longest]
        new = slice(pages.shape[1] - self._count, None)
        return (
            self._kept(layer, 0, keys, pages, new),
            self._kept(layer, 1, values, pages, new),
        )

    def _kept(self, layer: int, part: int, vectors: Tensor, pages: Tensor, new: slice) -> Tensor:
        numbers, scales = self._views(layer, part)
        fresh = vectors.transpose(1, 2)  # [texts, count, key heads, head_width]
        places = pages[:, new], self._slots[:, new]
        if scales is not None:
            top = fresh.float().abs().amax(-1)
            scales[places] = top / 127
            fresh = (fresh.float() * torch.where(top > 0, 127 / top, 0)[..., None]).round()
        numbers[places] = fresh.to(numbers.dtype)
        found = numbers[pages, self._slots]  # [texts, longest, key heads, head_width]
        if scales is not None:
            found = found.float() * scales[pages, self._slots][..., None]
        return found.to(vectors.dtype).transpose(1, 2)

    def _views(self, layer: int, part: int) -> tuple[Tensor, Tensor | None]:
        """Keys (0) or values (1) of a layer in all pages, [pages, 16, key heads, head_width], and the scales,
        [pages, 16, key heads].
        """
        layout, pool = self._layout, self._pages.pools[self._layout.groups[layer]]
        heads, width, size = layout.heads, layout.head_width, BYTES[layout.stored]
        begin = self._before[layer] * layout.layer_bytes
        stride = pool.size // size
        # Keys lie by component, so that a register of the compiled attention holds one of several keys.
        order = (PAGE, 1) if part == 0 else (1, width)
        count = pool.bytes.numel() // pool.size
        numbers = pool.bytes.view(DTYPES[layout.stored]).as_strided(
            (count, PAGE, heads, width),
            (stride, order[1], width * PAGE, order[0]),
            begin // size + part * layout.numbers,
        )
        if layout.stored != "int8":
            return numbers, None
        offset = (begin + 2 * layout.numbers) // 4 + part * heads * PAGE
        scales = pool.bytes.view(torch.float32).as_strided(
            (count, PAGE, heads), (pool.size // 4, 1, PAGE), offset
        )
        return numbers, scales
