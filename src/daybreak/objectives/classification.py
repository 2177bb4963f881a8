"""Learning from labels: classes, numbers, and choices among texts (Radford et al. 2018, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import ROWS, UNSCORED


def last_real(mask: Tensor) -> Tensor:
    """[batch, length] bool, True where a token is no padding -> [batch] the place of each row's last one,
    whichever side the padding stands on."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places * mask).amax(1)


def class_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores [rows, classes], labels [rows] int64 -> cross-entropy [rows] in nats (equation 4)."""
    return functional.cross_entropy(scores, labels, reduction="none")


def number_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores [rows, 1], labels [rows] -> squared errors [rows]."""
    return (scores[:, 0] - labels) ** 2


def choice_scores(scores: Tensor, counts: list[int]) -> Tensor:
    """The scores [texts] of the options of several items, one item behind another, `counts` each ->
    [items, most options], -inf where an item has no such option (figure 1, multiple choice)."""
    beside = scores.new_full((len(counts), max(counts)), -torch.inf)
    for item, own in enumerate(torch.split(scores, counts)):
        beside[item, : len(own)] = own
    return beside


def language_losses(decoder: Decoder, hidden: Tensor, targets: Tensor, head: LanguageHead) -> Tensor:
    """The auxiliary objective (equation 5): hidden [texts, length, width], targets [texts, length] with
    `UNSCORED` at padding -> [texts] mean negative log-likelihood of each text's tokens, in nats."""
    scored = targets != UNSCORED
    vectors, wanted = hidden[scored], targets[scored]  # [predicted, width], [predicted]
    losses = [
        functional.cross_entropy(
            head(decoder, vectors[first : first + ROWS]).float(),
            wanted[first : first + ROWS],
            reduction="none",
        )
        for first in range(0, len(wanted), ROWS)
    ]
    spread = torch.zeros(targets.shape, device=hidden.device)
    if losses:  # none where each text is a single token
        spread[scored] = torch.cat(losses)
    return spread.sum(1) / scored.sum(1).clamp(min=1)


class LanguageHead(torch.nn.Module):
    """The vocabulary's head beside a classifier's: the embedding where the model ties them, else a matrix of
    its own, which is trained along and not kept."""

    def __init__(self, matrix: torch.nn.Module | None) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        """[.., width] -> [.., vocabulary]."""
        if self.matrix is None:
            return functional.linear(hidden, decoder.tokens.weight)
        found: Tensor = self.matrix(hidden)
        return found
