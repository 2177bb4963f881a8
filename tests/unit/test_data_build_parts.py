"""The pieces of a build: recipes, filters, words, signatures, executors, and what kill -9 leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import simplify_text
from hypothesis import given
from hypothesis import strategies as st

from daybreak import settings
from daybreak.data.build import executors, filters, steps
from daybreak.data.build.copies import HASH
from daybreak.data.build.minhash import ROWS, Signature
from daybreak.data.build.plan import make_plan
from daybreak.data.build.run import build
from daybreak.data.build.tally import Tally
from daybreak.data.build.words import Words
from daybreak.data.recipe import Recipe, SlurmSettings
from daybreak.errors import DaybreakError
from daybreak.text.train_tokenizer import train_tokenizer

CONFIG = MinhashConfig(hash_config=HASH)


def recipe(**tree: Any) -> Recipe:
    default = {"tokenizer": "nowhere", "sources": [{"name": "a", "paths": ["in"]}]}
    return settings.build(Recipe, {**default, **tree})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sources": []}, "has no sources"),
        ({"sources": [{"name": "a", "paths": ["x"], "pathz": 1}]}, r"'sources\[0\].pathz'"),
        ({"sources": [{"name": "a b", "paths": ["x"]}]}, "'a b' cannot be called so"),
        ({"sources": [{"name": "a"}]}, "either paths or a dataset"),
        ({"sources": [{"name": "a", "paths": ["x"]}, {"name": "a", "paths": ["y"]}]}, "two sources"),
        (
            {"sources": [{"name": "a", "paths": ["x"], "weight": 1}, {"name": "b", "paths": ["y"]}]},
            "'a' has a weight and 'b' has none",
        ),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"deduplication": {"minhash": {"buckets": 0}}}, "buckets is 0"),
    ],
)
def test_recipes_that_cannot_be_followed(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        recipe(**tree)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gopher_qualty": {}}, "no filter 'gopher_qualty' .did you mean 'gopher_quality'"),
        ({"gopher_quality": {"min_words": 3}}, "no parameter 'min_words'"),
        ({"gopher_quality": {"min_doc_words": "many"}}, "min_doc_words is 'many'"),
        ({"language": {"languages": ["de"]}}, "'language' cannot be made: .*fasttext"),
    ],
)
def test_filters_that_there_are_not(wanted: dict[str, Any], message: str) -> None:
    made = recipe(filters=wanted)
    with pytest.raises(DaybreakError, match=message):
        filters.make(made, made.sources[0])


def test_a_filter_that_fails_costs_the_document_and_says_so() -> None:
    made = recipe(filters={"fineweb_quality": {"line_punct_thr": 0, "short_line_thr": 1}})
    (step,) = filters.make(made, made.sources[0]).values()
    where = {"file": "f", "place": 3}
    documents = [Document("ab", "1", metadata=where), Document("a", "2", metadata=where)]
    step.filter = lambda document: 1 / (len(document.text) - 1)
    tally = Tally("a")
    assert [one.id for one in filters.passed("fineweb_quality", step, iter(documents), tally)] == ["1"]
    assert tally.dropped["fineweb_quality"] == 1
    assert tally.problems[0]["place"] == 3 and "ZeroDivisionError" in tally.problems[0]["what"]


def test_filters_of_a_source_replace_those_of_the_recipe() -> None:
    source = {"name": "a", "paths": ["in"], "filters": {"length": {"min_bytes": 7}}}
    made = recipe(filters={"length": {"min_bytes": 3}, "regex": {"regex_exp": "x"}}, sources=[source])
    found = filters.make(made, made.sources[0])
    assert list(found) == ["length", "regex"]
    assert found["length"].filter(Document("123456", "")) == (False, "too few bytes")


@given(st.text())
def test_sentences_together_are_the_text(text: str) -> None:
    spans = Words().span_tokenize(text)
    assert "".join(text[begin:end] for begin, end in spans) == text
    words = "".join(Words().word_tokenize(text))
    assert words == "".join(text.split())


def test_words_of_several_scripts() -> None:
    cut = Words().word_tokenize
    assert cut("Don't, please!") == ["Don", "'", "t", ",", "please", "!"]
    assert cut("हिन्दी में") == ["हिन्दी", "में"]  # marks belong to their word
    assert cut("日本語 abc") == ["日", "本", "語", "abc"]
    assert Words().sent_tokenize("One. Two! 三。四") == ["One.", "Two!", "三。", "四"]


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_texts_are_simplified_as_datatrove_does(text: str) -> None:
    ours = Signature("unused", CONFIG, language=Words())
    assert ours.simplified(text) == simplify_text(text)
    spread = unicodedata.normalize("NFD", f"é {text} Ñ 12.5")
    assert ours.simplified(spread) == simplify_text(spread)


def _odd(values: np.ndarray) -> int:
    return int(np.flatnonzero(values[0] % np.uint64(2))[0])


@pytest.mark.parametrize("pieces", [1, 7, ROWS, ROWS + 1])
def test_signatures_are_datatroves(pieces: int) -> None:
    ours = Signature("unused", CONFIG, language=Words())
    theirs = MinhashDedupSignature("unused", CONFIG, language=Words())
    shingles = np.random.default_rng(pieces).integers(0, 2**64, (pieces, 1), np.uint64)
    a, b = (int(values[0, place]) for values in ours.parameters for place in [_odd(ours.parameters[0])])
    shingles[0] = ((2**61 - 1 - b) * pow(a, -1, 2**64)) % 2**64  # its hash is the prime itself, so 0
    assert ours.get_signature(shingles) == theirs.get_signature(shingles)


def test_pieces_of_words_are_equal_where_words_and_order_are() -> None:
    ours = Signature("unused", CONFIG, language=Words())
    words = [f"word{chr(97 + number)}" for number in range(9)]
    one = ours.get_shingles(" ".join(words))
    assert one.shape == (5, 1) and len(np.unique(one)) == 5
    assert np.array_equal(ours.get_shingles(" ".join(words[2:8]).upper()), one[2:4])
    swapped = [words[1], words[0], *words[2:5]]
    assert ours.get_shingles(" ".join(swapped))[0] != one[0]
    assert ours.get_shingles("only four words here").shape == (0, 1)


def test_what_waits_between_stages_may_be_long(tmp_path: Path) -> None:
    """Offsets of 64 bits, in the file's schema and in what is read back; and the documents come back."""
    where = [{"file": "f", "place": place, "language": ""} for place in (1, 2, 3)]
    documents = [
        Document(f"text {one['place']} \U0001f600", str(one["place"]), metadata=one) for one in where
    ]
    writer = steps.Kept(tmp_path)
    assert list(writer.run(iter(documents), rank=4)) == documents
    file = tmp_path / "00004.parquet"
    with pyarrow.parquet.ParquetFile(file) as parquet:
        for schema in (parquet.schema_arrow, next(parquet.iter_batches()).schema):
            kinds = {name: schema.field(name).type for name in ("text", "id", "file", "language")}
            assert set(kinds.values()) == {pyarrow.large_string()}
    assert list(steps._read_back(file)) == documents


