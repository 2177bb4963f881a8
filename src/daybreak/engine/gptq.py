"""Rounding that knows what a matrix reads: the error of each weight is made up for by the weights of its row
that are still to be rounded (GPTQ, Frantar et al. 2022, arXiv 2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daybreak.engine.quantised import Quantised, Scheme
from daybreak.engine.searched import Grid, searched
from daybreak.errors import DaybreakError

DAMPING = 0.01
"""Of the mean of the diagonal, added to it (section 3.3); ten times as much where that is not enough."""
COLUMNS = 128
"""After so many the others are told of the errors, in one product (section 3.3, "lazy batch-updates")."""
AT_ONCE = 1 << 19
"""Weights that are rounded together. Rows know nothing of each other."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of the inputs of matrices, from a text that was read."""

    order: Tensor
    """[width] int64: in which they are rounded, those that are largest first."""
    upper: Tensor
    """float32 [width, width], in this order: U, upper triangular, where U'U is the inverse of the damped
    Hessian (step 3 of section 3.3)."""
    squares: Tensor
    """float32 [width]: mean squares, in the matrix's own order."""

    @classmethod
    def of(cls, hessian: Tensor, name: str = "a matrix") -> Inputs:
        """From the mean products of inputs with each other, [width, width] float32; a factor of it does not
        matter. Raises `DaybreakError` with the `name` for what is not finite."""
        if not hessian.isfinite().all():
            raise DaybreakError(
                f"{name}: what it reads of the calibration text is not finite, so nothing can be learned "
                "from it; take another text, or leave it out"
            )
        squares = hessian.diagonal().clone()
        order = squares.argsort(descending=True, stable=True)
        return cls(order, _factor(hessian[order][:, order].double()), squares)


def _factor(hessian: Tensor) -> Tensor:
    """U, in float32. With H = VV', V upper triangular, it is V's inverse: no inverse of H is needed."""
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal <= 0] = mean  # inputs that were always 0: their weights are rounded by themselves
    damping = DAMPING * mean
    diagonal += damping
    while int((found := torch.linalg.cholesky_ex(hessian.flip(0, 1))).info):
        diagonal += 9 * damping
        damping *= 10
    lower = found.L.flip(0, 1)
    del found
    one = hessian.zero_().fill_diagonal_(1)  # in its memory: each of these is as large as all
    upper: Tensor = torch.linalg.solve_triangular(lower, one, upper=True)
    return upper.float()


def fitted(weight: Tensor, inputs: Inputs, scheme: Scheme, name: str = "a matrix") -> Quantised:
    """`weight` [rows, width], of any dtype, rounded for `inputs`.

    Scales and zero points are settled before, so that the inputs of a group need not follow one another in
    the order of rounding. Raises `DaybreakError` with the `name` for weights that are not finite.
    """
    rows, width = weight.shape
    step = max(1, AT_ONCE // width)
    numbers = torch.empty(rows, width, dtype=torch.uint8)
    scales, zeros = (torch.empty(rows, -(-width // (scheme.group or width))) for _ in range(2))
    for first in range(0, rows, step):
        some = slice(first, first + step)
        turned = weight[some].float().t().contiguous()  # [width, rows]: an input's weights lie together
        if not turned.isfinite().all():
            raise DaybreakError(f"{name} has weights that are not finite, so it cannot be quantised")
        grid = searched(turned, inputs.squares, scheme)
        numbers[some] = _swept(turned, inputs, scheme, grid).t()
        scales[some], zeros[some] = grid.scales.t(), grid.zeros.t()
    return Quantised(numbers, scales, zeros if scheme.zeros else None, scheme.bits, scheme.group)


def _swept(weight: Tensor, inputs: Inputs, scheme: Scheme, grid: Grid) -> Tensor:
    """Numbers [width, rows] uint8 for `weight` [width, rows]: algorithm 1 of the paper."""
    width, rows = weight.shape
    order, upper = inputs.order, inputs.upper
    groups = (order // (scheme.group or width)).tolist()
    left = weight[order]
    numbers = torch.empty(width, rows, dtype=torch.uint8)
    for begin in range(0, width, COLUMNS):
        end = min(begin + COLUMNS, width)
        errors = torch.empty(end - begin, rows)
        for place in range(begin, end):
            near = grid.nearest(left[place], groups[place])
            numbers[place] = near
            error = errors[place - begin] = (left[place] - grid.whole(near, groups[place])) / upper[
                place, place
            ]
            left[place + 1 : end].addr_(upper[place, place + 1 : end], error, alpha=-1)
        left[end:].addmm_(upper[begin:end, end:].t(), errors, alpha=-1)
    return torch.empty_like(numbers).index_copy_(0, order, numbers)
