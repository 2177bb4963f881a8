"""A blank-infilling transformer written with loops over tokens, heads and keys: a second opinion.

From GLM's paper (arXiv 2103.10360, section 2) and the names of its published files, and nothing of the
package: the layout is read off a list of token ids, and who sees whom is decided pair by pair. Computed in
float64 where the weights are float32; torch only for its numbers and their gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Marks:
    """Token ids: what opens a piece, the blanks, and the one of them at which the text goes on to its end."""

    start: int
    blanks: tuple[int, ...]
    rest: int
    runs_on: bool = False
    """After `rest`, positions run on instead of standing still at the blank."""


@dataclass(frozen=True)
class Layout:
    """Per token of one text."""

    positions: list[int]
    places: list[int]
    """Within the piece, from 1; 0 in the context."""
    context: int
    """Tokens of the context."""

    def sees(self, query: int, key: int) -> bool:
        """The context is seen from everywhere, the pieces only from behind."""
        return key < self.context or key <= query


def layout(tokens: list[int], marks: Marks) -> Layout:
    """Where each token stands: the k-th piece at the k-th blank, but at a `rest` where there is one."""
    context = 0
    while context < len(tokens) and tokens[context] != marks.start:
        context += 1
    targets = [place for place in range(context) if tokens[place] in marks.blanks]
    endless = [place for place in range(context) if tokens[place] == marks.rest]
    if endless:
        targets = endless[:1]
    positions, places, opened = list(range(context)), [0] * context, 0
    for place in range(context, len(tokens)):
        if tokens[place] == marks.start and opened < len(targets):
            opened += 1
            places.append(1)
        else:
            places.append(places[-1] + 1)
        positions.append(place if marks.runs_on and endless else targets[opened - 1])
    return Layout(positions, places, context)


class Loops(nn.Module):
    """GLM. The modules only hold the weights, under the names of published files less the model's own name in
    front; `forward` is the loops.
    """

    described: Any = None
    """What it was built from, for whom it serves as a reference."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int, int, int],
        marks: Marks,
        eps: float,
        tanh: bool,
    ) -> None:
        """`sizes`: vocabulary, context, layers, width, heads, inner. `tanh`: the approximate gelu."""
        super().__init__()
        vocabulary, context, self.layers, width, self.heads, inner = sizes
        self.marks, self.eps, self.tanh = marks, eps, tanh
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.transformer = nn.Module()
        self.transformer.position_embeddings = nn.Embedding(context + 1, width)
        self.transformer.block_position_embeddings = nn.Embedding(context + 1, width)
        self.transformer.layers = nn.ModuleList(_layer(width, inner) for _ in range(self.layers))
        self.transformer.final_layernorm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[length] ids of one text -> [length, vocabulary]."""
        w = {name: _exact(tensor) for name, tensor in self.named_parameters()}
        text = [int(token) for token in tokens]
        found = layout(text, self.marks)
        table, trunk = w["word_embeddings.weight"], "transformer."
        first, second = (w[f"{trunk}{name}_embeddings.weight"] for name in ("position", "block_position"))
        x = [
            table[t] + first[p] + second[b]
            for t, p, b in zip(text, found.positions, found.places, strict=True)
        ]
        for number in range(self.layers):
            prefix = f"{trunk}layers.{number}."
            here = {name.removeprefix(prefix): one for name, one in w.items() if name.startswith(prefix)}
            x = [a + b for a, b in zip(x, self._attention(here, x, found), strict=True)]
            x = [a + self._mlp(here, self._norm(here, "post_attention_layernorm", a)) for a in x]
        last = {name.removeprefix(trunk): tensor for name, tensor in w.items()}
        return torch.stack([table @ self._norm(last, "final_layernorm", a) for a in x])

    def _attention(self, w: dict[str, Tensor], x: list[Tensor], found: Layout) -> list[Tensor]:
        weight, bias = w["attention.query_key_value.weight"], w["attention.query_key_value.bias"]
        fused = [weight @ self._norm(w, "input_layernorm", a) + bias for a in x]
        width = len(x[0])
        size = width // self.heads
        result = []
        for query in range(len(x)):
            keys = [key for key in range(len(x)) if found.sees(query, key)]
            mixed = []
            for head in range(self.heads):
                begin = head * size
                q = fused[query][begin : begin + size]
                k = torch.stack([fused[key][width + begin : width + begin + size] for key in keys])
                v = torch.stack([fused[key][2 * width + begin : 2 * width + begin + size] for key in keys])
                scores = k @ q / math.sqrt(size)
                shares = (scores - scores.max()).exp()
                mixed.append((shares / shares.sum()) @ v)
            result.append(w["attention.dense.weight"] @ torch.cat(mixed) + w["attention.dense.bias"])
        return result

    def _mlp(self, w: dict[str, Tensor], x: Tensor) -> Tensor:
        inner = w["mlp.dense_h_to_4h.weight"] @ x + w["mlp.dense_h_to_4h.bias"]
        if self.tanh:
            inner = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        else:
            inner = inner / 2 * (1 + torch.erf(inner / math.sqrt(2)))
        return w["mlp.dense_4h_to_h.weight"] @ inner + w["mlp.dense_4h_to_h.bias"]

    def _norm(self, w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        return centred / ((centred**2).mean() + self.eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def _layer(width: int, inner: int) -> nn.Module:
    layer = nn.Module()
    layer.input_layernorm = nn.LayerNorm(width)
    layer.post_attention_layernorm = nn.LayerNorm(width)
    layer.attention = nn.Module()
    layer.attention.query_key_value = nn.Linear(width, 3 * width)
    layer.attention.dense = nn.Linear(width, width)
    layer.mlp = nn.Module()
    layer.mlp.dense_h_to_4h = nn.Linear(width, inner)
    layer.mlp.dense_4h_to_h = nn.Linear(inner, width)
    return layer


def _exact(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.float32 else tensor
