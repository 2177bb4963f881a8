"""Building a data set: every document is accounted for, and the result depends on recipe and files alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from daybreak import settings
from daybreak.cli.main import run as cli
from daybreak.data.build import steps
from daybreak.data.build.run import Built, build
from daybreak.data.recipe import Recipe
from daybreak.data.token_shards import Manifest
from daybreak.errors import DaybreakError
from daybreak.text.tokenizer import Tokenizer
from daybreak.text.train_tokenizer import train_tokenizer

SENTENCES = [
    "The {} river runs below the {} bridge.",
    "Nobody has seen {} since {} left the town.",
    "A {} is a kind of {} with longer ears.",
    "When the {} was finished, {} began.",
]
NOUNS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "jetty",
    "knoll",
    "ledge",
    "marsh",
    "nook",
]


def text(number: int, sentences: int = 12) -> str:
    """A text that no other number gives, nor nearly."""
    draw = random.Random(number)
    parts = (draw.choice(SENTENCES).format(*draw.sample(NOUNS, 2)) for _ in range(sentences))
    name = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=40))
    return f"{name}. {' '.join(parts)}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text(number) for number in range(60)], 400).save(folder)
    return folder


def lines(rows: list[Any]) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def made(base: Path, tokenizer: Path, out: str = "out", workers: int = 1, **tree: Any) -> Built:
    tree = {"tokenizer": str(tokenizer), "deduplication": {"exact": False}, **tree}
    force = tree.pop("force", False)
    return build(settings.build(Recipe, tree), base, base / out, workers=workers, force=force)


def contents(folder: Path) -> dict[str, bytes]:
    """What training reads."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for split in ("training", "validation")
        for file in sorted((folder / split).rglob("*.*"))
        if file.suffix in (".tokens", ".ends")
    }


def texts_of(folder: Path, tokenizer: Path, split: str = "training") -> list[str]:
    """The documents of a split, shard after shard, each of which must end with the separator."""
    library = Tokenizer.load(tokenizer)
    assert library is not None
    found = []
    for source in Manifest.read(folder).sources:
        for shard in source.shards[split]:
            ids = np.fromfile(folder / f"{shard.name}.tokens", "<u2")
            begin = 0
            for end in np.fromfile(folder / f"{shard.name}.ends", "<u8").tolist():
                assert ids[end - 1] == library.eos_id and library.eos_id not in ids[begin : end - 1]
                found.append(library.decode(ids[begin : end - 1].tolist(), skip_special=False))
                begin = end
    return found


