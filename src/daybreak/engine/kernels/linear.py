"""Products with quantised weights, by the compiled kernels."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from daybreak.engine.kernels.build import library
from daybreak.engine.packed import Packed, group_of
from daybreak.engine.quantised import Scheme


def multiply(inputs: Tensor, weights: Packed, bias: Tensor | None, outputs: int, scheme: Scheme) -> Tensor:
    """[tokens, inputs] float32 -> [tokens, outputs] float32; on the CPU, without gradients."""
    functions = library().functions
    assert functions is not None and inputs.dtype == torch.float32
    inputs = inputs.contiguous()
    tokens, width = inputs.shape
    results = torch.empty(tokens, outputs)
    functions.quantised_linear(
        _place(inputs),
        c_int64(tokens),
        *map(_place, (*weights, bias)),
        c_int64(outputs),
        c_int64(width),
        c_int64(group_of(scheme)),
        c_int64(scheme.bits),
        c_int64(scheme.group is None),
        _place(results),
    )
    return results


def _place(tensor: Tensor | None) -> c_void_p:
    return c_void_p(0 if tensor is None else tensor.data_ptr())
