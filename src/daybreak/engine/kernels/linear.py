"""Products with quantised weights, by the compiled kernels."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from daybreak.engine.kernels.build import library
from daybreak.engine.kernels.structures import Matrix
from daybreak.engine.packed import Packed, group_of
from daybreak.engine.quantised import Scheme


def multiply(inputs: Tensor, weights: Packed, bias: Tensor | None, outputs: int, scheme: Scheme) -> Tensor:
    """[tokens, inputs] float32 -> [tokens, outputs] float32; on the CPU, without gradients."""
    functions = library().functions
    assert functions is not None and inputs.dtype == torch.float32
    inputs = inputs.contiguous()
    tokens, width = inputs.shape
    results = torch.empty(tokens, outputs)
    places = (None if part is None else part.data_ptr() for part in (*weights, bias))
    matrix = Matrix(scheme.bits, *places, outputs, width, group_of(scheme), scheme.group is None)
    functions.linear(
        ctypes.byref(matrix),
        ctypes.c_void_p(inputs.data_ptr()),
        ctypes.c_int64(tokens),
        ctypes.c_void_p(results.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return results
