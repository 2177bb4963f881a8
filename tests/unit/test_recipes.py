"""Published hyperparameters: every recipe is a run that can be built, and says where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from daybreak import families, settings
from daybreak.errors import DaybreakError
from daybreak.train.amount import Amount
from daybreak.train.recipes import FOLDER, recipe_names, recipe_sources, recipe_text, recipe_tree
from daybreak.train.settings import Settings

NAMES = recipe_names()
FILES = sorted(FOLDER.glob("*.yaml"))
BATCH_UNPUBLISHED = {"glm-10b"}


def built(name: str) -> Settings:
    return settings.build(Settings, recipe_tree(name), name)


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def test_every_lineage_is_there() -> None:
    starts = ("openai-gpt", "gpt2", "gpt3-", "gpt-neo-", "gpt-j-", "gpt-neox-", "pythia-", "opt-", "bloom-")
    assert all(any(name.startswith(start) for name in NAMES) for start in (*starts, "glm-large", "glm-130b"))
    assert len([name for name in NAMES if name.startswith("gpt3-")]) == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_builds_and_its_model_exists(name: str) -> None:
    run = built(name)
    family, _ = families.find_size(name) or pytest.fail(f"no family has the size {name}")
    assert (run.model.family, run.model.size) == (family.name, name)
    architecture = family.architecture(run.model.size)
    assert run.data.context is not None
    assert run.data.context <= architecture.context
    assert run.objective == "auto" or architecture.blanks is not None
    assert run.optimizer.embedding_shrink == (0.1 if name == "glm-130b" else 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_source(name: str) -> None:
    tree, sources = recipe_tree(name), recipe_sources(name)
    assert set(leaves(tree)) == set(sources)
    assert all(len(source) > 3 for source in sources.values())
    assert tree["optimizer"]["lr"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_recipe_is_the_recipe(name: str) -> None:
    text = recipe_text(name)
    assert yaml.safe_load(text) == recipe_tree(name)
    assert text.startswith(f"# {name}: ")
    values = [line for line in text.splitlines() if not line.startswith("#") and not line.endswith(":")]
    assert all("  # " in line for line in values)


PRINTED = re.compile(r"(?:^|[ :,])(?:about )?(\d+(?:,\d{3})*(?:\.\d+)?)([kMB]?) tokens")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@pytest.mark.parametrize("name", NAMES)
def test_sequences_times_context_are_the_published_tokens_of_a_step(name: str) -> None:
    if name in BATCH_UNPUBLISHED:
        assert "sequences" not in recipe_tree(name).get("batch", {})
        return
    run = built(name)
    source = recipe_sources(name)["batch", "sequences"]
    if (printed := PRINTED.search(source)) is None:
        assert name == "openai-gpt"
        return
    assert run.data.context is not None
    number = float(printed[1].replace(",", "")) * UNITS[printed[2]]
    assert run.batch.sequences * run.data.context == pytest.approx(number, rel=0.06)


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_fits_into_the_run(name: str) -> None:
    """In sequences, with the whole batch: the warm-up ends before the fall does, the fall with the run."""
    run = built(name)
    assert run.data.context is not None
    of_a_step = run.batch.sequences
    unit = {"steps": of_a_step, "sequences": 1, "tokens": 1 / run.data.context}

    def sequences(text: str) -> float:
        amount = Amount.parse(text, "")
        return (
            amount.value / 100 * sequences(run.length)
            if amount.unit == "%"
            else amount.value * unit[amount.unit]
        )

    # 176B was laid out for a longer run than it had.
    longest = 1.13 * sequences(run.length) if name == "bloom-176b" else sequences(run.length)
    assert 0 < sequences(run.schedule.warmup) < 0.06 * sequences(run.length)
    assert sequences(run.schedule.warmup) < sequences(run.schedule.decay) <= longest
    if run.batch.ramp_from is not None:
        assert run.batch.ramp_from < run.batch.sequences
        steps = run.batch.ramp_by or run.batch.ramp_from
        assert (run.batch.sequences - run.batch.ramp_from) % steps == 0
        assert 0 < sequences(run.batch.ramp_over) < 0.1 * sequences(run.length)


def test_published_figures() -> None:
    """Some of each table, read again from the sources."""
    largest = built("gpt3-175b")
    assert (largest.optimizer.lr, largest.optimizer.beta2, largest.schedule.floor) == (6e-5, 0.95, 0.1)
    assert (largest.length, largest.schedule.warmup) == ("300B tokens", "375M tokens")
    for size, lowest in (("560m", 1e-5), ("1b1", 1e-5), ("1b7", 1e-5), ("3b", 1e-5), ("7b1", 1e-5)):
        run = built(f"bloom-{size}")
        assert run.optimizer.lr * run.schedule.floor == pytest.approx(lowest, rel=1e-4)
    pythia = built("pythia-1b")
    assert pythia.precision.dtype == "bfloat16"
    assert built("pythia-160m").precision.dtype == "float16"
    assert pythia.batch.sequences * 2048 * 143_000 == pytest.approx(299.9e9, rel=1e-4)
    assert built("opt-13b").batch.sequences == 2 * built("opt-66b").batch.sequences
    assert built("opt-175b").schedule.warmup == "2000 steps"
    assert built("gpt-neox-20b").optimizer.weight_decay == 0.01


def test_an_unknown_recipe_is_refused_by_name() -> None:
    with pytest.raises(DaybreakError, match=r"no recipe 'gpt3-125n'.*did you mean 'gpt3-125m'"):
        recipe_tree("gpt3-125n")
    assert recipe_tree("GPT-NEO-1.3b") == recipe_tree("gpt-neo-1.3B")


def test_a_tree_can_be_changed_without_changing_the_recipe() -> None:
    tree = recipe_tree("gpt2")
    tree["optimizer"]["lr"] = 1.0
    assert recipe_tree("gpt2")["optimizer"]["lr"] == 6e-4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_are_written_as_the_reader_reads_them(file: Any) -> None:
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert set(whole) == {"title", "about", "common", "sizes"}
    assert len(whole["about"]) > 60
    assert max(map(len, file.read_text(encoding="utf-8").splitlines())) <= 130
