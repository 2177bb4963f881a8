"""What `--dry-run` says, against what torch counts and what a small run really holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from daybreak.architecture import Alibi, Architecture, Rotary
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import loss, token_losses
from daybreak.objectives.causal import Causal
from daybreak.objectives.summed import loss_sum
from daybreak.train import estimate as estimating
from daybreak.train.ceiling import ceiling
from daybreak.train.course import Course
from daybreak.train.estimate import Estimate, estimate, lines
from daybreak.train.flops import flops
from daybreak.train.memory import Cut, Kept, kept, memory
from daybreak.train.optimizers import optimizers
from daybreak.train.settings import (
    BatchSettings,
    CheckpointSettings,
    OptimizerSettings,
    ParallelSettings,
    PrecisionSettings,
    Settings,
)
from tests.unit.architectures import any_architecture

SMALL = Architecture(vocabulary=64, context=16, layers=3, width=16, heads=2, inner=40)
DESIGNS = {
    "base": SMALL,
    "rotary, parallel, own head": dataclasses.replace(
        SMALL, positions=Rotary(4), block="parallel", tied=False, biases=frozenset({"head", "mlp"})
    ),
    "distance, embedding norm": dataclasses.replace(SMALL, positions=Alibi(), embedding_norm=True),
    "gated, shared keys": dataclasses.replace(SMALL, gated=True, key_heads=1, norm="rms"),
    "narrow embedding, post": dataclasses.replace(SMALL, embedding_width=6, block="post", final_norm=False),
}


def counted(architecture: Architecture, batch: int = 2, length: int = 8) -> int:
    """FLOPs that torch counts in a step, per token."""
    decoder = Decoder(architecture)
    tokens = torch.zeros(batch, length + 1, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    # The fused kernel would compute the scores a second time on the way back.
    with counter, sdpa_kernel(SDPBackend.MATH):
        loss(decoder, Causal(architecture.blanks).batch(tokens)).backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() // (batch * length)


@pytest.mark.parametrize("name", DESIGNS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    assert flops(DESIGNS[name], 8).training == counted(DESIGNS[name])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_architecture())
def test_operations_of_any_architecture(architecture: Architecture) -> None:
    """Torch counts scores that a window hides; here they are deducted."""
    length = min(architecture.context, 6)
    if length < 3:
        return
    hidden = (
        3
        * 4
        * architecture.width
        * sum(
            length - min(length, architecture.window(layer) or length) for layer in range(architecture.layers)
        )
    )
    assert flops(architecture, length).training + hidden == counted(architecture, 1, length)


def test_blocks_that_are_computed_twice_are_work() -> None:
    found = flops(SMALL, 8)
    assert found.recomputed - found.training == found.blocks + found.attention > 0


# Memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_and_optimizer_state_are_what_a_run_holds(name: str) -> None:
    wanted = OptimizerSettings(name=name)  # type: ignore[arg-type]
    architecture = DESIGNS["rotary, parallel, own head"]
    decoder = Decoder(architecture)
    loss(decoder, Causal().batch(torch.zeros(2, 9, dtype=torch.int64))).backward()  # type: ignore[no-untyped-call]
    held = 0
    for optimizer in optimizers(decoder, wanted):
        optimizer.step()
        tensors = (value for state in optimizer.state.values() for value in state.values())
        held += sum(value.nbytes for value in tensors if isinstance(value, Tensor) and value.ndim)
    told = memory(architecture, wanted, Kept(0, 0, 0), Cut(), average=False)
    assert told.optimizer == held
    assert told.weights == told.gradients == sum(one.nbytes for one in decoder.parameters())
    assert told.average == told.gathered == 0


def really_kept(architecture: Architecture, micro: int, length: int) -> int:
    """The same count on true tensors."""
    decoder = Decoder(architecture)
    weights = {one.untyped_storage().data_ptr() for one in decoder.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss_sum(decoder, Causal().batch(torch.zeros(micro, length + 1, dtype=torch.int64)))
    del value
    return sum(one.untyped_storage().nbytes() for one in found.values())


@pytest.mark.parametrize("name", ["base", "rotary, parallel, own head", "distance, embedding norm"])
def test_what_is_kept_for_the_way_back_is_counted(name: str) -> None:
    told = kept(DESIGNS[name], 4, 16, torch.float32, recompute=False)
    logits = 4 * 16 * 64 * 4
    held = really_kept(DESIGNS[name], 4, 16)
    assert told.activations + told.head - logits == pytest.approx(held, rel=0.05)
    assert told.casts == 0


def test_losses_of_their_own_keep_their_logits() -> None:
    wide = dataclasses.replace(SMALL, vocabulary=4000)
    less, more = (kept(wide, 64, 16, torch.float32, False, one) for one in (loss_sum, token_losses))
    assert more.head - less.head > 0.9 * 64 * 16 * 4000 * 4 - 4000 * 16 * 4


def test_products_in_bfloat16_keep_copies_of_matrices_and_smaller_activations() -> None:
    whole = kept(SMALL, 4, 16, torch.float32, recompute=False)
    half = kept(SMALL, 4, 16, torch.bfloat16, recompute=False)
    matrices = sum(one.numel() for one in Decoder(SMALL).blocks.parameters() if one.ndim == 2)
    assert half.casts >= 2 * matrices and half.activations < whole.activations


def test_recomputed_blocks_keep_their_inputs() -> None:
    deep = dataclasses.replace(SMALL, layers=12)
    whole, little = (kept(deep, 4, 16, torch.float32, recompute=flag) for flag in (False, True))
    assert 12 * 4 * 16 * 16 * 4 < little.activations < whole.activations / 4


def test_cut_models_need_less_on_each_device() -> None:
    def cut(*args: object) -> object:
        return memory(SMALL, OptimizerSettings(), Kept(0, 0, 0), Cut(*args), average=True)  # type: ignore[arg-type]

    whole, shards = cut(), cut(4, 1, True)
    assert shards.weights == whole.weights // 4  # type: ignore[attr-defined]
    assert shards.optimizer == whole.optimizer // 4  # type: ignore[attr-defined]
    block = sum(one.nbytes for one in Decoder(SMALL).blocks[0].parameters())
    outside = whole.weights - 3 * block  # type: ignore[attr-defined]
    assert shards.gathered == outside + 2 * block  # type: ignore[attr-defined]
    vectors = sum(one.nbytes for name, one in Decoder(SMALL).named_parameters() if _whole(name, one))
    assert cut(1, 2).weights == vectors + (whole.weights - vectors) // 2  # type: ignore[attr-defined]


def _whole(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 1 or "positions" in name


# The whole --------------------------------------------------------------------------------------------------


def estimated(**changes: object) -> Estimate:
    given = Settings(**{"length": "10 steps", "batch": BatchSettings(8, 2), **changes})  # type: ignore[arg-type]
    return estimate(given, SMALL, Course(given, 16), measure=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(estimating, "faster_dtype", lambda: torch.float32)
    return


def test_a_run_is_its_steps() -> None:
    found = estimated()
    assert found.parameters == sum(one.numel() for one in Decoder(SMALL).parameters())
    assert (found.steps, found.tokens, found.processes) == (10, 10 * 8 * 16, 1)
    assert found.flops == found.work == 10 * 8 * 16 * flops(SMALL, 16).training
    again = estimated(precision=PrecisionSettings(recompute=True))
    assert again.flops == found.flops < again.work


def test_checkpoints_are_weights_optimizer_state_and_average() -> None:
    every = CheckpointSettings(every=2, keep=2)
    found = estimated(ema=0.99, checkpoints=every)
    assert found.checkpoint == 4 * 4 * found.parameters
    assert found.disk == 3 * found.checkpoint + 4 * found.parameters
    assert estimated(checkpoints=CheckpointSettings(every=2, background=False)).copied == 0


def test_the_settings_say_how_many_processes() -> None:
    found = estimated(parallel=ParallelSettings(replicas=2, shards=2, tensor=2))
    assert found.processes == 8
    assert "8 processes" in "\n".join(lines(found))


def test_time_is_work_over_what_the_machine_reaches() -> None:
    assert estimated().seconds is None
    found = dataclasses.replace(estimated(), ceiling=1e9, share=0.5)
    assert found.seconds == pytest.approx(found.work / 0.5e9)
    assert dataclasses.replace(found, processes=4).seconds == pytest.approx(found.work / 2e9)
    assert "50%" in lines(found)[-1]


def test_lines_tell_what_does_not_fit() -> None:
    found = estimated()
    assert "does not fit" not in "\n".join(lines(found))
    assert "does not fit" in "\n".join(lines(dataclasses.replace(found, available=1000)))


def test_the_estimate_is_json() -> None:
    told = json.loads(json.dumps(estimated().to_dict()))
    assert told["memory"]["total"] == estimated().memory.total


def test_the_ceiling_of_a_slow_dtype_is_measured_in_time() -> None:
    assert ceiling(torch.float32, seconds=0.01) > 1e8
