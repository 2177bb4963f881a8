"""The one decoder. It reads an `Architecture` and knows no family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.architecture import Alibi, Architecture, Learned, Rotary
from daybreak.errors import DaybreakError
from daybreak.model.attention import Attention, Sight
from daybreak.model.cache import Cache, Past
from daybreak.model.positions import Turns, alibi_slopes, rotary_turns
from daybreak.model.reading import Reading

if TYPE_CHECKING:
    from daybreak.model.lora import Switch

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Mlp(nn.Module):
    """Two linear maps with an activation between; gated, a third map's activation multiplies the first."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        bias = "mlp" in architecture.biases
        if architecture.gated:
            self.gate = nn.Linear(architecture.width, architecture.inner, bias=bias)
        self.up = nn.Linear(architecture.width, architecture.inner, bias=bias)
        self.down = nn.Linear(architecture.inner, architecture.width, bias=bias)
        self.activation = ACTIVATIONS[architecture.activation]()
        self.gated = architecture.gated

    def forward(self, inputs: Tensor) -> Tensor:
        if self.gated:
            inner = self.activation(self.gate(inputs)) * self.up(inputs)
        else:
            inner = self.activation(self.up(inputs))
        result: Tensor = self.down(inner)
        return result


class Block(nn.Module):
    """Attention and MLP, and the places of their norms and residuals."""

    def __init__(self, architecture: Architecture, layer: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.attention_norm = _norm(architecture)
        self.attention = Attention(architecture, layer)
        if not architecture.shared_norm:
            self.mlp_norm = _norm(architecture)
        self.mlp = Mlp(architecture)

    def forward(self, hidden: Tensor, sight: Sight, turns: Turns | None, cache: Past | None) -> Tensor:
        """[batch, length, width] -> the same."""
        if self.architecture.block == "post":
            hidden = self.attention_norm(hidden + self.attention(hidden, sight, turns, cache))
            return self.mlp_norm(hidden + self.mlp(hidden))  # type: ignore[no-any-return]
        normed = self.attention_norm(hidden)
        if self.architecture.block == "parallel":
            mlp_normed = normed if self.architecture.shared_norm else self.mlp_norm(hidden)
            return hidden + self.attention(normed, sight, turns, cache) + self.mlp(mlp_normed)  # type: ignore[no-any-return]
        hidden = self._carried(hidden, normed) + self.attention(normed, sight, turns, cache)
        normed = self.mlp_norm(hidden)
        return self._carried(hidden, normed) + self.mlp(normed)  # type: ignore[no-any-return]

    def _carried(self, hidden: Tensor, normed: Tensor) -> Tensor:
        carried = normed if self.architecture.residual == "normed" else hidden
        return (
            carried if self.architecture.residual_scale == 1.0 else carried * self.architecture.residual_scale
        )


class Tied(nn.Module):
    """The head whose matrix is the token embedding: no weights of its own, but a place where a layout over
    several processes can take hold.
    """

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """[.., width] and [vocabulary, width] -> [.., vocabulary]."""
        return functional.linear(hidden, embedding)


class Decoder(nn.Module):
    """A decoder-only transformer: token ids to logits."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        narrow = architecture.embedding_width or width
        self.tokens = nn.Embedding(architecture.vocabulary, narrow)
        if architecture.embedding_width is not None:
            self.project_in = nn.Linear(narrow, width, bias=False)
            self.project_out = nn.Linear(width, narrow, bias=False)
        if isinstance(architecture.positions, Learned):
            spare = 1 if architecture.positions.blocks else 0  # places within a piece count from 1
            rows = architecture.context + architecture.positions.offset + spare
            self.positions = nn.Embedding(rows, width)
            if architecture.positions.blocks:
                self.block_positions = nn.Embedding(rows, width)
        if architecture.embedding_norm:
            self.embedding_norm = _norm(architecture)
        self.blocks = nn.ModuleList(Block(architecture, layer) for layer in range(architecture.layers))
        if architecture.final_norm:
            self.final_norm = _norm(architecture)
        self.part = (0, 1)
        """Which part of each layer's heads is computed here, of how many equal ones (tensor parallelism)."""
        self.switch: Switch | None = None
        """Of its adapters, where it has any; see `daybreak.model.adapters`."""
        if architecture.tied:
            self.tied_head = Tied()
        else:
            self.head = nn.Linear(narrow, architecture.vocabulary, bias="head" in architecture.biases)

    def forward(self, reading: Reading, cache: Past | None = None) -> Tensor:
        """What the head reads: [batch, length, width] (or the embedding's width), in the weights' dtype.

        With a `cache`, its tokens are the past of this reading, and this reading's are added to it.
        """
        if cache is not None:
            cache.admit(reading)
        hidden = self.embed(reading)
        turns, sights = self.arrangement(reading)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, sights[self.architecture.window(layer)], turns, cache)
        if cache is not None:
            cache.advance(reading.length)
        if self.architecture.final_norm:
            hidden = self.final_norm(hidden)
        return self.project_out(hidden) if self.architecture.embedding_width is not None else hidden

    def unembed(self, hidden: Tensor) -> Tensor:
        """The head: [.., width] -> [.., vocabulary], in the weights' dtype."""
        if self.architecture.tied:
            return self.tied_head(hidden, self.tokens.weight)  # type: ignore[no-any-return]
        return self.head(hidden)  # type: ignore[no-any-return]

    def logits(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """[batch, length] int64 -> [batch, length, vocabulary] float32; for the other arguments see
        `Reading.of`.
        """
        return self.unembed(self(self.reading(tokens, mask, lengths, cache), cache)).float()

    def reading(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
        cache: Cache | None = None,
    ) -> Reading:
        """The arrangement of `tokens` [batch, length] for this decoder: `Reading.of` with its own blanks."""
        return Reading.of(tokens, mask, lengths, cache, self.architecture.blanks)

    def embed(self, reading: Reading) -> Tensor:
        """What the first block reads, [batch, length, width]."""
        hidden: Tensor = self.tokens(reading.tokens)  # [batch, length, width]
        if self.architecture.embedding_width is not None:
            hidden = self.project_in(hidden)
        if isinstance(self.architecture.positions, Learned):
            self._check_length(reading)
            hidden = hidden + self.positions(reading.positions + self.architecture.positions.offset)
            if self.architecture.positions.blocks:
                hidden = hidden + self.block_positions(reading.blocks)
        return self.embedding_norm(hidden) if self.architecture.embedding_norm else hidden

    def arrangement(self, reading: Reading) -> tuple[Turns | None, dict[int | None, Sight]]:
        """What blocks need to know of a reading beside its hidden states: rotations, and who sees whom, by
        the window of a layer."""
        rotary = self.architecture.positions
        turns = rotary_turns(rotary, reading) if isinstance(rotary, Rotary) else None
        return turns, self._sights(reading)

    def _sights(self, reading: Reading) -> dict[int | None, Sight]:
        """One per window: layers of the same window share their masks."""
        slopes = None
        if isinstance(self.architecture.positions, Alibi):
            every = torch.tensor(alibi_slopes(self.architecture.heads), device=reading.tokens.device)
            slopes = every.chunk(self.part[1])[self.part[0]]
        return {window: Sight.of(reading, window, slopes) for window in set(self.architecture.windows)}

    def _check_length(self, reading: Reading) -> None:
        context = self.architecture.context
        if reading.start + reading.length <= context:
            return  # the common case, without asking the device
        longest = int(reading.positions.max()) + 1
        if reading.blocks is not None:
            # Both tables have a row more than the context, and places within a piece count from 1.
            longest = max(longest - 1, int(reading.blocks.max()))
        if longest > context:
            raise DaybreakError(
                f"the text has {longest} tokens, but the model's position table ends at "
                f"{context}; shorten the text"
            )


def _norm(architecture: Architecture) -> nn.LayerNorm | nn.RMSNorm:
    kind = nn.LayerNorm if architecture.norm == "layer" else nn.RMSNorm
    return kind(architecture.width, eps=architecture.norm_eps, elementwise_affine=architecture.norm_affine)
