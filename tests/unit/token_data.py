"""Small data sets, written as `daybreak data build` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from daybreak.data.token_shards import Document, Manifest, Shard, ShardWriter, Source, TokenSet

VOCABULARY = 300
SEPARATOR = 0


def built(
    folder: Path,
    sources: Mapping[str, Sequence[Sequence[Sequence[int]]]],
    weights: Mapping[str, float] | None = None,
    vocabulary: int = VOCABULARY,
    context: int = 8,
) -> TokenSet:
    """Of each source its shards, of each shard its documents without the separator; all is for training."""
    found = []
    for name, shards in sources.items():
        count, done = 0, list[Shard]()
        for number, documents in enumerate(shards):
            with ShardWriter(folder, f"training/{name}/{number:05d}", vocabulary) as writer:
                for ids in documents:
                    language = None if count % 2 else "de"
                    document = Document(f"{name}.jsonl", count + 1, f"{name}-{count}", language, 10)
                    writer.add([*ids, SEPARATOR], document)
                    count += 1
            done.append(writer.close())
        weight = 1.0 if weights is None else weights[name]
        found.append(Source(name, weight, {"training": tuple(done), "validation": ()}))
    Manifest(vocabulary, context, SEPARATOR, tuple(found), "recipe", {}).write(folder)
    return TokenSet.open(folder)
