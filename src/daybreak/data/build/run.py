"""`daybreak data build`, from a recipe to the folder that training reads."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daybreak import settings
from daybreak.data.build import filters
from daybreak.data.build.copies import Exact, Near
from daybreak.data.build.executors import Shown, Stage, alone, check, check_not_submitted, run
from daybreak.data.build.files import BUILDING, FILES, FOLDERS
from daybreak.data.build.finish import MANIFEST, SPLITS, Finish
from daybreak.data.build.gather import Gather
from daybreak.data.build.plan import Plan, fingerprint, make_plan
from daybreak.data.build.steps import Kept, Prepare, Tokenise, Unique, loaded
from daybreak.data.build.tally import read_json, write_json
from daybreak.data.recipe import Recipe, read_recipe
from daybreak.data.token_shards import Manifest, TokenSet
from daybreak.errors import DaybreakError

STATE = "state.json"


@dataclass(frozen=True)
class Built:
    """What a call of `build` did."""

    folder: Path
    did: Literal["built", "nothing", "submitted"]
    report: Mapping[str, Any] | None
    """The tree of report.json; None where the build was handed to a cluster."""


def build(
    recipe: Recipe,
    base: Path,
    out: Path,
    *,
    workers: int | None = None,
    executor: str = "local",
    force: bool = False,
    shown: Shown = lambda stage, done, total: None,
) -> Built:
    """Build the data set of `recipe` in `out`; relative paths of the recipe start at `base`.

    A build that was interrupted goes on where it stood, and one that is through is not done again. Raises
    `DaybreakError` for a recipe that cannot be followed, and where recipe or files differ from those of the
    build in `out`, naming what is different; `force` starts over instead. What is not of a build is never
    written over.
    """
    check(executor, recipe.slurm)
    _check_free(out)
    if not force:
        check_not_submitted(out / BUILDING)
    for source in recipe.sources:
        filters.make(recipe, source)
        if source.dataset is not None and importlib.util.find_spec("datasets") is None:
            raise DaybreakError(
                f"the source {source.name!r} is a data set of the hub, which needs a library: "
                "pip install datasets"
            )
    plan = make_plan(recipe, base, lambda done, total: shown("checksums", done, total), out)
    tokenizer = _tokenizer(recipe, base)
    state = {
        "recipe": settings.to_tree(recipe),
        "inputs": {"files": plan.checksums(), "tokenizer": _sum_of(tokenizer)},
    }
    if _is_through(out, state, force):
        shutil.rmtree(out / BUILDING, ignore_errors=True)
        return Built(out, "nothing", read_json(out / "report.json"))
    building = out.resolve() / BUILDING  # workers elsewhere start in other folders
    building.mkdir(parents=True, exist_ok=True)
    with alone(building):
        _begin(building, state, force)
        loaded(tokenizer).save(building / "tokenizer")
        stages = _stages(plan, building, state["inputs"])
        with _environment(workers or processors()):
            here = run(stages, building, executor, workers or processors(), recipe.slurm, shown)
        if not here:
            return Built(out, "submitted", None)
    shutil.rmtree(building)
    return Built(out, "built", read_json(out / "report.json"))


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def _stages(plan: Plan, building: Path, inputs: Mapping[str, Any]) -> list[Stage]:
    reports, kept, tokens = building / "reports", building / "kept", building / "tokens"
    wanted = plan.recipe.deduplication
    searches: dict[str, Exact | Near] = {}
    if wanted.exact:
        searches["exact"] = Exact(building / "exact", plan.recipe)
    if wanted.minhash is not None:
        searches["near"] = Near(building / "near", wanted.minhash)
    number = len(plan.tasks)
    tokenise = Tokenise(plan, building / "tokenizer", tokens, reports)
    steps: list[Any] = [Prepare(plan, reports)]
    stages = []
    found: dict[str, Any] = {}
    for place, (name, search) in enumerate(searches.items()):
        if place == 0:
            stages.append(Stage("reading", [*steps, Kept(kept), search.signature()], number))
        else:
            stages.append(Stage("signatures", [*steps, search.signature()], number))
        stages += [Stage(stage, *what) for stage, what in search.stages().items()]
        found = {**found, name: search.filter()}
        steps = [Unique(plan, kept, found, reports)]
    stages.append(Stage("tokens", [*steps, tokenise], number))
    vocabulary = loaded(building / "tokenizer").vocabulary
    gather = Gather(plan, vocabulary, tokens, building / "done", reports)
    stages.append(Stage("shards", [gather], len(plan.pieces)))
    return [*stages, Stage("manifest", [Finish(plan, building, building.parent, inputs)], 1)]


def _tokenizer(recipe: Recipe, base: Path) -> Path:
    folder = base / recipe.tokenizer
    if not folder.is_dir():
        from daybreak.checkpoint.hub import resolve_tokenizer

        folder = resolve_tokenizer(recipe.tokenizer, recipe.tokenizer_revision)
    loaded(folder)
    return folder


def _sum_of(tokenizer: Path) -> str:
    digest = hashlib.sha256()
    for name, contents in sorted(loaded(tokenizer).files.items()):
        digest.update(f"{name}\0{len(contents)}\0".encode() + contents)
    return digest.hexdigest()


def _check_free(out: Path) -> None:
    """A data set may take the place of another one, not of files that only have such names."""
    if (out / MANIFEST).exists() or (out / BUILDING).exists():
        return
    if there := [name for name in (*FILES, *FOLDERS) if (out / name).exists()]:
        raise DaybreakError(
            f"{out} is no data set, but has {' and '.join(there)}, where a data set would have its own; give "
            "--out a folder of its own"
        )


def _is_through(out: Path, state: Mapping[str, Any], force: bool) -> bool:
    """Is there a data set of this? Raises `DaybreakError` for one of something else, and a damaged one."""
    if force or not (out / MANIFEST).exists():
        return False
    before = {
        "recipe": settings.to_tree(read_recipe(out / "recipe.yaml")),
        "inputs": Manifest.read(out).inputs,
    }
    if different := differences(before, state):
        unfinished = out / BUILDING / STATE
        if unfinished.exists() and not differences(read_json(unfinished), state):
            return False  # it was to be replaced, and that was interrupted
        raise DaybreakError(_changed(out, different))
    for split in SPLITS:
        TokenSet.open(out, split)
    return True


def _begin(building: Path, state: Mapping[str, Any], force: bool) -> None:
    """Go on with an unfinished build of the same, or start one."""
    file = building / STATE
    if file.exists():
        different = differences(read_json(file), state)
        if not different:
            return
        if not force:
            raise DaybreakError(_changed(building.parent, different))
    for left in building.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != "lock":
            left.unlink()
    write_json(file, state)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    one, other = (settings.build(Recipe, tree["recipe"]) for tree in (before, now))
    found = []
    if fingerprint(one) != fingerprint(other):
        for name, (old, new) in settings.changed(one, other).items():
            if not name.startswith("slurm"):
                found.append(f"the recipe's {name} was {_short(old)} and is {_short(new)}")
    old_files, new_files = before["inputs"]["files"], now["inputs"]["files"]
    for name in sorted({*old_files, *new_files}):
        if old_files.get(name) != new_files.get(name):
            what = (
                "is gone" if name not in new_files else "is new" if name not in old_files else "has changed"
            )
            found.append(f"the file {name.partition(':')[2]} {what}")
    if before["inputs"]["tokenizer"] != now["inputs"]["tokenizer"]:
        found.append("the tokenizer has changed")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _changed(out: Path, different: list[str]) -> str:
    further = f", and {len(different) - 5} more" if len(different) > 5 else ""
    return (
        f"{out} holds a build of something else: {'; '.join(different[:5])}{further}. "
        "Build into another folder, or start over with --force"
    )


@contextmanager
def _environment(workers: int) -> Iterator[None]:
    """Workers start no threads of their own where there is more than one of them."""
    wanted = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"} if workers > 1 else {}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
