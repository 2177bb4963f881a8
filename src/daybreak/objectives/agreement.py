"""How well predictions agree with labels: what tables of results print."""

from __future__ import annotations

import torch
from torch import Tensor


def of_classes(predicted: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Both [rows] int64. accuracy; f1, of the second class of two, else the mean over all classes; and for
    two classes Matthews' correlation, which CoLA is measured by."""
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    counts.index_put_((labels, predicted), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    right = counts.diagonal()
    f1 = 2 * right / (counts.sum(0) + counts.sum(1)).clamp(min=1)
    found = {"accuracy": (right.sum() / counts.sum().clamp(min=1)).item()}
    if classes == 2:
        (tn, fp), (fn, tp) = counts.tolist()
        under = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
        return {**found, "f1": f1[1].item(), "matthews": (tp * tn - fp * fn) / under if under else 0.0}
    seen = (counts.sum(0) + counts.sum(1)) > 0
    return {**found, "f1": f1[seen].mean().item() if bool(seen.any()) else 0.0}


def of_numbers(predicted: Tensor, labels: Tensor) -> dict[str, float]:
    """Both [rows]. Pearson's and Spearman's correlation, 0 where either side does not vary."""
    return {
        "pearson": _correlation(predicted.double(), labels.double()),
        "spearman": _correlation(_ranks(predicted), _ranks(labels)),
    }


def _correlation(one: Tensor, other: Tensor) -> float:
    one, other = one - one.mean(), other - other.mean()
    under = one.norm() * other.norm()
    return ((one @ other) / under).item() if under > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Equal values share the mean of their ranks."""
    place: Tensor
    equal: Tensor
    _, place, equal = values.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    below = equal.cumsum(0) - equal
    return (below + (equal + 1).double() / 2)[place]
