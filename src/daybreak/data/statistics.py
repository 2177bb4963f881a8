"""What is in a data set: tokens, documents and bytes by source, by language and by length of document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from daybreak.data.token_shards import Manifest

SPLITS = ("training", "validation")
UNKNOWN = "unknown"


def statistics(folder: Path) -> dict[str, Any]:
    """Counts of both splits together, as JSON knows them.

    `lengths` counts documents by their tokens: {"from": 64, "to": 127, ...}; the separator counts as one.
    Raises `DaybreakError` where there is no data set.
    """
    manifest = Manifest.read(folder)
    sources: dict[str, dict[str, Any]] = {}
    languages: dict[str, dict[str, int]] = {}
    lengths = np.zeros((64, 2), np.int64)  # [power of two, (documents, tokens)]
    for source in manifest.sources:
        mine = _empty() | {"weight": source.weight, "splits": {split: _empty() for split in SPLITS}}
        sources[source.name] = mine
        for split in SPLITS:
            for shard in source.shards.get(split, ()):
                _add(mine, shard.tokens, shard.documents, shard.bytes)
                _add(mine["splits"][split], shard.tokens, shard.documents, shard.bytes)
                _count(folder / shard.name, languages, lengths)
    total = {key: sum(source[key] for source in sources.values()) for key in _empty()}
    report = _report(folder)
    for name, each in sources.items():
        each["duplicates"] = report.get(name, {}).get("duplicates", {})
    return {
        "folder": str(folder),
        "vocabulary": manifest.vocabulary,
        "context": manifest.context,
        "total": _rated(total) | {"duplicates": _summed(sources)},
        "sources": {name: _rated(source) for name, source in sources.items()},
        "languages": {name: _rated(languages[name]) for name in _largest_first(languages)},
        "lengths": _histogram(lengths),
    }


def _empty() -> dict[str, Any]:
    return {"tokens": 0, "documents": 0, "bytes": 0}


def _add(counts: dict[str, Any], tokens: int, documents: int, size: int) -> None:
    for key, value in (("tokens", tokens), ("documents", documents), ("bytes", size)):
        counts[key] += value


def _count(stem: Path, languages: dict[str, dict[str, int]], lengths: np.ndarray) -> None:
    ends = np.fromfile(f"{stem}.ends", "<u8").astype(np.int64)
    tokens = np.diff(ends, prepend=0)  # [documents]
    powers = np.floor(np.log2(np.maximum(tokens, 1))).astype(np.int64)
    lengths[:, 0] += np.bincount(powers, minlength=64)
    np.add.at(lengths[:, 1], powers, tokens)
    table = pyarrow.parquet.read_table(f"{stem}.parquet", columns=["language", "bytes"])
    rows = table.append_column("tokens", pyarrow.array(tokens)).group_by("language")
    wanted = [("tokens", "sum"), ("bytes", "sum"), ("tokens", "count")]
    for row in rows.aggregate(wanted).to_pylist():
        counts = languages.setdefault(row["language"] or UNKNOWN, _empty())
        _add(counts, row["tokens_sum"], row["tokens_count"], row["bytes_sum"])


def _rated(counts: Mapping[str, Any]) -> dict[str, Any]:
    tokens = counts["tokens"]
    return {**counts, "bytes_per_token": counts["bytes"] / tokens if tokens else None}


def _summed(sources: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for source in sources.values():
        for kind, count in source["duplicates"].items():
            found[kind] = found.get(kind, 0) + count
    return found


def _largest_first(languages: Mapping[str, Mapping[str, int]]) -> list[str]:
    return sorted(languages, key=lambda name: -languages[name]["tokens"])


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    used = np.flatnonzero(lengths[:, 0])
    if not len(used):
        return []
    return [
        {
            "from": 1 << power,
            "to": (2 << power) - 1,
            "documents": int(lengths[power, 0]),
            "tokens": int(lengths[power, 1]),
        }
        for power in range(int(used[0]), int(used[-1]) + 1)
    ]


def _report(folder: Path) -> dict[str, Any]:
    """What the build wrote by source; data sets of others have none."""
    file = folder / "report.json"
    if not file.exists():
        return {}
    sources: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["sources"]
    return sources
