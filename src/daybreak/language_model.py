"""A model as people meet it: the decoder with its tokenizer, its family and the settings it was published with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.families.family import Family
from daybreak.model.decoder import Decoder
from daybreak.model.initialise import initialise


@dataclass(eq=False)
class LanguageModel:
    """What `daybreak.load` and `daybreak.create` return."""

    family: Family
    decoder: Decoder
    tokenizer: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    """config.json as it was read: keys that are not the architecture's survive loading and saving."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read."""

    @property
    def architecture(self) -> Architecture:
        return self.decoder.architecture

    @torch.no_grad()
    def logits(
        self, tokens: Tensor, mask: Tensor | None = None, lengths: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """[batch, length] int64 -> [batch, length, vocabulary] float32; without gradients, see `Decoder.logits`."""
        return self.decoder.logits(tokens, mask, lengths)


def create(
    family: str,
    size: str | None = None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    **changes: Any,
) -> LanguageModel:
    """A model with fresh weights, drawn as the family's paper draws them; `changes` are fields of `Architecture`."""
    page = families.by_name(family)
    decoder = Decoder(page.architecture(size, **changes))
    initialise(decoder, page.initialisation(decoder.architecture), seed)
    decoder.to(device=device, dtype=getattr(torch, dtype))
    return LanguageModel(page, decoder)
