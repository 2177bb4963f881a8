"""AWD-LSTM without dropout as loops over texts, tokens and layers, in float64; written from the equations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Row = list[float]


def logits(parameters: Mapping[str, Tensor], layers: int, tokens: Sequence[int]) -> list[Row]:
    """Scores of every word after each token of one text; `parameters` by the names in the model."""
    weights = {name: tensor.double().tolist() for name, tensor in parameters.items()}
    scores = []
    for output in outputs(weights, layers, tokens):
        heads = zip(weights["tokens.weight"], weights["head_bias"], strict=True)
        scores.append([_dot(row, output) + bias for row, bias in heads])
    return scores


def outputs(weights: Mapping[str, list], layers: int, tokens: Sequence[int]) -> list[Row]:
    """What the last layer gives after each token."""
    hidden = [[0.0] * len(weights[f"layers.{i}.state_weight"][0]) for i in range(layers)]
    cell = [list(row) for row in hidden]
    found = []
    for token in tokens:
        reads = weights["tokens.weight"][token]
        for i in range(layers):
            hidden[i], cell[i] = _step(weights, f"layers.{i}", reads, hidden[i], cell[i])
            reads = hidden[i]
        found.append(reads)
    return found


def _step(weights: Mapping[str, list], layer: str, reads: Row, hidden: Row, cell: Row) -> tuple[Row, Row]:
    width = len(hidden)
    sums = [
        _dot(weights[f"{layer}.input_weight"][k], reads)
        + _dot(weights[f"{layer}.state_weight"][k], hidden)
        + weights[f"{layer}.input_bias"][k]
        + weights[f"{layer}.state_bias"][k]
        for k in range(4 * width)
    ]
    new_hidden, new_cell = [], []
    for k in range(width):
        enter, forget, leave = (_sigmoid(sums[gate * width + k]) for gate in (0, 1, 3))
        new_cell.append(forget * cell[k] + enter * math.tanh(sums[2 * width + k]))
        new_hidden.append(leave * math.tanh(new_cell[-1]))
    return new_hidden, new_cell


def pooled(found: Sequence[Row]) -> Row:
    """The last output, the largest of each component, and the mean."""
    columns = list(zip(*found, strict=True))
    return [*found[-1], *map(max, columns), *(sum(column) / len(column) for column in columns)]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def redrawn(model: torch.nn.Module, seed: int) -> None:
    """Every parameter and every statistic of norms another number, so that nothing hides behind a 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                drawn = torch.rand(buffer.shape, generator=generator) + 0.5
                buffer.copy_(drawn if name.endswith("var") else drawn - 1)