def test_executors_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name, message in (("slurm", "sbatch"), ("ray", "pip install"), ("cloud", "local, ray, slurm")):
        with pytest.raises(DaybreakError, match=message):
            executors.check(name, SlurmSettings(partition="long"))


def test_data_sets_of_the_hub_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    made = recipe(sources=[{"name": "web", "dataset": "owner/name"}])
    with pytest.raises(DaybreakError, match=r"'web' is a data set of the hub.*pip install datasets"):
        build(made, tmp_path, tmp_path / "out")


def corpus(base: Path, rows: int = 40) -> Path:
    """Four files of rows, and a recipe that takes each for a task."""
    (base / "in").mkdir()
    texts = [f"{number} " + " ".join(f"w{number * k % 97}" for k in range(1, 90)) for number in range(rows)]
    for number in range(4):
        lines = [json.dumps({"text": text}) for text in texts[number::4]]
        (base / "in" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    train_tokenizer(texts, 280).save(base / "tokenizer")
    tree = {
        "tokenizer": "tokenizer",
        "sources": [{"name": "a", "paths": ["in"]}],
        "task_megabytes": 0.001,
        "shard_megabytes": 0.01,
        "validation": 0.1,
    }
    (base / "recipe.yaml").write_text(json.dumps(tree))
    return base / "recipe.yaml"


def tokens(folder: Path) -> dict[str, bytes]:
    found = [file for split in ("training", "validation") for file in (folder / split).rglob("*.tokens")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(found)}


def test_kill_9_costs_nothing_that_was_through(tmp_path: Path) -> None:
    file = corpus(tmp_path)
    made = settings.build(Recipe, json.loads(file.read_text()))
    build(made, tmp_path, tmp_path / "whole", workers=1)
    command = [sys.executable, "-m", "daybreak.cli.main", "data", "build", str(file), "--workers", "2"]
    out = tmp_path / "recipe"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    marks = out / ".building/stages/2-tokens/completions"
    until = time.monotonic() + 100
    while not (marks.exists() and any(marks.iterdir())):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    through = len(list((out / ".building/stages/0-reading/completions").iterdir()))
    assert through == 4 and not (out / "manifest.json").exists()
    build(made, tmp_path, out, workers=1)  # waits until the killed build's workers are gone
    assert tokens(out) == tokens(tmp_path / "whole")


def test_a_worker_that_dies_ends_the_build_with_the_remedy(tmp_path: Path) -> None:
    stage = executors.Stage("doomed", [_Dies()], 2)
    with pytest.raises(DaybreakError, match="a worker was killed"):
        (tmp_path / executors.LOCK).touch()
        executors.run([stage], tmp_path, "local", 2, SlurmSettings(), lambda name, done, total: None)


class _Dies:
    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return data


def test_only_one_build_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "PATIENCE", 0.1)
    with (
        executors.alone(tmp_path),
        pytest.raises(DaybreakError, match="another build"),
        executors.alone(tmp_path),
    ):
        pass


