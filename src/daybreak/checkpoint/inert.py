"""Files of training hold more than tensors: settings, states of random numbers, optimizers. Here such objects
become empty stand-ins, so that the tensors beside them can be read and nothing of theirs is run.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections import OrderedDict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch


class Inert:
    """Stands for an object of any class: takes whatever that was made of, and does nothing with it."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertItems(Inert):
    """Stands for an object that is filled as a list is; torch fills only what is exactly a list."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return []


class InertKeys(Inert):
    """Stands for an object that is filled as a dictionary is; it may have attributes too."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        return OrderedDict()


def passed_over(file: Path) -> AbstractContextManager[Any]:
    """While it is entered, torch's weights-only unpickler reads `file`, a zip archive, with a stand-in for
    every class and function that it does not know. Modules that it blocks (os, sys) stay refused.
    """
    # A list of names and stand-ins is all that torch gets: it never looks the names up.
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    kinds = _filled(_pickle(file)) if names else {}
    stand_ins: list[Any] = [(kinds.get(name, Inert), name) for name in names]
    return torch.serialization.safe_globals(stand_ins)


def _pickle(file: Path) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


_TAKES = {"NEWOBJ": 1, "REDUCE": 1, "BUILD": 1, "APPEND": 1, "SETITEM": 2, "APPENDS": None, "SETITEMS": None}
"""How many values an instruction takes off the one that it changes; None: all down to the mark."""
_FILLS = {"APPEND": InertItems, "APPENDS": InertItems, "SETITEM": InertKeys, "SETITEMS": InertKeys}


def _filled(pickled: bytes) -> dict[str, type[Inert]]:
    """The classes whose objects get items or keys put into them: followed through the instructions, on a
    stack that holds the names of classes and nothing else.
    """
    found: dict[str, type[Inert]] = {}
    stack: list[str] = []
    known: dict[int, str] = {}
    for instruction, argument, _ in pickletools.genops(pickled):
        if instruction.name == "GLOBAL":
            stack.append(str(argument).replace(" ", "."))
        elif instruction.name in _TAKES:
            _take(stack, _TAKES[instruction.name])
            if stack[-1] and instruction.name in _FILLS:
                found[stack[-1]] = _FILLS[instruction.name]
        elif "PUT" in instruction.name:
            known[int(str(argument))] = stack[-1]
        elif "GET" in instruction.name:
            stack.append(known[int(str(argument))])
        else:
            before = instruction.stack_before
            _take(stack, None if pickletools.markobject in before else len(before))
            made = instruction.stack_after
            stack.extend(_MARK if kind is pickletools.markobject else "" for kind in made)
    return found


_MARK = "("


def _take(stack: list[str], count: int | None) -> None:
    if count is None:
        while stack.pop() != _MARK:
            pass
    else:
        del stack[len(stack) - count :]
