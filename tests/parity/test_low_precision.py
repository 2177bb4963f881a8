"""Scores are float32 in every family, so nothing overflows in half precision (docs/decisions/001)."""

from __future__ import annotations

import pytest
import torch

from daybreak.model.attention import Sight, attend
from daybreak.model.positions import alibi_slopes
from daybreak.model.reading import Reading


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("slopes", [None, torch.tensor(alibi_slopes(3))])
@pytest.mark.parametrize("window", [None, 4])
def test_scores_beyond_half_precision_stay_exact(
    dtype: torch.dtype, slopes: torch.Tensor | None, window: int | None
) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        (torch.randn(1, 3, 9, 16, generator=generator) * factor).to(dtype) for factor in (300, 300, 1)
    )
    reading = Reading.of(torch.zeros(1, 9, dtype=torch.int64))
    largest = (query.double() @ key.double().transpose(-1, -2)).abs().max()
    assert largest > torch.finfo(torch.float16).max
    sight = Sight.of(reading, window, slopes)
    low = attend(query, key, value, sight, scale=1.0)
    exact = attend(query.float(), key.float(), value.float(), sight, scale=1.0)
    assert float((low.float() - exact).abs().max()) <= 2 * torch.finfo(dtype).eps * float(exact.abs().max())