SBATCH = """#!{python}
import os, subprocess, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:-1])
lines = open(sys.argv[-1]).read().splitlines()
directives = dict(line[10:].partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
number = len(open({log!r}).readlines())
open({log!r}, "a").write(directives["job-name"] + " " + options.get("dependency", "-") + "\\n")
if "merge_stats" not in lines[-1] and not os.path.exists({log!r} + ".queue"):
    for task in range(int(directives["array"].split("%")[0].split("-")[1]) + 1):
        environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), RUN_OFFSET="0", SLURM_NODELIST="here")
        subprocess.run(["bash", sys.argv[-1]], check=True, env=environment, stdout=2, cwd="/")
print("Submitted batch job", number)
"""
TOOLS = {
    "srun": '#!/bin/sh\nwhile [ "$1" != launch_pickled_pipeline ]; do shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/sh\necho here\n",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that stand for Slurm's, and run the jobs at once, in order, in another folder; where
    log.queue is there beside the log, they keep them waiting. Returned is the log."""
    tools, log = tmp_path / "tools", tmp_path / "log"
    tools.mkdir()
    log.touch()
    for name, text in {**TOOLS, "sbatch": SBATCH.format(python=sys.executable, log=str(log))}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return log


def test_slurm_gets_the_same_build(tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = corpus(tmp_path, rows=12)
    monkeypatch.chdir(tmp_path)
    tree = json.loads(file.read_text()) | {"task_megabytes": 64, "validation": 0}
    tree["deduplication"] = {"exact": False}  # fewer jobs
    made = settings.build(Recipe, tree | {"slurm": {"partition": "long"}})
    assert build(made, tmp_path, Path("out"), executor="slurm").did == "submitted"
    jobs = dict(line.split() for line in cluster.read_text().splitlines() if "merge" not in line)
    stages = ("tokens", "shards", "manifest")
    assert list(jobs) == [f"daybreak-{stage}" for stage in stages]
    build(settings.build(Recipe, tree), tmp_path, tmp_path / "here", workers=1)
    assert tokens(tmp_path / "out") == tokens(tmp_path / "here")
    assert build(made, tmp_path, Path("out"), executor="slurm").did == "nothing"


def test_what_waits_in_the_queue_is_not_handed_over_again(tmp_path: Path, cluster: Path) -> None:
    tree = json.loads(corpus(tmp_path, rows=12).read_text()) | {"slurm": {"partition": "long"}}
    made, out = settings.build(Recipe, tree), tmp_path / "out"
    queue = cluster.with_name("log.queue")
    queue.touch()
    assert build(made, tmp_path, out, executor="slurm").did == "submitted"
    submitted = cluster.read_text()
    numbers = map(str, range(0, len(submitted.splitlines()), 2))  # each has one after it that adds statistics
    jobs = rf"handed to the cluster already .jobs {', '.join(numbers)}\W"
    for executor in ("slurm", "local"):
        with pytest.raises(DaybreakError, match=jobs):
            build(made, tmp_path, out, executor=executor)
    assert cluster.read_text() == submitted
    assert build(made, tmp_path, out, executor="slurm", force=True).did == "submitted"
    assert len(cluster.read_text()) > len(submitted)
    (out / ".building/submitted.json").unlink()  # as the message says
    assert build(made, tmp_path, out, workers=1).did == "built"


def test_what_the_queue_did_not_take_is_handed_over_again(tmp_path: Path, cluster: Path) -> None:
    tree = json.loads(corpus(tmp_path, rows=12).read_text()) | {"slurm": {"partition": "long"}}
    made, out = settings.build(Recipe, tree), tmp_path / "out"
    sbatch = tmp_path / "tools/sbatch"
    works = sbatch.read_text()
    sbatch.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        build(made, tmp_path, out, executor="slurm")
    sbatch.write_text(works)
    cluster.with_name("log.queue").touch()
    assert build(made, tmp_path, out, executor="slurm").did == "submitted"


def test_a_plan_is_cut_by_size_and_keeps_the_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"{number}.txt").write_text("x" * 400)
    plan = make_plan(recipe(task_megabytes=0.001), tmp_path)
    assert [[item.name for item in task.inputs] for task in plan.tasks] == [
        ["in/0.txt", "in/1.txt"],
        ["in/2.txt", "in/3.txt"],
        ["in/4.txt"],
    ]
    with pytest.raises(DaybreakError, match=r"nothing at .*absent"):
        make_plan(recipe(sources=[{"name": "a", "paths": ["absent/*.txt"]}]), tmp_path)
