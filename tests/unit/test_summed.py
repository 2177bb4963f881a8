"""The sum of losses with the head's gradient made on the way forwards, beside the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak.architecture import Architecture
from daybreak.model.decoder import Decoder
from daybreak.objectives import summed
from daybreak.objectives.batch import UNSCORED, Batch, token_losses
from daybreak.objectives.summed import loss_sum
from daybreak.train.precision import products

HEADS = {
    "tied": {},
    "own": {"tied": False},
    "own with a bias": {"tied": False, "biases": frozenset({"head", "mlp"})},
    "narrow": {"embedding_width": 6},
}


def subject(head: str) -> tuple[Decoder, Batch]:
    torch.manual_seed(0)
    decoder = Decoder(
        Architecture(vocabulary=37, context=16, layers=1, width=8, heads=2, inner=16, **HEADS[head])  # type: ignore[arg-type]
    )
    torch.nn.init.normal_(decoder.tokens.weight)
    tokens = torch.randint(37, (3, 10))
    targets = torch.randint(37, (3, 10))
    targets[0, 2:5] = UNSCORED
    return decoder, Batch(decoder.reading(tokens), targets)


def gradients(decoder: Decoder, value: torch.Tensor) -> dict[str, torch.Tensor]:
    decoder.zero_grad()
    (value * 0.25).backward()  # type: ignore[no-untyped-call]
    return {name: one.grad.clone() for name, one in decoder.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 40))
def test_value_and_gradients_are_those_of_the_plain_sum(head: str, rows: int) -> None:
    decoder, batch = subject(head)
    plain = token_losses(decoder, batch).sum()
    wanted = gradients(decoder, plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summed, "ROWS", rows)
        value = loss_sum(decoder, batch)
        found = gradients(decoder, value)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(found, wanted)


def test_products_in_bfloat16_stay_near_float32() -> None:
    """As near as the plain sum in bfloat16, whose largest error is 2 % of the largest gradient here."""
    decoder, batch = subject("own with a bias")
    exact = gradients(decoder, token_losses(decoder, batch).sum())
    with products(torch.bfloat16):
        value = loss_sum(decoder, batch)
    assert value.dtype == torch.float32
    found = gradients(decoder, value)
    for name, one in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - one).abs().max() <= 0.04 * one.abs().max(), name


def test_without_gradients_there_is_the_value_alone() -> None:
    decoder, batch = subject("tied")
    with torch.no_grad():
        value = loss_sum(decoder, batch)
        torch.testing.assert_close(value, token_losses(decoder, batch).sum())
    assert not value.requires_grad


def test_logits_are_not_kept() -> None:
    decoder, batch = subject("tied")
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sum(decoder, batch)
    assert (37, 8) in kept and not any(shape[-1] == 37 for shape in kept if shape and shape[0] != 8)


def test_one_way_back_only() -> None:
    decoder, batch = subject("tied")
    value = loss_sum(decoder, batch)
    value.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()  # type: ignore[no-untyped-call]
