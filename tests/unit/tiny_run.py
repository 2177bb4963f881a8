"""Training runs small enough for tests: a data set of made-up text, a tiny model, a process to be killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from daybreak import settings as reading
from daybreak.data.token_shards import Document, Manifest, Shard, ShardWriter, Source
from daybreak.text.tokenizer import Tokenizer
from daybreak.train.records import Point
from daybreak.train.run import Outcome, pretrain
from daybreak.train.settings import Settings

WORDS = tuple("the a one red blue old river house stone moon sees finds likes and then not very".split())  # noqa: SIM905
CONTEXT = 16


def data_set(folder: Path, documents: int = 300, marks: tuple[str, ...] = ()) -> Path:
    """Two sources of made-up sentences, byte by byte, each with a validation split."""
    tokenizer = byte_tokenizer(marks)
    tokenizer.save(folder / "tokenizer")
    draw, sources = random.Random(0), []
    for name in ("north", "south"):
        shards: dict[str, tuple[Shard, ...]] = {}
        for split, count in (("training", documents), ("validation", documents // 4)):
            with ShardWriter(folder, f"{split}/{name}/00000", tokenizer.vocabulary) as writer:
                for number in range(count):
                    text = " ".join(draw.choices(WORDS, k=draw.randint(4, 20))) + f" in the {name}."
                    document = Document(f"{name}.txt", number + 1, f"{name}-{number}", "en", len(text))
                    assert tokenizer.eos_id is not None
                    writer.add([*tokenizer.encode(text), tokenizer.eos_id], document)
            shards[split] = (writer.close(),)
        sources.append(Source(name, 1.0, shards))
    assert tokenizer.eos_id is not None
    Manifest(tokenizer.vocabulary, CONTEXT, tokenizer.eos_id, tuple(sources), "made up", {}).write(folder)
    return folder


def byte_tokenizer(marks: tuple[str, ...] = ()) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", *marks])
    return Tokenizer(backend, bos="<|endoftext|>", eos="<|endoftext|>")


def settings(data: Path, /, **tree: Any) -> Settings:
    base = {
        "length": "40 steps",
        "model": {"family": "gpt2", "changes": {"layers": 2, "width": 24, "heads": 2}},
        "data": {"folder": str(data)},
        "batch": {"sequences": 4, "micro": 2},
        "optimizer": {"lr": 3e-3},
        "precision": {"dtype": "float32", "compile": False},
        "checkpoints": {"every": 7},
        "evaluation": {"every": 0},
        "log": {"tensorboard": False},
    }
    return reading.build(Settings, reading.merged(base, tree))


class Silent:
    """Nobody watches."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str) -> None:
        pass

    def point(self, point: Point) -> None:
        pass

    def say(self, line: str) -> None:
        self.lines.append(line)

    def quiet(self) -> None:
        pass


def trained(folder: Path, given: Settings, screen: Silent | None = None) -> Outcome:
    return pretrain(given, folder, screen or Silent())


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """What metrics.jsonl says of each step, without the clock's figures. A step that stands there twice is a
    mistake."""
    found: dict[int, dict[str, Any]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        if "loss" in values:
            assert values["step"] not in found, f"step {values['step']} stands there twice"
            found[values["step"]] = {
                name: value for name, value in values.items() if name not in ("seconds", "tokens_per_second")
            }
    return found


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are of a kind: evaluation, sample, rolled_back, session."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [values for line in text.splitlines() if kind in (values := json.loads(line))]
