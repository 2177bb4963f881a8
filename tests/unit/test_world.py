"""Who the processes are: what torchrun and srun say, and what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daybreak.errors import DaybreakError
from daybreak.train.settings import ParallelSettings
from daybreak.train.world import Place, arrangement, first_host, world

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[003-004],node9",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
}


def test_torchrun() -> None:
    assert Place.of(TORCHRUN) == Place(5, 8, 1, "10.0.0.1:29500", agent=True)


def test_srun() -> None:
    place = Place.of(SRUN)
    assert place is not None and (place.rank, place.size, place.local_rank, place.agent) == (5, 8, 1, False)
    host, port = place.address.split(":")
    assert host == "node003" and 20000 <= int(port) < 30000
    assert Place.of({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).address == place.address  # type: ignore[union-attr]
    assert Place.of({**SRUN, "SLURM_JOB_ID": "4712"}).address != place.address  # type: ignore[union-attr]
    assert Place.of({**SRUN, "MASTER_ADDR": "a", "MASTER_PORT": "1"}).address == "a:1"  # type: ignore[union-attr]


def test_torchrun_within_a_job_of_slurm() -> None:
    assert Place.of({**SRUN, **TORCHRUN}) == Place.of(TORCHRUN)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script without srun
    ],
)
def test_alone(environment: dict[str, str]) -> None:
    assert Place.of(environment) is None
    with world(ParallelSettings(device="cpu"), environment) as here:
        assert here.mesh is None and here.main and here.size == here.data_ranks == here.tensor_ranks == 1
        assert not torch.distributed.is_initialized()
        assert here.sum(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0] and here.agree(True)
        here.barrier()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": ""}, "RANK is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "8"}, "RANK is 8 and WORLD_SIZE 8"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
    ],
)
def test_what_makes_no_sense_is_named(changes: dict[str, str], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        Place.of({**TORCHRUN, **changes})


def test_nodes_of_slurm_must_be_there() -> None:
    with pytest.raises(DaybreakError, match="SLURM_STEP_NODELIST is not set"):
        Place.of({**SRUN, "SLURM_STEP_NODELIST": ""})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu1,gpu2", "gpu1"),
        ("node[003-007,9],login1", "node003"),
        ("rack[0-1]node[12-13]-ib,x", "rack0node12-ib"),
        ("a-b[2,4-8]", "a-b2"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_arrangements(replicas: int, shards: int, tensor: int) -> None:
    size = replicas * shards * tensor
    given_all = ParallelSettings(replicas=replicas, shards=shards, tensor=tensor)
    assert arrangement(given_all, size) == (replicas, shards, tensor)
    assert arrangement(ParallelSettings(replicas=replicas, tensor=tensor), size) == (replicas, shards, tensor)
    with pytest.raises(DaybreakError, match=f"make {size} processes, but {size + 1} run"):
        arrangement(given_all, size + 1)


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"tensor": 2}, 1, "make 2 processes, but 1 runs"),
        ({"tensor": 3}, 4, "tensor 3 make 3 processes, but 4 run"),
        ({"tensor": 0}, 4, "tensor 0 make 0 processes"),
        ({"replicas": -2, "shards": -2}, 4, "replicas -2"),
    ],
)
def test_numbers_that_do_not_make_up_the_processes(settings: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        arrangement(ParallelSettings(**settings), size)


def test_devices() -> None:
    with (
        pytest.raises(DaybreakError, match="device is 'gpu'"),
        world(ParallelSettings(device="gpu"), {}),
    ):
        pass
    if not torch.cuda.is_available():
        with (
            pytest.raises(DaybreakError, match="sees no such device"),
            world(ParallelSettings(device="cuda"), {}),
        ):
            pass
