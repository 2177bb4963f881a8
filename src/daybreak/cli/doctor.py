"""`daybreak doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daybreak.cli import plain

WOULD_STOP = 1


def doctor(
    data: Annotated[Path | None, typer.Option(help="Token shards that the run will read.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")] = False,
) -> int:
    """What a training run needs, and whether this machine has it: devices, compiler, backends, data, disk.

    Under torchrun or srun also who reaches whom, whose clock differs, and whether all see the run's folder:
    torchrun --nproc-per-node 2 -m daybreak.cli.main doctor --out runs/first.

    Exit status: 0, or 1 when something would stop a run.
    """
    import dataclasses
    import os

    from daybreak.train import doctor as logic

    checks = logic.examine(data, out)
    # Under srun or torchrun one process speaks for all, unless it was not to be found.
    alone = any(check.name == logic.MEETING for check in checks)
    if not alone and int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) != 0:
        return 0
    if as_json:
        plain.print_json([dataclasses.asdict(check) for check in checks])
    else:
        print("\n".join(logic.lines(checks)))
    return WOULD_STOP if logic.worst(checks) == "problem" else 0
