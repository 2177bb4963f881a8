"""Stages on datatrove's executors: on this machine, on Ray, on Slurm.

Each stage runs its steps once per task; what is through is marked by a file, and not run again.
"""

from __future__ import annotations

import copy
import fcntl
import functools
import importlib.util
import multiprocessing
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import exact_dedup, minhash
from datatrove.pipeline.dedup.minhash import tqdm
from datatrove.utils.logging import logger

from daybreak.data.build.tally import read_json, write_json
from daybreak.data.recipe import SlurmSettings
from daybreak.errors import DaybreakError

EXECUTORS = ("local", "ray", "slurm")
LOCK, STAGES, SPENT, SUBMITTED = "lock", "stages", "spent", "submitted.json"
PRELOADED = [f"daybreak.data.build.{name}" for name in ("executors", "copies", "gather", "steps")]
PATIENCE = 10.0
"""Seconds that a build waits for the workers of one that was killed."""


@dataclass(frozen=True)
class Stage:
    """Steps that every task of a stage runs one after another."""

    name: str
    steps: list[Any]
    tasks: int


Shown = Callable[[str, int, int], None]
"""A stage's name, its tasks that are through, all of them."""


def check(executor: str, slurm: SlurmSettings) -> None:
    """Raises `DaybreakError` where the executor cannot work here."""
    if executor not in EXECUTORS:
        raise DaybreakError(f"there is no executor {executor!r}; take one of {', '.join(EXECUTORS)}")
    if executor == "ray" and importlib.util.find_spec("ray") is None:
        raise DaybreakError("--executor ray needs Ray: pip install 'ray[default]'")
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise DaybreakError("--executor slurm needs Slurm's sbatch, which is not on this machine's PATH")
    if executor == "slurm" and slurm.partition is None:
        raise DaybreakError("--executor slurm needs a partition: --slurm.partition NAME, or in the recipe")


def run(
    stages: Sequence[Stage], folder: Path, executor: str, workers: int, slurm: SlurmSettings, shown: Shown
) -> bool:
    """Run the stages one after another. False: they were handed to the cluster, and go on there."""
    _quiet()
    logs = [
        folder / STAGES / f"{number}-{stage.name.replace(' ', '-')}" for number, stage in enumerate(stages)
    ]
    if executor == "slurm":
        _submit(stages, logs, workers, slurm, folder / SUBMITTED)
        return False
    for stage, log in zip(stages, logs, strict=True):
        with _watched(stage, log, shown):
            _made(executor, stage, log, workers).run()
    return True


def _made(executor: str, stage: Stage, log: Path, workers: int) -> Any:
    if executor == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=str(log))
    at_once = min(workers, stage.tasks)
    return Local(stage.steps, tasks=stage.tasks, workers=at_once, logging_dir=str(log))


def _submit(
    stages: Sequence[Stage], logs: Sequence[Path], workers: int, slurm: SlurmSettings, mark: Path
) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    last = None
    executors = []
    for stage, log in zip(stages, logs, strict=True):
        last = SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            workers=workers,
            time=slurm.time,
            partition=slurm.partition,
            cpus_per_task=slurm.cpus,
            mem_per_cpu_gb=slurm.memory,
            qos=slurm.qos,
            env_command=slurm.environment or None,
            sbatch_args=dict(slurm.sbatch),
            job_name=f"daybreak-{stage.name.replace(' ', '-')}",
            logging_dir=str(log),
            depends=last,
        )
        executors.append(last)
    assert last is not None
    write_json(mark, {"jobs": []})  # the last job takes it away, perhaps before its number is known here
    try:
        last.run()
    finally:
        # None: the command failed before it; -1: all its tasks are through.
        jobs = [str(one.job_id) for one in executors if one.job_id not in (None, -1)]
        if not jobs:
            mark.unlink()
        elif mark.exists():
            write_json(mark, {"jobs": jobs})


