"""Kinds of files by their endings."""

from __future__ import annotations

_KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
ENDINGS = (*_KINDS, *(ending + packed for ending in (".txt", ".jsonl") for packed in _PACKINGS))
"""For messages."""
_GROWTH = {"gzip": 3.0, "zstd": 3.5}


def packing_of(name: str) -> str | None:
    """gzip, zstd or None."""
    return next((packing for end, packing in _PACKINGS.items() if name.lower().endswith(end)), None)


def kind_of(name: str) -> str | None:
    """text, jsonl, parquet, or None for a file that no reader takes."""
    bare = name.lower()
    for end in _PACKINGS:
        bare = bare.removesuffix(end)
    kind = next((kind for end, kind in _KINDS.items() if bare.endswith(end)), None)
    return None if kind == "parquet" and packing_of(name) else kind


def growth(kind: str, packing: str | None) -> float:
    """About how many bytes of text a byte of the file holds: for cutting work evenly, nothing else."""
    return 2.0 if kind == "parquet" else _GROWTH.get(packing or "", 1.0)
