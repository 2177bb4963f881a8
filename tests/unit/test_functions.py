"""Functions cut out of source text, and what counts as one that parses."""

from __future__ import annotations

import ast

import pytest

from daybreak.data.standard_library import standard_library
from daybreak.quickstart.functions import complete, functions, parses, shuffled

SOURCE = '''\
import os

class Thing:
    def first(self, a, b=(1, 2)):
        """What it does."""
        if a:
            return b

        return a

    def one_line(self): return 1

    def spread(self,
               over):
        return over

def second(x) -> int:

    # a comment
    return x
print(second(1))
'''


def test_functions_are_found_and_moved_to_the_margin() -> None:
    first, second = functions(SOURCE)
    assert first.head == "def first(self, a, b=(1, 2)):\n    "
    assert first.body == '"""What it does."""\n    if a:\n        return b\n\n    return a\n\n'
    assert (second.head, second.body) == ("def second(x) -> int:\n\n    ", "# a comment\n    return x\n")


def test_functions_of_real_files_parse_and_are_one_function() -> None:
    texts = [file.text for file in standard_library() if file.name in ("argparse.py", "json/decoder.py")]
    drawn = shuffled(texts, seed=1)
    assert len(drawn) > 40
    for function in drawn:
        (node,) = ast.parse(function.head + function.body).body
        assert isinstance(node, ast.FunctionDef)


def test_the_draw_depends_on_the_seed_alone() -> None:
    texts = [SOURCE]
    assert shuffled(texts, seed=2) == shuffled(texts, seed=2)
    assert {tuple(shuffled(texts, seed)) for seed in range(20)} == {
        tuple(functions(SOURCE)),
        tuple(functions(SOURCE)[::-1]),
    }


HEAD = "def f(x):\n    "


@pytest.mark.parametrize(
    ("continuation", "finished", "result"),
    [
        ("return x\n\ndef g():\n    pass\n", False, "return x\n\n"),  # another function begins
        ("return x\n    y = (", False, "return x\n"),  # cut off at a length
        ("return x\n    y = (", True, "return x\n    y = ("),  # the model ended it so
        ("return x", True, "return x"),
        ("return x", False, ""),  # nothing is complete
        ("if x:\n\ty()\n", True, "if x:\n\ty()\n"),
        ("return x\n    \n  # less\nend", False, "return x\n    \n  # less\n"),
    ],
)
def test_the_function_ends_at_the_margin(continuation: str, finished: bool, result: str) -> None:
    head = HEAD if result else "def f(x):\n"
    assert complete(HEAD, continuation, finished) == head + result


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ("def f():\n    return 1\n", True),
        ("def f():\n    return (1\n", False),
        ("def f():\n", False),
        ("\0", False),
    ],
)
def test_the_parser_decides(source: str, accepted: bool) -> None:
    assert parses(source) is accepted
