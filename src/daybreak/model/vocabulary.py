"""More rows for a trained model's vocabulary: tokens that fine-tuning brings along."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import FewBits, unpacked


@torch.no_grad()
def add_tokens(decoder: Decoder, known: int, count: int, std: float = 0.02, seed: int = 0) -> list[int]:
    """Give `decoder` rows for `count` new tokens behind the `known` ones, and return their ids.

    Rows that pad the table are taken first, as they stand for nothing yet. The new rows of the embedding, and
    of a head of its own, are drawn N(0, `std`) (Radford et al. 2018 draw 0.02); a bias starts at 0. A head of
    few bits is whole then. Raises `DaybreakError` for an embedding of few bits.
    """
    ids = list(range(known, known + count))
    rows = max(decoder.architecture.vocabulary, known + count)
    if isinstance(decoder.tokens, FewBits):
        raise DaybreakError(
            "the token embedding is quantised, and gets no rows for start, delimiter and extract; say --head "
            "last, or take a model whose embedding is whole"
        )
    if not decoder.architecture.tied and isinstance(decoder.head, FewBits):
        decoder.head = unpacked(decoder.head)
    generator = torch.Generator().manual_seed(seed)
    _grow(decoder.tokens, rows, ids, std, generator)
    if not decoder.architecture.tied:
        _grow(decoder.head, rows, ids, std, generator)
        decoder.head.out_features = rows
    decoder.tokens.num_embeddings = rows
    decoder.architecture = dataclasses.replace(decoder.architecture, vocabulary=rows)
    return ids


def _grow(module: nn.Module, rows: int, fresh: list[int], std: float, generator: torch.Generator) -> None:
    for name, old in list(module.named_parameters(recurse=False)):
        grown = old.new_zeros(rows, *old.shape[1:])
        grown[: len(old)] = old
        drawn = torch.zeros(len(fresh), *old.shape[1:])
        if old.ndim == 2:
            drawn.normal_(0.0, std, generator=generator)
        grown[fresh] = drawn.to(old)
        setattr(module, name, nn.Parameter(grown))
