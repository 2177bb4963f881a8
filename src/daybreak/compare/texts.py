"""The token ids that both sides of a comparison read."""

from __future__ import annotations

import torch
from torch import Tensor

from daybreak.architecture import Architecture, Blanks, Rotary

LENGTHS = (23, 9, 1, 14)
"""Texts of one comparison, one of a single token; the first grows where a window is longer."""


def draw(architecture: Architecture, seed: int) -> list[Tensor]:
    """The same texts for the same architecture and seed, the longest one first."""
    generator = torch.Generator().manual_seed(seed)
    if architecture.blanks is not None:
        return _with_blanks(architecture, architecture.blanks, generator)
    beyond = min(architecture.context, 5 + max((window or 0 for window in architecture.windows), default=0))
    lengths = (max(LENGTHS[0], beyond), *LENGTHS[1:])
    return [torch.randint(0, architecture.vocabulary, (n,), generator=generator) for n in lengths]


def _with_blanks(shape: Architecture, blanks: Blanks, generator: torch.Generator) -> list[Tensor]:
    """Every kind of blank: two with a piece each, one, one to the end of the text behind another one, one at
    the very beginning, one whose answer is still empty, and a single token without any.

    Where positions are angles, the first text fills the whole length: small errors of an angle grow with it.
    """
    marks = {*blanks.masks, blanks.start}
    ordinary = torch.tensor([number for number in range(shape.vocabulary) if number not in marks])

    def words(count: int) -> list[int]:
        chosen = torch.randint(0, len(ordinary), (count,), generator=generator)
        found: list[int] = ordinary[chosen].tolist()
        return found

    start, mask, rest = blanks.start, blanks.mask, blanks.rest
    second = mask if blanks.sentence is None else blanks.sentence
    before = shape.context - 23 if isinstance(shape.positions, Rotary) else 4
    context = [*words(before), mask, *words(3), second, *words(2)]
    texts = [
        [*context, start, *words(8), start, *words(6)],
        [*words(1), mask, *words(1), start, *words(10)],
        [*words(2), mask, *words(1), rest, *words(1), start, *words(11)],
        words(1),
        [*words(2), second, *words(2), start],
        [rest, start, *words(8)],
    ]
    return [torch.tensor(text) for text in texts]


def opening(text: Tensor, architecture: Architecture) -> int:
    """Tokens that must be read in one call: those of the context, which has no direction."""
    if architecture.blanks is None:
        return 0
    starts = (text == architecture.blanks.start).nonzero()
    return int(starts[0]) if len(starts) else len(text)
