"""The processes of a run: who they are, where they meet, and how they are arranged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from daybreak.errors import DaybreakError
from daybreak.train.settings import ParallelSettings

REPLICAS, SHARDS, TENSOR = "replicas", "shards", "tensor"
"""The axes of the mesh, the slowest first: tensor parallel processes are neighbours, so that the traffic of
every layer stays within a machine."""
_HOST = re.compile(r"(?:[^,\[]|\[[^\]]*\])+")
_RANGE = re.compile(r"\[([^\],-]+)[^\]]*\]")


@dataclass(frozen=True)
class Place:
    """One process among those that torchrun or srun has started."""

    rank: int
    size: int
    local_rank: int
    """Its number on its own machine."""
    address: str
    """Where rank 0 listens: host:port."""
    agent: bool = False
    """torchrun listens there itself, and wants to be asked through the environment."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """Read off the environment; None for a process that was started alone. Raises `DaybreakError` for
        numbers that make no sense.
        """
        if "RANK" in environment or "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            host, port = (_word(environment, name) for name in ("MASTER_ADDR", "MASTER_PORT"))
        elif "SLURM_STEP_NUM_TASKS" in environment:
            # Not SLURM_NTASKS: a batch script has that too, and whatever it starts without srun is alone.
            names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
            host = environment.get("MASTER_ADDR") or first_host(_word(environment, "SLURM_STEP_NODELIST"))
            port = environment.get("MASTER_PORT") or _port_of_job(environment)
        else:
            return None
        rank, size, local_rank = (_number(environment, name) for name in names)
        if rank >= size:
            raise DaybreakError(
                f"{names[0]} is {rank} and {names[1]} {size} in the environment; ranks count from 0"
            )
        return cls(rank, size, local_rank, f"{host}:{port}", names[0] == "RANK")


@dataclass(frozen=True, eq=False)
class World:
    """What a process knows about all of them. Alone it is the whole world, and every method costs nothing."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    """Replicas x shards x tensor; None: alone."""
    data_rank: int
    """Which part of a step's sequences is read here; processes that cut the same matrices read the same."""
    data_ranks: int
    tensor_ranks: int

    @classmethod
    def alone(cls, device: torch.device) -> World:
        return cls(0, 1, device, None, 0, 1, 1)

    @classmethod
    def arranged(cls, settings: ParallelSettings, device: torch.device) -> World:
        """All processes of torch's default process group. Raises `DaybreakError` if the settings speak of
        another number of processes.
        """
        rank, size = distributed.get_rank(), distributed.get_world_size()
        replicas, shards, tensor = arrangement(settings, size)
        mesh = init_device_mesh(
            device.type, (replicas, shards, tensor), mesh_dim_names=(REPLICAS, SHARDS, TENSOR)
        )
        return cls(rank, size, device, mesh, rank // tensor, replicas * shards, tensor)

    @property
    def main(self) -> bool:
        """The one process that writes and speaks for all."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every data rank's `tensor`, on all processes."""
        total = tensor.detach().clone()
        for axis in (SHARDS, REPLICAS):
            if self.mesh is not None and self.mesh[axis].size() > 1:
                distributed.all_reduce(total, group=self.mesh.get_group(axis))
        return total

    def agree(self, value: float) -> float:
        """The largest `value` of all processes, on all of them; of yes and no, whether any says yes."""
        if self.mesh is None:
            return value
        together = torch.tensor(float(value), dtype=torch.float64, device=self.device)
        distributed.all_reduce(together, distributed.ReduceOp.MAX)
        return together.item()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.mesh is not None:
            distributed.barrier()


@contextmanager
def world(settings: ParallelSettings, environment: Mapping[str, str] = os.environ) -> Iterator[World]:
    """The processes that torchrun or srun has started, which meet here; alone, there is no process group.

    Gloo joins CPUs, NCCL joins GPUs. Raises `DaybreakError` for an environment that makes no sense, settings
    for another number of processes, an absent device, and if the others cannot be reached.
    """
    place = Place.of(environment)
    arrangement(settings, 1 if place is None else place.size)
    device = _device(settings.device, 0 if place is None else place.local_rank)
    if place is None or place.size == 1:
        yield World.alone(device)
        return
    _meet(place, device)
    try:
        yield World.arranged(settings, device)
    finally:
        distributed.destroy_process_group()


def arrangement(settings: ParallelSettings, size: int) -> tuple[int, int, int]:
    """Replicas, shards and tensor ranks of `size` processes. Raises `DaybreakError` if they do not make up
    that number.
    """
    replicas, tensor = settings.replicas, settings.tensor
    shards = settings.shards if settings.shards is not None else max(1, size // max(1, replicas * tensor))
    if min(replicas, shards, tensor) < 1 or replicas * shards * tensor != size:
        raise DaybreakError(
            f"parallel.replicas {replicas} x shards {shards} x tensor {tensor} make "
            f"{replicas * shards * tensor} processes, but {size} {'runs' if size == 1 else 'run'}; start as "
            "many with torchrun --nproc-per-node or srun --ntasks, or change the three"
        )
    return replicas, shards, tensor


def first_host(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: `node[003-007,9],login1` is `node003`."""
    first = _HOST.match(nodes)
    if first is None:
        raise DaybreakError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no machine; set MASTER_ADDR")
    return _RANGE.sub(r"\1", first[0])


def _meet(place: Place, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method="env://" if place.agent else f"tcp://{place.address}",
            rank=place.rank,
            world_size=place.size,
            device_id=device if device.type == "cuda" else None,
        )
    except (distributed.DistError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise DaybreakError(
            f"rank {place.rank} of {place.size} could not meet the others at {place.address}: "
            f"{reason[0] if reason else type(error).__name__}"
        ) from error


def _device(name: str, local_rank: int) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise DaybreakError(f"parallel.device is {name!r}; it must be auto, cpu or cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise DaybreakError("parallel.device is cuda, but PyTorch sees no such device here; use auto or cpu")
    if count == 1:  # srun may show each process its own GPU only
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise DaybreakError(
            f"process {local_rank} of this machine has no GPU: there are {count}; start no more processes "
            "than GPUs"
        )
    return torch.device("cuda", local_rank)


def _word(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise DaybreakError(
            f"{name} is not set, though this process seems to be one of several; start it with torchrun or "
            "srun, or unset RANK and WORLD_SIZE to run it alone"
        )
    return value


def _number(environment: Mapping[str, str], name: str) -> int:
    value = _word(environment, name)
    if not value.isdecimal():
        raise DaybreakError(f"{name} is {value!r} in the environment; torchrun and srun set whole numbers")
    return int(value)


def _port_of_job(environment: Mapping[str, str]) -> str:
    """The same on all machines, another for another job: jobs may share a machine."""
    job, step = (environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return str(20000 + (int(job) * 7 + int(step)) % 10000) if (job + step).isdecimal() else "29500"
