"""Published mixtures: their weights, and that they are recipes which a build would read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daybreak.cli.main import run
from daybreak.data.mixtures import mixture_names
from daybreak.data.recipe import Recipe, read_recipe

NAMES = ("gpt3", "opt", "pile", "roots")


def printed(name: str, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["data", "mix", "--like", name, *words]) == 0
    return capsys.readouterr().out


def read(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(printed(name, capsys), encoding="utf-8")
    return read_recipe(file)


def weights(recipe: Recipe) -> dict[str, float]:
    return {source.name: source.weight for source in recipe.sources if source.weight is not None}


def test_all_are_there() -> None:
    assert tuple(mixture_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_recipe_is_one_and_all_its_paths_are_to_be_filled_in(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read(name, tmp_path, capsys)
    assert all(path.startswith("FILL-IN/") for source in recipe.sources for path in source.paths)
    assert recipe.context == 2048


@pytest.mark.parametrize(
    ("name", "sources", "total"), [("pile", 22, 100), ("gpt3", 5, 101), ("roots", 49, 100)]
)
def test_weights_add_up_as_published(
    name: str, sources: int, total: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = weights(read(name, tmp_path, capsys))
    assert len(found) == sources
    assert sum(found.values()) == pytest.approx(total, abs=0.01)


def test_the_sums_that_the_sources_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = weights(read("roots", tmp_path, capsys))
    assert roots["en"] + roots["oscar-en"] == pytest.approx(30.31, abs=0.005)
    assert roots["zhs"] + roots["oscar-zh"] + roots["zht"] == pytest.approx(17.67, abs=0.005)
    assert len([name for name in roots if name.startswith("indic-")]) == 13
    congo = {name: weight for name, weight in roots.items() if name.startswith("nigercongo-")}
    assert len(congo) == 22
    assert sum(congo.values()) == pytest.approx(0.032, abs=0.004)  # of rounded percentages
    pile = printed("pile", capsys)
    epochs = [line.split("# ")[1].split() for line in pile.splitlines() if "weight: " in line]
    # The README's effective size, of rounded epochs and sizes.
    assert sum(float(times) * float(gib) for times, _, _, gib, _ in epochs) == pytest.approx(
        1254.2, rel=0.002
    )


def test_a_mixture_without_published_weights_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = read("opt", tmp_path, capsys)
    assert not weights(recipe)
    assert "No weights were published" in printed("opt", capsys)
    minhash = recipe.deduplication.minhash
    assert minhash is not None
    assert (1 / minhash.buckets) ** (1 / minhash.hashes) == pytest.approx(0.95, abs=0.005)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    tree = json.loads(printed("gpt3", capsys, "--json"))
    assert [source["weight"] for source in tree["sources"]] == [60, 22, 8, 8, 3]


def test_an_unknown_mixture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "mix", "--like", "piles"]) == 2
    assert "did you mean 'pile'" in capsys.readouterr().err
