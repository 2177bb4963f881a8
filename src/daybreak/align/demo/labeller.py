"""The labeller: a program that says how good a function is, in the place of people.

What it asks for is stated and can be checked, so that what a policy learns of it can be, too. It is no judge
of good Python: a function that only has a docstring and returns its argument pleases it as well as any other,
and a policy that finds this out has not been badly trained, but badly asked.
"""

from __future__ import annotations

import ast
import inspect
import warnings
from dataclasses import dataclass
from typing import Any

WORDS = 3
"""A docstring says something from so many words on."""
MOST = 4.0
"""The highest score."""


@dataclass(frozen=True)
class Label:
    """What the labeller found. Everything but `parses` is False where that is."""

    parses: bool
    """Python's parser accepts the text, and it is one function and nothing else."""
    documented: bool
    """It has a docstring of at least `WORDS` words."""
    returns: bool
    """It returns or yields something that is no constant."""
    used: bool
    """What it does after the docstring reads a parameter, if it has one beside self and cls."""

    @property
    def score(self) -> float:
        """A point each, 0 to 4."""
        return float(self.parses + self.documented + self.returns + self.used)


NOTHING = Label(False, False, False, False)


def labelled(source: str, ended: bool = True) -> Label:
    """The label of a function's whole text; a text that was cut off is worth nothing, whatever it says."""
    tree = _parsed(source) if ended else None
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return NOTHING
    function = tree.body[0]
    doc = ast.get_docstring(function)
    rest = function.body if doc is None else function.body[1:]
    nodes = [node for statement in rest for node in ast.walk(statement)]
    parameters = {one.arg for one in _parameters(function.args)} - {"self", "cls"}
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return Label(
        parses=True,
        documented=doc is not None and len(inspect.cleandoc(doc).split()) >= WORDS,
        returns=any(map(_gives, nodes)),
        used=bool(nodes) and (not parameters or bool(parameters & read)),
    )


def _parsed(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # of escapes in strings, which are no matter here
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _gives(node: ast.AST) -> bool:
    if isinstance(node, ast.YieldFrom):
        return True
    given: Any = node.value if isinstance(node, ast.Return | ast.Yield) else None
    return given is not None and not isinstance(given, ast.Constant)


def _parameters(arguments: ast.arguments) -> list[ast.arg]:
    others = [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *others]
