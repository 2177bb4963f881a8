"""Does it write Python? Functions that go on from real `def` lines, and whether they parse."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HEAD = re.compile(r"^([ \t]*)def \w+\(.*\).*:\n", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function of a real file, moved to the left margin."""

    head: str
    """The `def` line, its line break, and the indentation of the body's first line."""
    body: str
    """The rest."""


def functions(text: str) -> list[Function]:
    """Functions of a source text whose head is one line and whose body follows on lines of its own."""
    found = []
    for match in _HEAD.finditer(text):
        body = _inside(text[match.end() :], len(match[1]))
        whole = textwrap.dedent(match[0] + body)
        head = re.match(r".*\n\s*", whole)
        if head is not None and parses(whole):
            found.append(Function(head[0], whole[head.end() :]))
    return found


def shuffled(texts: Sequence[str], seed: int) -> list[Function]:
    """The functions of all texts in random order."""
    every = [function for text in texts for function in functions(text)]
    return [every[number] for number in np.random.default_rng(seed).permutation(len(every))]


def complete(head: str, continuation: str, finished: bool) -> str:
    """The function at the beginning of a longer text: up to the next line on the left margin.

    Where there is no such line and the text is not `finished` (it was cut off at a length), the last line is
    taken for incomplete and left out.
    """
    first, _, rest = (head + continuation).partition("\n")
    inside = _inside(rest, 0)
    if inside == rest and not finished:
        inside = rest[: rest.rfind("\n") + 1]
    return f"{first}\n{inside}"


def parses(source: str) -> bool:
    """Does Python's own parser accept it?"""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _inside(text: str, margin: int) -> str:
    """The lines from the beginning that are blank or stand further right than `margin`."""
    end = 0
    for line in re.finditer(r".*\n?", text):
        content = line[0].lstrip(" \t")
        if content.strip() and len(line[0]) - len(content) <= margin:
            break
        end = line.end()
    return text[:end]
