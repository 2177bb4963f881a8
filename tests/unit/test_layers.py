"""The shape of the house, read from the syntax tree.

Who imports whom, which library stands in which room, no family's name outside families/, nothing too long.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from daybreak import families

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "daybreak"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

# A room imports only rooms on lines above its own, and those before it on its line.
LAYERS = [
    *("errors", "field_docs", "settings", "architecture", "rules", "parameters"),
    "families",
    "model",
    *("text", "checkpoint"),
    *("objectives", "engine", "data"),
    *("recurrent_model", "language_model", "models"),
    "train",
    "transfer",
    "quickstart",
    "align",
    "compare",
    "cli",
]
FACE = "__init__.py"
"""The package itself: it names rooms that it imports when they are asked for."""

# Each library enters through few rooms; transformers through one file, and only to be compared with.
LIBRARIES = {
    "torch": [
        "rules",
        "model",
        "text",
        "checkpoint",
        "objectives",
        "engine",
        "data",
        *("recurrent_model", "language_model"),
        "train",
        "transfer",
        "align",
        "quickstart",
        "compare",
    ],
    "numpy": ["checkpoint", "objectives", "data", "train", "quickstart", "align"],
    "safetensors": ["checkpoint", "compare"],
    "gguf": ["checkpoint"],
    "tokenizers": ["text", "data"],
    "sentencepiece": ["text"],
    "jinja2": ["text"],
    "huggingface_hub": ["checkpoint"],
    "typer": ["cli"],
    "rich": ["cli"],
    "matplotlib": ["quickstart", "data", "train", "align", "cli"],
    "yaml": ["settings"],
    "pydantic": ["settings"],
    "datatrove": ["data"],
    "pyarrow": ["data"],
    "orjson": ["data"],
    "tensorboardX": ["train/metrics.py"],
    "wandb": ["train/metrics.py"],
    "trackio": ["train/metrics.py"],
    "transformers": ["compare/reference.py"],
    "sat": ["compare/sat.py"],
}

SPELLED = {"PyYAML": "yaml"}
"""Packages whose modules have another name."""
NOT_DECLARED = {
    "sat": "comes without its dependencies, which no list can say",
    "wandb": "used where it is installed",
    "trackio": "used where it is installed",
}

LONGEST_FUNCTION = 60
LONGEST_FILE = 400


def tree(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"), file)


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def imports(file: str) -> Iterator[str]:
    """Every module imported anywhere in the file: inside functions, under TYPE_CHECKING, by name."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_to_the_left(file: str) -> None:
    if file == FACE:
        return
    here = room(file)
    assert here in LAYERS, (
        f"{file} is in no layer; add its room to the list, and to the layout in CONTRIBUTING.md"
    )
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "daybreak" and parts[1:2] != ["__version__"]:
            there = parts[1] if len(parts) > 1 else "language_model"
            assert there in LAYERS, f"{file} imports {name}, which is in no layer"
            assert LAYERS.index(there) <= LAYERS.index(here), (
                f"{file} imports {name}: {here} may not know {there}"
            )


@pytest.mark.parametrize("file", FILES)
def test_libraries_stand_in_their_rooms(file: str) -> None:
    for name in imports(file):
        library = name.split(".")[0]
        if library != "daybreak" and library not in sys.stdlib_module_names:
            assert library in LIBRARIES, f"{file} imports {library}, which has no room"
            allowed = LIBRARIES[library]
            assert room(file) in allowed or file in allowed, (
                f"{file} imports {library}; its rooms are {allowed}"
            )


def test_every_library_has_a_use_and_is_declared() -> None:
    used = {name.split(".")[0] for file in FILES for name in imports(file)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["verify"]]
    names = {re.split(r"[<>=]", line)[0] for line in declared}
    modules = {SPELLED.get(name, name) for name in names}
    assert modules | set(NOT_DECLARED) == set(LIBRARIES)
    assert set(LIBRARIES) <= used


FAMILY_NAMES = sorted(
    {
        *families.NAMES,
        *(family.model_type for family in families.everyone()),
        *(family.hf_class for family in families.everyone() if family.hf_class),
        *(size for family in families.everyone() for size in family.sizes),
        *("pythia", "galactica", "bloomz", "gptj", "gptneo", "gptneox", "neox"),
    },
    key=len,
    reverse=True,
)
NAMED = re.compile(
    r"(?<![a-z0-9])("
    + "|".join(re.escape(name).replace("_", "[-_ ]?") for name in FAMILY_NAMES)
    + r")(?![a-z0-9])",
    re.IGNORECASE,
)


def words(module: ast.Module) -> Iterator[tuple[int, str]]:
    """Identifiers and string literals with their lines; docstrings and help texts of options are prose."""
    prose = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(id(node.value))
        if isinstance(node, ast.keyword) and node.arg == "help":
            prose.update(map(id, ast.walk(node.value)))
    for node in ast.walk(module):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield line, node.value
        for field in ("id", "attr", "name", "arg"):
            if isinstance(word := getattr(node, field, None), str):
                yield line, word


@pytest.mark.parametrize("file", [file for file in FILES if room(file) != "families"])
def test_no_family_is_known_by_name(file: str) -> None:
    found = [(line, word) for line, word in words(tree(file)) if NAMED.search(word)]
    assert not found, f"{file} names a family; what it decides belongs on its page"


def test_the_search_for_names_finds_them() -> None:
    code = 'def load_bloom(x): return {"gpt2": GPTNeoXForCausalLM, "pythia-70m": x.opt}\n'
    assert {word for _, word in words(ast.parse(code)) if NAMED.search(word)} >= {"gpt2", "pythia-70m", "opt"}
    assert NAMED.search("load_bloom") and NAMED.search("GPTNeoXForCausalLM") and NAMED.search("is_gpt_neox")
    assert not any(map(NAMED.search, ("option", "optimizer", "adopt", "gelu_tanh", "bloomed", "families")))


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_too_long(file: str) -> None:
    assert len((SOURCE / file).read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{file}: {node.name} is too long"


def test_most_functions_are_short() -> None:
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef)
    )
    assert lengths[len(lengths) // 2] <= 15
    assert lengths[len(lengths) * 9 // 10] <= 40


@pytest.mark.parametrize("file", FILES)
def test_every_module_says_what_it_is(file: str) -> None:
    assert ast.get_docstring(tree(file)) or not (SOURCE / file).read_text(encoding="utf-8"), (
        f"{file} has no docstring"
    )