def damaged_corpus(base: Path) -> None:
    """One of everything that can be wrong with a file, and what is right in between."""
    base.mkdir()
    (base / "a.txt").write_text(text(1))
    (base / "b.txt").write_text(text(1))  # equal to a
    (base / "near.txt").write_text(text(1) + " And so on.")
    (base / "bad.txt").write_bytes(b"good \xff bad")
    (base / "empty.txt").write_bytes(b"")
    (base / "blank.md").write_text(" \n\n")
    (base / "short.md").write_text("Hi.")
    (base / "table.csv").write_text("a,b\n")
    (base / "twice.txt").symlink_to(base / "a.txt")
    rows = [
        {"text": text(2), "lang": "de"},
        b"{not json\n",
        {"body": "no text"},
        {"text": 7},
        [1, 2],
        b"\n",
        b'{"text": "\xe9"}\n',
        {"text": ""},
        {"text": text(3), "lang": None},
    ]
    (base / "rows.jsonl").write_bytes(lines(rows))
    packer = zstandard.ZstdCompressor()
    frames = [packer.compress(lines([{"text": text(number)}])) for number in (4, 5)]
    (base / "frames.jsonl.zst").write_bytes(b"".join(frames))
    # Two rows come through; then the archive ends in the middle of the third, which does not pack well.
    noise = random.Random(0).randbytes(3_000_000).hex()
    cut = packer.compress(lines([{"text": text(6)}, {"text": text(7)}, {"text": noise}]))
    (base / "cut.jsonl.zst").write_bytes(cut[:-1000])
    (base / "no.jsonl.gz").write_bytes(b"this is no archive")
    table = pyarrow.table({"text": [text(8), None, ""], "id": ["x", "y", "z"]})
    pyarrow.parquet.write_table(table, base / "table.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a", "b"]}), base / "other.parquet")
    (base / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    # One value in the middle of a column that is no UTF-8.
    values = pyarrow.array([text(9).encode(), b"\xff\xfe", text(10).encode()])
    raw = pyarrow.StringArray.from_buffers(3, *values.buffers()[1:])
    pyarrow.parquet.write_table(pyarrow.table({"text": raw}), base / "bytes.parquet")


def test_every_document_is_accounted_for(tmp_path: Path, tokenizer: Path) -> None:
    damaged_corpus(tmp_path / "in")
    built = made(
        tmp_path,
        tokenizer,
        sources=[{"name": "all", "paths": ["in"]}],
        filters={"length": {"min_words": 5}},
        deduplication={"exact": True, "minhash": {}},
        validation=0.0,
    )
    assert built.report is not None
    source = built.report["sources"]["all"]
    found = {(one["file"].removeprefix("in/"), one["place"], one["kind"]) for one in source["problems"]}
    assert found == {
        ("bad.txt", 1, "damaged"),
        ("empty.txt", None, "empty"),
        ("blank.md", 1, "empty"),
        *(("rows.jsonl", place, "damaged") for place in (2, 3, 4, 5, 7)),
        *(("rows.jsonl", place, "empty") for place in (6, 8)),
        ("cut.jsonl.zst", None, "damaged"),
        ("no.jsonl.gz", None, "damaged"),
        ("table.parquet", 2, "damaged"),
        ("table.parquet", 3, "empty"),
        ("other.parquet", None, "damaged"),
        ("broken.parquet", None, "damaged"),
        ("bytes.parquet", 2, "damaged"),
    }
    # Both rows of other.parquet are lost, and its index says that there are two.
    fates = {"written": 10, "filtered": 1, "duplicates": 2, "damaged": 13, "empty": 5}
    assert built.report["documents"] == {"read": sum(fates.values()), **fates}
    assert source["filtered"] == {"length": 1}
    assert source["duplicates"] == {"exact": 1, "near": 1}
    assert [one["file"] for one in built.report["files_of_other_kinds"]["named"]] == ["in/table.csv"]
    assert [one["file"] for one in built.report["files_reached_twice"]["named"]] == ["in/twice.txt"]
    # One of each pair is kept; which one of the near ones is datatrove's choice.
    written = texts_of(tmp_path / "out", tokenizer)
    assert {one.removesuffix(" And so on.") for one in written} == {text(number) for number in range(1, 11)}


def rows_in(base: Path, name: str, numbers: Mapping[str, range], **tree: Any) -> dict[str, Any]:
    """A source of some files of rows."""
    (base / name).mkdir(exist_ok=True)
    for file, part in numbers.items():
        (base / name / file).write_bytes(lines([{"text": text(number), **tree} for number in part]))
    return {"name": name, "paths": [name]}


def test_texts_come_back_and_nobody_forges_an_end(tmp_path: Path, tokenizer: Path) -> None:
    forged = "before <|endoftext|> after"
    source = rows_in(tmp_path, "rows", {"a.jsonl": range(30)})
    (tmp_path / "rows" / "forged.txt").write_text(forged)
    made(tmp_path, tokenizer, sources=[source], validation=0.2)
    split = {name: texts_of(tmp_path / "out", tokenizer, name) for name in ("training", "validation")}
    assert sorted(split["training"] + split["validation"]) == sorted([forged, *map(text, range(30))])
    assert 1 <= len(split["validation"]) <= 15
    # Not in the order of the files, and another seed gives another order.
    assert split["training"] != [one for one in map(text, range(30)) if one in split["training"]]
    made(tmp_path, tokenizer, "other", sources=[source], validation=0.2, seed=1)
    other = texts_of(tmp_path / "other", tokenizer)
    assert other != split["training"] and sorted(other) == sorted(split["training"])


def test_provenance_names_file_line_and_language(tmp_path: Path, tokenizer: Path) -> None:
    source = rows_in(tmp_path, "rows", {"a.jsonl": range(5)}, lang="de", id="name")
    made(tmp_path, tokenizer, sources=[{**source, "language_key": "lang"}], validation=0.0)
    rows = pyarrow.parquet.read_table(tmp_path / "out/training/rows/00000.parquet").to_pylist()
    written = texts_of(tmp_path / "out", tokenizer)
    for row, one in zip(rows, written, strict=True):
        assert text(row["place"] - 1) == one
        assert (row["file"], row["language"], row["id"]) == ("rows/a.jsonl", "de", "name")
        assert row["bytes"] == len(one.encode())


def test_workers_do_not_change_the_data(tmp_path: Path, tokenizer: Path) -> None:
    files = {f"{number}.jsonl": range(5 * number, 5 * number + 7) for number in range(6)}  # some twice
    tree = {
        "sources": [rows_in(tmp_path, "rows", files)],
        "validation": 0.1,
        "shard_megabytes": 0.01,
        "deduplication": {"exact": True},
    }
    made(tmp_path, tokenizer, "one", workers=1, task_megabytes=0.001, **tree)
    made(tmp_path, tokenizer, "two", workers=2, task_megabytes=0.001, **tree)
    made(tmp_path, tokenizer, "whole", workers=1, **tree)
    first = contents(tmp_path / "one")
    assert len([name for name in first if name.endswith(".tokens")]) > 2
    assert first == contents(tmp_path / "two")
    assert json.loads((tmp_path / "two/report.json").read_text())["documents"]["duplicates"] == 10
    # Cut into other tasks, the other one of two equal documents may stay: other places, the same texts.
    texts = [sorted(texts_of(tmp_path / out, tokenizer)) for out in ("one", "whole")]
    assert texts[0] == texts[1]


class Crash(Exception):
    pass


def test_an_interrupted_build_goes_on(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{number}.jsonl": range(9 * number, 9 * number + 9) for number in range(4)}
    tree = {"sources": [rows_in(tmp_path, "rows", files)], "task_megabytes": 0.001, "validation": 0.1}
    made(tmp_path, tokenizer, "whole", **tree)
    ran: list[int] = []
    original: Callable[..., Any] = steps.Tokenise.run

    def crash(self: Any, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        ran.append(rank)
        if rank == 2 and ran.count(2) == 1:
            next(data)
            raise Crash
        return original(self, data, rank, world_size)

    monkeypatch.setattr(steps.Tokenise, "run", crash)
    with pytest.raises(Crash):
        made(tmp_path, tokenizer, **tree)
    assert not (tmp_path / "out/manifest.json").exists()
    made(tmp_path, tokenizer, **tree)
    assert ran == [0, 1, 2, 2, 3]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out/.building").exists()


def test_what_is_finished_is_not_done_again(tmp_path: Path, tokenizer: Path) -> None:
    tree = {"sources": [rows_in(tmp_path, "rows", {"a.jsonl": range(5)})]}
    assert made(tmp_path, tokenizer, **tree).did == "built"
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert made(tmp_path, tokenizer, **tree).did == "nothing"
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize("split", ["training", "validation"])
def test_what_is_damaged_is_not_finished(tmp_path: Path, tokenizer: Path, split: str) -> None:
    tree = {"sources": [rows_in(tmp_path, "rows", {"a.jsonl": range(30)})], "validation": 0.3}
    made(tmp_path, tokenizer, **tree)
    file = tmp_path / f"out/{split}/rows/00000.tokens"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DaybreakError, match=rf"{split}/rows/00000.tokens has .* bytes.*--force"):
        made(tmp_path, tokenizer, **tree)
    file.unlink()
    with pytest.raises(DaybreakError, match=rf"{split}/rows/00000.tokens is missing.*--force"):
        made(tmp_path, tokenizer, **tree)
    assert made(tmp_path, tokenizer, force=True, **tree).did == "built"


def test_changes_are_named(tmp_path: Path, tokenizer: Path) -> None:
    source = rows_in(tmp_path, "rows", {"a.jsonl": range(5), "b.jsonl": range(5, 9)})
    made(tmp_path, tokenizer, sources=[source])
    with pytest.raises(DaybreakError, match=r"the recipe's seed was 0 and is 3.*--force"):
        made(tmp_path, tokenizer, sources=[source], seed=3)
    whole = (tmp_path / "rows/a.jsonl").read_bytes()
    (tmp_path / "rows/a.jsonl").write_bytes(whole.replace(b"river", b"RIVER", 1))
    (tmp_path / "rows/b.jsonl").rename(tmp_path / "rows/c.jsonl")
    with pytest.raises(DaybreakError, match=r"a.jsonl has changed.*b.jsonl is gone.*c.jsonl is new"):
        made(tmp_path, tokenizer, sources=[source])
    assert made(tmp_path, tokenizer, sources=[source], force=True).did == "built"
    assert any("RIVER" in one for one in texts_of(tmp_path / "out", tokenizer))


def test_a_change_of_an_unfinished_build_is_named(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = rows_in(tmp_path, "rows", {"a.jsonl": range(5)})
    with monkeypatch.context() as patch:
        patch.setattr(steps.Tokenise, "run", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(tmp_path, tokenizer, sources=[source])
    with pytest.raises(DaybreakError, match="the recipe's validation was"):
        made(tmp_path, tokenizer, sources=[source], validation=0.5)
    made(tmp_path, tokenizer, sources=[source], validation=0.5, force=True)
    assert len(texts_of(tmp_path / "out", tokenizer)) < 5


def test_the_command(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_in(tmp_path, "rows", {"a.jsonl": range(8)}, lang="de")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"tokenizer: {tokenizer}\nsources:\n  - name: rows\n    paths: [rows]\n    language: de\n"
    )
    words = ["--workers", "1", "--deduplication.exact", "false"]
    assert cli(["data", "build", str(recipe), *words, "--validation=0.3"]) == 0
    assert "8 documents read: 8 written" in capsys.readouterr().out
    assert cli(["data", "build", str(recipe), *words, "--validation=0.3"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    picture = tmp_path / "picture.png"
    assert cli(["data", "stats", str(tmp_path / "small"), "--json", "--picture", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["rows"]["documents"] == found["languages"]["de"]["documents"] == 8
    assert found["total"]["bytes"] == sum(len(text(number)) for number in range(8))
    assert sum(each["documents"] for each in found["lengths"]) == 8
    assert found["total"]["tokens"] == sum(each["tokens"] for each in found["lengths"])
    assert picture.read_bytes()[1:4] == b"PNG"
    assert cli(["data", "build", str(recipe), "--validation", "2"]) == 2
    assert "validation is 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["recipe.yaml", "training", "tokenizer"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_data_set_is_not_replaced(name: str, force: bool, tmp_path: Path, tokenizer: Path) -> None:
    rows_in(tmp_path, "rows", {"a.jsonl": range(5)})
    theirs = tmp_path / "out" / name
    theirs.mkdir(parents=True)
    (theirs / "theirs.txt").write_text("kept")
    with pytest.raises(DaybreakError, match=rf"out is no data set, but has {name}.*--out"):
        made(tmp_path, tokenizer, force=force, sources=[{"name": "rows", "paths": ["rows"]}])
    assert (theirs / "theirs.txt").read_text() == "kept"
    assert [each.name for each in (tmp_path / "out").iterdir()] == [name]


def test_a_build_beside_its_sources_stays_the_same(tmp_path: Path, tokenizer: Path) -> None:
    rows_in(tmp_path, "rows", {"a.jsonl": range(5)})
    tree = {"sources": [{"name": "all", "paths": ["."]}]}
    first = made(tmp_path, tokenizer, "all", **tree)
    assert first.report is not None and first.report["documents"]["read"] == 5
    assert made(tmp_path, tokenizer, "all", **tree).did == "nothing"
