"""What a cut model keeps, sums, clips, gathers and writes, beside the same model on one process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, optim
from torch.distributed.tensor import DTensor, distribute_tensor

from daybreak import families
from daybreak.architecture import Rotary
from daybreak.compare.redraw import redraw
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import token_losses
from daybreak.objectives.causal import Causal
from daybreak.train import tensor_parallel
from daybreak.train.muon import Muon
from daybreak.train.parallel import clip, gather_back, gradient_norm, parallelise
from daybreak.train.settings import ParallelSettings
from daybreak.train.step import share
from daybreak.train.world import World
from tests.unit.processes import together
from tests.unit.tiny_training import VOCABULARY, model_of

BIASES = frozenset({"mlp", "qkv", "out"})
DESIGNS: dict[str, dict[str, Any]] = {
    "bloom": {},  # a tied head, slopes by head
    "opt": {"embedding_width": 20, "inner": 48},  # maps around the blocks, a table of positions
    "gpt_j": {"positions": Rotary(4, "neighbours")},  # an untied head with a bias
    "llama": {"width": 32, "heads": 8, "key_heads": 4, "positions": Rotary(4, "halves"), "biases": BIASES},
}
LAYOUTS = {
    "shards": ParallelSettings(),
    "tensor": ParallelSettings(tensor=4),
    "replicas": ParallelSettings(replicas=4),
    "shards and tensor": ParallelSettings(tensor=2),
}
SEQUENCES, LENGTH = 4, 12
CPU = torch.device("cpu")


def decoder_of(name: str) -> Decoder:
    decoder = model_of(name, **DESIGNS[name]).decoder
    redraw(decoder, 0)
    return decoder


def losses(decoder: Decoder, world: World) -> Tensor:
    """Of this process's sequences, a sum, divided as all processes divide it."""
    numbers = share(SEQUENCES, 0, world)
    tokens = torch.stack([texts()[number] for number in numbers])
    return token_losses(decoder, Causal().batch(tokens, numbers)).sum() / (SEQUENCES * LENGTH)


def texts() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)


