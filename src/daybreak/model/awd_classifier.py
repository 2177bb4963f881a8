"""A classifier on an AWD-LSTM: long texts read in windows, pooled in three ways, and a head of two maps.

Howard and Ruder, ULMFiT (arXiv 1801.06146), section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daybreak.model.awd_lstm import AwdLstm, State, detached, rows_of


class PoolingHead(nn.Module):
    """Pooled outputs to one score for each class: twice norm, dropout, linear, with a ReLU between. The norms
    shift already, so the maps have no bias (fastai's order).
    """

    def __init__(self, width: int, inner: int, classes: int, dropouts: tuple[float, float]) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm1d(3 * width)
        self.first = nn.Linear(3 * width, inner, bias=False)
        self.second_norm = nn.BatchNorm1d(inner)
        self.second = nn.Linear(inner, classes, bias=False)
        self.drop_first, self.drop_second = (nn.Dropout(share) for share in dropouts)

    def forward(self, pooled: Tensor) -> Tensor:
        """[batch, 3 * width] -> [batch, classes]."""
        hidden = self.first(self.drop_first(self.first_norm(pooled))).relu()
        return self.second(self.drop_second(self.second_norm(hidden)))  # type: ignore[no-any-return]


class AwdClassifier(nn.Module):
    """Texts to one score for each class."""

    def __init__(
        self,
        encoder: AwdLstm,
        classes: int,
        inner: int = 50,
        dropout: float = 0.1,
        window: int = 72,
        longest: int = 1440,
    ) -> None:
        """`inner`: components between the head's maps; `dropout`: before the second one (before the first
        one it is the encoder's dropout of the output). Texts are read in windows of `window` tokens, and the
        last `longest` tokens of each enter the pool.
        """
        super().__init__()
        self.encoder = encoder
        self.window, self.longest = window, longest
        dropouts = (encoder.dropouts.output, dropout)
        self.head = PoolingHead(encoder.shape.width, inner, classes, dropouts)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """[batch, length] int64, padded behind, and the texts' lengths [batch] -> [batch, classes]."""
        outputs, counted = self.outputs(tokens, lengths)
        return self.head(concat_pool(outputs, counted))  # type: ignore[no-any-return]

    def outputs(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer gives for every token, [batch, length, width], and which of them enter the
        pool, [batch, length] bool.

        The text is read window by window with the state carried on (BPT3C): gradients reach the weights
        through the outputs of every window that enters the pool, and stop at the borders of windows. Windows
        before those are read without.
        """
        order = lengths.argsort(descending=True, stable=True)
        found = self._windows(tokens[order], lengths[order])
        outputs = found[order.argsort()]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        counted = (places < lengths[:, None]) & (places >= lengths[:, None] - self.longest)
        return outputs, counted

    def _windows(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The same for texts of falling lengths, so that those that go on are the first ones."""
        ends = lengths.tolist()
        state: State | None = None
        found = []
        for start in range(0, tokens.shape[1], self.window):
            rows = sum(end > start for end in ends)
            part = tokens[:rows, start : start + self.window]
            counts = any(start + self.window > end - self.longest for end in ends[:rows])
            with torch.set_grad_enabled(counts and torch.is_grad_enabled()):
                read = self.encoder(part, None if state is None else rows_of(state, slice(rows)))
            state = detached(read.state)
            gone = read.raw.new_zeros(len(tokens) - rows, *read.raw.shape[1:])
            found.append(torch.cat([read.raw, gone]))
        return torch.cat(found, dim=1)

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters in the order in which they are unfrozen, last first: embedding, each layer, head."""
        encoder = self.encoder
        parts: list[nn.Module] = [encoder.tokens, *encoder.layers, self.head]
        return [list(part.parameters()) for part in parts]


def concat_pool(outputs: Tensor, counted: Tensor) -> Tensor:
    """[batch, length, width] and which places count, [batch, length] bool -> [batch, 3 * width]: the last
    place's output, the largest of each component, and the mean.
    """
    away = ~counted[..., None]
    places = torch.arange(outputs.shape[1], device=outputs.device)
    last = torch.where(counted, places, -1).amax(1)  # [batch]
    latest = outputs[torch.arange(len(outputs), device=outputs.device), last]
    largest = outputs.masked_fill(away, -torch.inf).amax(1)
    mean = outputs.masked_fill(away, 0.0).sum(1) / counted.sum(1, keepdim=True)
    return torch.cat([latest, largest, mean], dim=1)


@torch.no_grad()
def initialise_head(head: PoolingHead, seed: int = 0) -> None:
    """Norms the identity, maps as torch draws them: U(-1/√inputs, 1/√inputs)."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (head.first_norm, head.second_norm):
        norm.reset_parameters()
    for linear in (head.first, head.second):
        bound = linear.in_features**-0.5
        linear.weight.uniform_(-bound, bound, generator=generator)