def check_not_submitted(folder: Path) -> None:
    """Raises `DaybreakError` where the cluster has the build already, and has not finished it."""
    mark = folder / SUBMITTED
    if not mark.exists():
        return
    jobs = read_json(mark)["jobs"]
    numbers = f" (jobs {', '.join(jobs)})" if jobs else ""
    raise DaybreakError(
        f"{folder.parent} was handed to the cluster already{numbers}, and is not finished; wait for it. If "
        f"it failed, or you cancelled it, remove {mark} to go on with what is left, or start over: --force"
    )


class Local(LocalPipelineExecutor):  # type: ignore[misc]
    """datatrove's, with other processes: its pool waits for ever for a worker that was killed."""

    pipeline: list[Any]

    def run(self) -> None:
        """Runs what is not through. Raises what a task raises, and `DaybreakError` where a worker dies."""
        ranks = self.get_incomplete_ranks()
        if not ranks:
            return
        self.save_executor_as_json()
        if self.workers == 1:
            pipeline = self.pipeline
            for rank in ranks:
                self.pipeline = copy.deepcopy(pipeline)  # steps count, and files of one task stay its own
                self._run_for_rank(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)  # imported once, not by every worker of every stage
        with ProcessPoolExecutor(self.workers, context, _begin_worker, (self._lock(),)) as pool:
            futures = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for future in as_completed(futures):
                    future.result()
            except BrokenProcessPool:
                raise DaybreakError(
                    "a worker was killed, perhaps because memory ran out; start the build again, with fewer "
                    "--workers or smaller task_megabytes: it goes on with what is not through"
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _lock(self) -> Path:
        return Path(self.logging_dir.path).parents[1] / LOCK

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> None:
        _quiet()
        began = time.process_time()
        super()._run_for_rank(rank, local_rank, node_rank)
        spent = {"seconds": time.process_time() - began, "memory": _peak()}
        write_json(Path(self.logging_dir.path) / SPENT / f"{rank:05d}.json", spent)


def _peak() -> int:
    """The most bytes of memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def spent(folder: Path) -> dict[str, dict[str, float]]:
    """By stage: seconds of processor time over all tasks, and the largest worker's bytes of memory."""
    found = {}
    for stage in sorted((folder / STAGES).glob(f"*/{SPENT}")):
        tasks = [read_json(file) for file in stage.glob("*.json")]
        seconds = round(sum(task["seconds"] for task in tasks), 3)
        found[stage.parent.name] = {"seconds": seconds, "memory": max(task["memory"] for task in tasks)}
    return found


def _quiet() -> None:
    """No lines and no bars of datatrove's on the screen."""
    logger.disable("datatrove")
    for module in (exact_dedup, minhash):
        module.tqdm = functools.partial(tqdm, disable=True)


_held: list[Any] = []
"""Keeps the lock's file open as long as the worker lives."""


def _begin_worker(lock: Path) -> None:
    """A worker whose build was killed would go on writing while the next build writes the same files."""
    handle = lock.open("a")
    fcntl.flock(handle, fcntl.LOCK_SH)
    _held.append(handle)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def look() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else builds into the folder. Raises `DaybreakError` where somebody does."""
    with (folder / LOCK).open("a") as handle:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DaybreakError(
                        f"another build is writing to {folder.parent}; wait for it, or stop it"
                    ) from None
                time.sleep(0.2)
        fcntl.flock(handle, fcntl.LOCK_SH)  # now the workers may hold it, too
        yield


@contextmanager
def _watched(stage: Stage, log: Path, shown: Shown) -> Iterator[None]:
    """Count the marks of tasks that are through, as long as the stage runs."""
    over = threading.Event()

    def through() -> int:
        return sum(1 for _ in (log / "completions").glob("*"))

    def look() -> None:
        while not over.wait(0.3):
            shown(stage.name, through(), stage.tasks)

    shown(stage.name, through(), stage.tasks)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    shown(stage.name, through(), stage.tasks)
