"""Other heads than the vocabulary's, on the same decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.model.few_bits import TIED, few_bits
from daybreak.model.reading import Reading


class Scorer(Decoder):
    """A decoder whose un-embedding is replaced by a projection to a few numbers per text, without a bias, as
    transformers' classifiers have it; one number is a reward."""

    def __init__(self, architecture: Architecture, labels: int = 1) -> None:
        super().__init__(architecture)  # the tied head, which has no weights, stays and is not asked
        inputs = architecture.embedding_width or architecture.width
        self.head = nn.Linear(inputs, labels, bias=False)

    def unembed(self, hidden: Tensor) -> Tensor:
        """The head: [.., width] -> [.., labels], in the weights' dtype."""
        return self.head(hidden)  # type: ignore[no-any-return]

    def scores(self, reading: Reading, last: Tensor) -> Tensor:
        """[batch, labels] float32: what the head says of each row at its place `last` [batch] int64, that of
        its last real token."""
        hidden = self(reading)  # [batch, length, width]
        return self.unembed(hidden[torch.arange(len(last), device=last.device), last]).float()


def scorer_of(decoder: Decoder, labels: int = 1, seed: int = 0) -> Scorer:
    """A scorer with the weights of `decoder`, which it shares, be they of few bits or not, and a fresh head.

    The head is drawn with variance 1 / (width + 1), so that the scores of normed states begin around 1
    (Stiennon et al. 2020, arXiv 2009.01325, appendix B.1). Raises `DaybreakError` for a design with blanks.
    """
    architecture = decoder.architecture
    if architecture.blanks is not None:
        raise DaybreakError(
            "a design with blanks reads a text in both directions and has no last token that has seen it all "
            "as it is written; take a model that reads from left to right"
        )
    with torch.device("meta"):
        scorer = Scorer(architecture, labels)
    inputs = scorer.head.in_features
    draws = torch.randn(labels, inputs, generator=torch.Generator().manual_seed(seed))
    heads = ("head", TIED)
    for name, matrix in few_bits(decoder):
        owner, _, own = name.rpartition(".")
        if name not in heads:
            setattr(scorer.get_submodule(owner), own, matrix)
    weights = {
        name: one
        for name, one in decoder.state_dict(keep_vars=True).items()
        if name.partition(".")[0] not in heads
    }
    embedding = decoder.tokens.weight
    fresh = (draws / (inputs + 1) ** 0.5).to(device=embedding.device, dtype=embedding.dtype)
    scorer.load_state_dict({**weights, "head.weight": fresh}, assign=True)
    scorer.part = decoder.part
    return scorer
