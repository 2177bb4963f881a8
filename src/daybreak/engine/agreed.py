"""What the processes that a model is spread over decide together: a pass takes all of them, so all must make
the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from daybreak.model.decoder import Decoder


def spread(decoder: Decoder) -> bool:
    """Is it cut over several processes?"""
    return hasattr(decoder.tokens.weight, "device_mesh")


def agreed(decoder: Decoder, value: int) -> int:
    """The least `value`, an int64, of all processes that a decoder is spread over; alone it costs nothing."""
    if not spread(decoder):
        return value
    weight: Any = decoder.tokens.weight
    least = torch.tensor(value, device=weight.device)
    for group in weight.device_mesh.get_all_groups():
        distributed.all_reduce(least, distributed.ReduceOp.MIN, group)
    return int(least)
