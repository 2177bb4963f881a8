"""AWD-LSTM: an LSTM language model with a tied head, and the dropouts that make it generalise.

Merity et al., Regularizing and Optimizing LSTM Language Models (arXiv 1708.02182), section 4. Every dropout
draws once for a call, not for every token: that is what keeps the state from being worn away step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from daybreak.families.recurrent import NO_DROPOUT, Dropouts, Lstm

State = list[tuple[Tensor, Tensor]]
"""Of each layer the state and the cell, [batch, width] each."""


@dataclass(frozen=True, eq=False)
class Read:
    """What came of reading some tokens."""

    raw: Tensor
    """What the last layer gave, [batch, length, width]."""
    dropped: Tensor
    """The same with the dropout of the output: what the head reads."""
    state: State
    """After the last token."""


class LstmLayer(nn.Module):
    """One layer; its gates stand in torch's order: input, forget, cell, output."""

    def __init__(self, reads: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input_weight = nn.Parameter(torch.empty(4 * width, reads))
        self.state_weight = nn.Parameter(torch.empty(4 * width, width))
        self.input_bias = nn.Parameter(torch.empty(4 * width))
        self.state_bias = nn.Parameter(torch.empty(4 * width))

    def forward(
        self, inputs: Tensor, state: tuple[Tensor, Tensor], dropout: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[batch, length, reads] and a state -> [batch, length, width] and the state after it.

        `dropout` leaves out weights from the state to the gates, once for all tokens (DropConnect); what is
        trained are the whole weights.
        """
        weight = functional.dropout(self.state_weight, dropout) if dropout else self.state_weight
        weights = [self.input_weight, weight, self.input_bias, self.state_bias]
        begin = [part[None].contiguous() for part in state]  # [1, batch, width]
        outputs, hidden, cell = torch.lstm(
            inputs, begin, weights, True, 1, 0.0, self.training, False, True
        )  # biases, layers, dropout between them, training, both directions, batch first
        return outputs, (hidden[0], cell[0])


class AwdLstm(nn.Module):
    """Token ids to logits, with a state that is carried from one call to the next."""

    def __init__(self, shape: Lstm, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__()
        self.shape, self.dropouts = shape, dropouts
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(LstmLayer(*shape.widths(layer)) for layer in range(shape.layers))
        self.head_bias = nn.Parameter(torch.empty(shape.vocabulary))

    def forward(self, tokens: Tensor, state: State | None = None) -> Read:
        """[batch, length] int64, read after `state` (None: nothing was read yet)."""
        drop = self.dropouts if self.training else NO_DROPOUT
        hidden = locked(self.embed(tokens, drop.embedding), drop.input)  # [batch, length, width]
        before = self.fresh(len(tokens)) if state is None else state
        after: State = []
        for number, layer in enumerate(self.layers):
            if number:
                hidden = locked(hidden, drop.hidden)
            hidden, reached = layer(hidden, before[number], drop.weight)
            after.append(reached)
        return Read(hidden, locked(hidden, drop.output), after)

    def embed(self, tokens: Tensor, dropout: float = 0.0) -> Tensor:
        """Rows of the embedding, those of some words 0 wherever they occur, the others scaled up for it."""
        if not dropout:
            return self.tokens(tokens)  # type: ignore[no-any-return]
        weight = self.tokens.weight
        kept = functional.dropout(weight.new_ones(len(weight), 1), dropout)  # [vocabulary, 1]
        return functional.embedding(tokens, weight * kept)

    def unembed(self, hidden: Tensor) -> Tensor:
        """The head: [.., width] -> [.., vocabulary]."""
        return functional.linear(hidden, self.tokens.weight, self.head_bias)

    def fresh(self, batch: int) -> State:
        """The state before any token: zeros."""
        widths = [self.shape.widths(layer)[1] for layer in range(self.shape.layers)]
        zeros = [self.head_bias.new_zeros(batch, width) for width in widths]
        return [(zero, zero) for zero in zeros]

    def logits(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """[batch, length] int64 -> [batch, length, vocabulary] float32. Where `mask` [batch, length] is false
        there is no token, on whichever side: what is read there changes nothing for the others.
        """
        if mask is None:
            return self.unembed(self(tokens).dropped).float()
        order = (~mask.bool()).long().argsort(dim=1, stable=True)  # a row's tokens first, in their order
        found = self.unembed(self(tokens.gather(1, order)).dropped).float()
        return found.gather(1, order.argsort(dim=1)[..., None].expand_as(found))


def locked(inputs: Tensor, dropout: float) -> Tensor:
    """Variational dropout (Gal and Ghahramani, arXiv 1512.05287): the components that a sequence loses are
    the same at every token, [batch, length, width] -> the same.
    """
    if not dropout:
        return inputs
    kept = functional.dropout(inputs.new_ones(len(inputs), 1, inputs.shape[-1]), dropout)
    return inputs * kept


def detached(state: State) -> State:
    """The same state, through which no gradient flows."""
    return [(hidden.detach(), cell.detach()) for hidden, cell in state]


def rows_of(state: State, rows: Sequence[int] | Tensor | slice) -> State:
    """The states of some texts of the batch."""
    return [(hidden[rows], cell[rows]) for hidden, cell in state]


def activation_penalty(read: Read, factor: float) -> Tensor:
    """AR (arXiv 1708.02182, section 4.6): factor times the mean square of what the head reads."""
    return factor * read.dropped.float().pow(2).mean()


def slowness_penalty(read: Read, factor: float) -> Tensor:
    """TAR, the same section: factor times the mean square of what the output changes from token to token."""
    if read.raw.shape[1] < 2:
        return read.raw.new_zeros(())
    return factor * (read.raw[:, 1:] - read.raw[:, :-1]).float().pow(2).mean()


@torch.no_grad()
def initialise_lstm(model: AwdLstm, seed: int = 0) -> None:
    """Fresh weights as fastai draws them: embedding U(-0.1, 0.1), layers U(-1/√width, 1/√width), the head's
    bias 0.
    """
    generator = torch.Generator().manual_seed(seed)
    model.tokens.weight.uniform_(-0.1, 0.1, generator=generator)
    model.head_bias.zero_()
    for number, layer in enumerate(model.layers):
        bound = model.shape.widths(number)[1] ** -0.5
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
