"""GPT-3's forward pass written with loops, for the one family whose weights nobody can compare with.

From section 2.1 of the paper (GPT-2's block; dense and locally banded layers in turn) and nothing of the
package.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def norm(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    return (x - x.mean()) / math.sqrt(x.var() + eps) * gain + bias


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits(w: Weights, tokens: list[int], layers: int, heads: int, eps: float, band: int) -> Array:
    """[length, vocabulary] from a state dict in the names and orientation of GPT-2's files."""
    x = [w["wte.weight"][t] + w["wpe.weight"][p] for p, t in enumerate(tokens)]
    for layer in range(layers):
        h = f"h.{layer}."
        sight = len(tokens) if layer % 2 == 0 else band
        x = _attend(w, h, x, heads, eps, sight)
        x = [v + _mlp(w, h, norm(v, w[h + "ln_2.weight"], w[h + "ln_2.bias"], eps)) for v in x]
    return np.stack([w["wte.weight"] @ norm(v, w["ln_f.weight"], w["ln_f.bias"], eps) for v in x])


def _attend(w: Weights, h: str, x: list[Array], heads: int, eps: float, sight: int) -> list[Array]:
    width = len(x[0])
    size = width // heads
    normed = [norm(v, w[h + "ln_1.weight"], w[h + "ln_1.bias"], eps) for v in x]
    fused = [v @ w[h + "attn.c_attn.weight"] + w[h + "attn.c_attn.bias"] for v in normed]
    out = []
    for i in range(len(x)):
        mixed = np.zeros(width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query = fused[i][:width][part]
            visible = range(max(0, i - sight + 1), i + 1)
            scores = np.array([query @ fused[j][width : 2 * width][part] / math.sqrt(size) for j in visible])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            for weight, j in zip(share, visible, strict=True):
                mixed[part] += weight * fused[j][2 * width :][part]
        out.append(x[i] + mixed @ w[h + "attn.c_proj.weight"] + w[h + "attn.c_proj.bias"])
    return out


def _mlp(w: Weights, h: str, x: Array) -> Array:
    inner = gelu(x @ w[h + "mlp.c_fc.weight"] + w[h + "mlp.c_fc.bias"])
    result: Array = inner @ w[h + "mlp.c_proj.weight"] + w[h + "mlp.c_proj.bias"]
    return result
