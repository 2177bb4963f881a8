"""Several processes that train together, on this machine: gloo, meeting at a file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import distributed

# Imported once, in the process that all others are forked from.
_IMPORTS = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "daybreak.train.checkpoints",
]


def together(size: int, job: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
    """What `job(*arguments)` returns in each of `size` processes that form the default process group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTS)
    with TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(
                target=_run, args=(rank, size, Path(folder) / "store", pipes[rank][1], job, arguments)
            )
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            results = []
            for rank, (reader, writer) in enumerate(pipes):
                writer.close()
                assert reader.poll(timeout), f"rank {rank} of {size} has not answered in {timeout} s"
                results.append(reader.recv())
        finally:
            for process in processes:
                process.join(5)
                process.kill()
                process.join()
    for rank, (good, result) in enumerate(results):
        assert good, f"rank {rank} of {size}: {result}"
    return [result for _, result in results]


def _run(
    rank: int, size: int, store: Path, answer: Connection, job: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import traceback

    import torch

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        answer.send((True, job(*arguments)))
        distributed.barrier()
    except BaseException:
        answer.send((False, traceback.format_exc()))
    finally:
        distributed.destroy_process_group()
