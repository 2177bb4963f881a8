"""Files of training hold more than tensors: settings, states of random numbers, optimizers. Here such objects
become empty stand-ins, so that the tensors beside them can be read and nothing of theirs is run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


class Inert:
    """Stands for an object of any class: takes whatever that was made of, and does nothing with it."""

    def __new__(cls, *arguments: Any, **options: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def passed_over(file: Path) -> AbstractContextManager[Any]:
    """While it is entered, torch's weights-only unpickler reads `file`, a zip archive, with a stand-in for
    every class and function that it does not know. Modules that it blocks (os, sys) stay refused.
    """
    # A list of names and stand-ins is all that torch gets: it never looks the names up.
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    stand_ins: list[Any] = [(Inert, name) for name in names]
    return torch.serialization.safe_globals(stand_ins)
