"""`daybreak describe --fits` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from daybreak.cli import plain


def lines(told: dict[str, Any]) -> Iterator[str]:
    """What `daybreak.compare.fits.fits` found."""
    context = told["context"]
    yield _here(told)
    yield ""
    gpu = [["GPU"]] if told["gpu"] else [[]]
    head = ["format", "weights", "cache", *gpu[0], "memory", "tokens per second, at most"]
    rows = [head, *(_row(one, context, bool(told["gpu"])) for one in told["formats"])]
    yield plain.columns(rows, frozenset({1, 2}))
    yield ""
    cached = [
        [stored, plain.size(size["per_token"]), plain.size(size["context"])]
        for stored, size in told["cache"].items()
    ]
    head = ["keys and values", "of a token", f"of {context:,} tokens"]
    yield plain.columns([head, *cached], frozenset({1}))
    yield ""
    yield from _notes(told)


def _here(told: dict[str, Any]) -> str:
    memory, gpu = told["memory"], told["gpu"]
    whose = " by the limit of a control group," if memory["limited"] else ""
    here = f"free memory: {plain.size(memory['free'])}{whose} of {plain.size(memory['total'])}"
    if gpu is None:
        return f"{here}; no GPU that this PyTorch can use"
    return f"{here}; {gpu['name']}: {plain.size(gpu['free'])} of {plain.size(gpu['total'])}"


def _row(one: dict[str, Any], context: int, with_gpu: bool) -> list[str]:
    verdict, whole = one["verdict"], one["tokens_that_fit"] == context
    if verdict != "too large" and not whole:
        verdict += f", {one['tokens_that_fit']:,} tokens"
    gpu = {None: "", True: "fits", False: "too large"}[one["on_gpu"]]
    sizes = [plain.size(one["weight_bytes"]), plain.size(one["cache_bytes"])]
    return [one["format"], *sizes, *([gpu] if with_gpu else []), verdict, _speed(one, whole)]


def _speed(one: dict[str, Any], whole: bool) -> str:
    rates = one["tokens_per_second"]
    parts = []
    if one["verdict"] == "fits":
        end = f" ({rates['whole_context']:.3g} at the end of the context)" if whole else ""
        parts.append(f"{rates['short']:.3g}{end}")
    elif one["verdict"] == "from disk":
        disk = "as fast as the disk" if rates["from_disk"] is None else f"{rates['from_disk']:.2g}"
        parts.append(f"{disk}, from the disk")
    if one["on_gpu"]:
        parts.append(f"{rates['gpu']:.3g} on the GPU")
    return "; ".join(parts)


def _notes(told: dict[str, Any]) -> Iterator[str]:
    speeds, context = told["speeds"], told["context"]
    yield (
        f"memory is read at {plain.size(int(speeds['memory']))}/s, measured just now; a token reads all "
        "matrices once, and computing comes on top"
    )
    if speeds["gpu"] is not None:
        yield f"the GPU reads its memory at {plain.size(int(speeds['gpu']))}/s"
    if speeds["disk"] is not None:
        yield f"the folder's disk is read at {plain.size(int(speeds['disk']))}/s, at a stretch"
    elif any(one["verdict"] == "from disk" for one in told["formats"]):
        yield "the disk was not measured: no weights that could be read are in a folder here"
    yield (
        f"fits: weights, the cache of one text of {context:,} tokens, and {plain.size(told['beside_bytes'])} "
        "for everything else; from disk: a folder of that format on a disk, mapped"
    )
