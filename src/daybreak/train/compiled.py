"""The loss as one compiled program, where this machine can compile."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from daybreak.model.decoder import Decoder
from daybreak.objectives.batch import Batch
from daybreak.train.precision import Loss


@dataclass(frozen=True)
class Compilation:
    """What came of compiling."""

    loss_of: Loss
    """The compiled one, or the one given."""
    problem: str | None
    """Why it is not compiled; None if it is."""
    seconds: float


def compiler() -> str | None:
    """The C++ compiler that PyTorch's code generator would call; None if there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def compiled(loss_of: Loss, decoder: Decoder, batch: Batch) -> Compilation:
    """Compile `loss_of` for batches of this shape, and run it forwards and backwards once.

    The weights stay as they are. Without a compiler, or where compiling fails, training goes on uncompiled:
    it is slower and nothing else.
    """
    began = time.perf_counter()
    if compiler() is None:
        return Compilation(loss_of, "there is no C++ compiler (g++ or clang++) on this machine", 0.0)
    _keep_cache()
    try:
        faster = torch.compile(loss_of, dynamic=False)
        with warnings.catch_warnings():
            # Frequencies that are rounded to float16 beside weights in bfloat16 are meant.
            warnings.filterwarnings("ignore", message="bf16 and fp16 are mixed")
            faster(decoder, batch).backward()  # type: ignore[no-untyped-call]
        problem = None
    except Exception as error:  # whatever the compilers of this machine stumble over
        lines = str(error).strip().splitlines()
        problem = f"compiling failed ({type(error).__name__}: {lines[0] if lines else 'no message'})"
        torch._dynamo.reset()
    finally:
        decoder.zero_grad()
    return Compilation(faster if problem is None else loss_of, problem, time.perf_counter() - began)


def _keep_cache() -> None:
    """Compiled code goes to the user's cache folder, so that a second run need not compile again; a place
    that the environment names is respected."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home / "daybreak" / "compiled")
