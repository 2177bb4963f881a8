"""Write a shape's weights once, in every format that its configurations read.

In a process of its own, whose memory nobody counts: `python -m benchmarks.inference.prepare SHAPE FOLDER KEY
...` prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.inference.configurations import NO_GGUF, Configuration, of_shape
from benchmarks.inference.shapes import Shape, save, shapes

BITS = {"8bit": "8", "4bit": "4"}
"""Formats of folders that `daybreak quantize` writes."""


def prepare(shape: Shape, folder: Path, configurations: list[Configuration]) -> dict[str, dict[str, Any]]:
    """By key: where the weights lie and how many bytes of them a token reads, or why there are none."""
    plain = folder / "plain"
    vocabulary, weights = save(shape, plain)
    found: dict[str, dict[str, Any]] = {}
    for one in configurations:
        try:
            path = _written(one, shape, plain, folder / one.key, vocabulary)
            found[one.key] = {"path": str(path), "read": _read(one, path, weights)}
        except Exception as error:
            found[one.key] = {"problem": str(error) or type(error).__name__}
    size = sum(file.stat().st_size for file in plain.iterdir())
    return {"model": {"vocabulary": vocabulary, "bytes": size}, **found}


def _written(one: Configuration, shape: Shape, plain: Path, place: Path, vocabulary: int) -> Path | str:
    """What the engine is given to load."""
    if one.engine == "CTranslate2":
        from benchmarks.inference import ctranslate2_folder

        ctranslate2_folder.convert(plain, place, one.format, vocabulary)
        return place
    if one.engine == "llama.cpp":
        if shape.gguf is not None:
            from daybreak.checkpoint.find_gguf import find_gguf

            return find_gguf(shape.gguf) or shape.gguf
        if shape.family in NO_GGUF:
            raise ValueError(NO_GGUF[shape.family])
        from benchmarks.inference import gguf_file

        gguf_file.write(plain, place, one.format)
        return place
    if one.engine != "daybreak":
        return plain
    source = shape.gguf or str(plain)
    if one.format not in BITS:
        return source
    command = [str(Path(sys.executable).with_name("daybreak")), "quantize", source, "--out", str(place)]
    subprocess.run([*command, "--bits", BITS[one.format]], check=True, stdout=subprocess.DEVNULL)
    return place


def _read(one: Configuration, path: Path | str, weights: int) -> int:
    if one.engine == "llama.cpp":
        from benchmarks.inference import gguf_file

        return gguf_file.bytes_read(Path(path))
    return round(weights * one.bytes)


def main() -> None:
    name, folder, *keys = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = "1"
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not print into the answer
    shape = shapes()[name]
    chosen = [one for one in of_shape(shape) if one.key in keys]
    print(json.dumps(prepare(shape, Path(folder), chosen)), file=channel, flush=True)


if __name__ == "__main__":
    main()