def whole(tensor: Tensor) -> Any:
    """As an array, which goes through a pipe without the process that sent it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone().numpy()


def gradients(decoder: Decoder, world: World, bfloat16: bool = False) -> dict[str, Any]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = losses(decoder, world)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = dict(decoder.named_parameters())
    found = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    before = gradient_norm(decoder, world).item()
    full = {name: whole(one) for name, one in found.items()}
    clip(decoder, 0.5, torch.tensor(before))
    return {
        "loss": world.sum(loss).item(),
        "gradients": full,
        "norm": before,
        "clipped": gradient_norm(decoder, world).item(),
        "alike": all(
            isinstance(parameters[name].data, DTensor)
            and one.placements == parameters[name].placements
            and one.device_mesh == next(iter(found.values())).device_mesh
            for name, one in found.items()
        )
        or world.mesh is None,
    }


def bytes_kept(decoder: Decoder) -> int:
    parts = [one.to_local() if isinstance(one, DTensor) else one for one in decoder.parameters()]
    storages = [part.untyped_storage() for part in parts]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def muon_step(decoder: Decoder, kind: type[optim.Muon]) -> dict[str, Any]:
    """The matrices of the blocks after two steps along gradients that are drawn, so alike to the bit."""
    generator = torch.Generator().manual_seed(9)
    matrices = {name: one for name, one in decoder.named_parameters() if "blocks" in name and one.ndim == 2}
    optimizer = kind(matrices.values(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for one in matrices.values():
            drawn = torch.randn(one.shape, generator=generator)
            one.grad = drawn
            if isinstance(one.data, DTensor):
                same = distribute_tensor(drawn, one.device_mesh, src_data_rank=None)
                one.grad = same.redistribute(placements=one.placements)
        optimizer.step()
    return {name: whole(one) for name, one in matrices.items()}


def cases(world: World) -> dict[str, Any]:
    """Everything that is compared, in one layout."""
    found: dict[str, Any] = {}
    for name in DESIGNS:
        decoder = decoder_of(name)
        parallelise(decoder, world)
        found[name] = gradients(decoder, world)
    decoder = decoder_of("bloom")
    parallelise(decoder, world, recompute=True)
    found["recomputed"] = gradients(decoder, world)
    decoder = decoder_of("bloom")
    parallelise(decoder, world)
    found["bytes"] = bytes_kept(decoder)
    found["bfloat16"] = gradients(decoder, world, bfloat16=True)
    found["muon"] = muon_step(decoder, Muon)
    for one in decoder.parameters():
        one.grad = torch.ones_like(one)
    if world.rank == world.size - 1:
        last = decoder.blocks[1].mlp.up.weight.grad
        (last.to_local() if isinstance(last, DTensor) else last).fill_(math.nan)
    found["not finite"] = gradient_norm(decoder, world).item()
    found["written"] = written(world)
    found["world"] = (
        world.data_rank,
        world.sum(torch.tensor(world.data_rank + 1)).item(),
        world.agree(world.rank),
    )
    return found


def written(world: World) -> list[Any]:
    """What models write between two steps, and whether the weights are cut again afterwards."""
    results: list[Any] = []
    for name in ("bloom", "llama"):
        model = model_of(name, **DESIGNS[name])
        redraw(model.decoder, 0)
        parallelise(model.decoder, world)
        losses(model.decoder, world).backward()  # type: ignore[no-untyped-call]
        model.decoder.zero_grad()
        first = model.generate([[3, 1, 4], [1, 5]], max_new_tokens=4)
        gather_back(model.decoder)
        cut = all(isinstance(one.data, DTensor) for one in model.decoder.parameters())
        losses(model.decoder, world).backward()  # type: ignore[no-untyped-call]
        results.append(([list(text.tokens) for text in first], cut or world.mesh is None))
        results.append(gradient_norm(model.decoder, world).item())
    return results


def every_layout() -> dict[str, dict[str, Any]]:
    return {label: cases(World.arranged(settings, CPU)) for label, settings in LAYOUTS.items()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return cases(World.alone(CPU))


@pytest.fixture(scope="module")
def found() -> list[dict[str, dict[str, Any]]]:
    """By rank."""
    return together(4, every_layout, timeout=300)


@pytest.fixture(params=LAYOUTS)
def ranks(request: pytest.FixtureRequest, found: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [own[request.param] for own in found]


def test_gradients_are_the_sum_over_all_sequences(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for own in ranks:
        for case in [*DESIGNS, "recomputed"]:
            expected, got = alone[case], own[case]
            assert got["loss"] == pytest.approx(expected["loss"], rel=1e-6)
            assert got["norm"] == pytest.approx(expected["norm"], rel=1e-5)
            assert got["gradients"].keys() == expected["gradients"].keys()
            for name, gradient in got["gradients"].items():
                assert gradient == pytest.approx(expected["gradients"][name], abs=1e-5 * expected["norm"])


def test_recomputation_changes_nothing(alone: dict[str, Any]) -> None:
    for name, gradient in alone["recomputed"]["gradients"].items():
        assert np.array_equal(gradient, alone["bloom"]["gradients"][name])


def test_gradients_are_clipped_as_a_whole(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for own in [alone, *ranks]:
        assert all(own[name]["norm"] > 0.5 for name in DESIGNS)
        assert all(own[name]["clipped"] == pytest.approx(0.5, rel=1e-5) for name in DESIGNS)


def test_norms_are_of_whole_gradients(alone: dict[str, Any]) -> None:
    for name in DESIGNS:
        every = np.concatenate([one.flatten() for one in alone[name]["gradients"].values()])
        assert alone[name]["norm"] == pytest.approx(float(np.linalg.norm(every)), rel=1e-5)


def test_parameters_are_of_one_kind_for_fused_optimizers(ranks: list[dict[str, Any]]) -> None:
    assert all(own[name]["alike"] for own in ranks for name in DESIGNS)


def test_one_bad_number_anywhere_is_seen_by_all(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert all(math.isnan(own["not finite"]) for own in [alone, *ranks])


def test_muon_orthogonalises_whole_matrices(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    expected = muon_step(decoder_of("bloom"), optim.Muon)
    for own in [alone, *ranks]:
        assert all(np.array_equal(own["muon"][name], matrix) for name, matrix in expected.items())


def test_every_process_keeps_its_part_only(
    found: list[dict[str, dict[str, Any]]], alone: dict[str, Any]
) -> None:
    for label, parts in {"shards": 4, "tensor": 4, "shards and tensor": 4}.items():
        for own in found:
            assert own[label]["bytes"] < 1.5 * alone["bytes"] / parts, label
    assert all(own["replicas"]["bytes"] <= 1.1 * alone["bytes"] for own in found)


def test_products_in_bfloat16(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for own in ranks:
        assert own["bfloat16"]["loss"] == pytest.approx(alone["bfloat16"]["loss"], rel=2e-3)
        assert own["bfloat16"]["norm"] == pytest.approx(alone["bfloat16"]["norm"], rel=2e-2)


def test_models_write_between_steps(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for own in ranks:
        for got, expected in zip(own["written"], alone["written"], strict=True):
            assert got == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_who_reads_what(found: list[dict[str, dict[str, Any]]]) -> None:
    expected = {
        "shards": [0, 1, 2, 3],
        "tensor": [0, 0, 0, 0],
        "replicas": [0, 1, 2, 3],
        "shards and tensor": [0, 0, 1, 1],
    }
    for label, ranks in expected.items():
        total = sum(range(1, max(ranks) + 2))
        assert [own[label]["world"] for own in found] == [(rank, total, 3) for rank in ranks], label


def test_heads_must_divide() -> None:
    architecture = families.by_name("llama").architecture(
        width=48, heads=6, key_heads=2, positions=Rotary(8, "halves"), inner=64
    )
    tensor_parallel.check(architecture, 2)
    with pytest.raises(DaybreakError, match=r"heads 6 cannot be divided among parallel.tensor 4"):
        tensor_parallel.check(architecture, 4)
    with pytest.raises(DaybreakError, match="key_heads 2 cannot"):
        tensor_parallel.check(architecture, 3)
