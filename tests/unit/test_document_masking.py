"""Documents that share a sequence: each is read and learned as if it were alone."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import daybreak
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import UNSCORED, loss, token_losses
from daybreak.objectives.causal import Causal

VOCABULARY, LENGTH = 50, 24
DESIGNS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {"positions": daybreak.architecture.Rotary(4)},
    "bloom": {},
    "gpt_neo": {"windows": (None, 5)},
}
"""Learned positions, rotary ones, ALiBi, local windows."""


@pytest.fixture(scope="module", params=DESIGNS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    sizes = {"vocabulary": VOCABULARY, "width": 16, "layers": 2, "heads": 2, "context": 64}
    model = daybreak.create(request.param, **{**sizes, **DESIGNS[request.param]}).decoder
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=random)
    return model


PARTS = st.lists(st.integers(1, LENGTH), min_size=1, max_size=12).map(
    lambda parts: [
        min(part, LENGTH + 1 - begin)
        for part, begin in zip([*parts, LENGTH + 1], accumulate(parts, initial=0), strict=True)
        if begin < LENGTH + 1
    ]
)
"""Lengths that add up to LENGTH + 1."""


@settings(max_examples=15)
@given(rows=st.lists(PARTS, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_each_document_is_learned_as_if_it_were_alone(
    decoder: Decoder, rows: list[list[int]], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    windows = torch.randint(VOCABULARY, (len(rows), LENGTH + 1), generator=random)
    batch = Causal().batch(windows, range(len(rows)), rows)
    losses = token_losses(decoder, batch).view(len(rows), LENGTH)
    targets = 0
    for row, parts in enumerate(rows):
        begin = 0
        for part in parts:
            # The document's last token predicts nothing, whether the row goes on behind it or not.
            if begin + part <= LENGTH:
                assert batch.targets[row, begin + part - 1] == UNSCORED
            if part > 1:
                alone = Causal().batch(windows[row : row + 1, begin : begin + part])
                wanted = token_losses(decoder, alone)
                torch.testing.assert_close(
                    losses[row, begin : begin + part - 1], wanted, rtol=1e-5, atol=1e-5
                )
                targets += part - 1
            begin += part
    assert int((batch.targets != UNSCORED).sum()) == targets


def test_the_loss_is_a_mean_over_what_is_predicted(decoder: Decoder) -> None:
    windows = torch.randint(VOCABULARY, (1, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    batch = Causal().batch(windows, [0], [[10, 1, 14]])
    found = token_losses(decoder, batch)
    assert int((batch.targets != UNSCORED).sum()) == 9 + 13
    torch.testing.assert_close(loss(decoder, batch), found.sum() / 22)


def test_a_sequence_of_one_document_is_as_without_masking(decoder: Decoder) -> None:
    windows = torch.randint(VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(4))
    masked = Causal().batch(windows, [0, 1], [[LENGTH + 1]] * 2)
    plain = Causal().batch(windows)
    assert torch.equal(masked.targets, plain.targets)
    torch.testing.assert_close(token_losses(decoder, masked), token_losses(decoder, plain))
