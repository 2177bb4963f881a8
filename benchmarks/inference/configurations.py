"""Who is measured: an engine with weights of one format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.inference.shapes import Shape

NO_GGUF = {"opt": "llama.cpp has no OPT", "gpt_j": "llama.cpp has no GPT-J"}
"""Families that llama.cpp does not run, with what the table says of it."""


@dataclass(frozen=True)
class Configuration:
    """A row of the table."""

    engine: str
    format: str
    bytes: float
    """Of one weight, with its share of a scale."""
    timed: bool = True
    """Otherwise its tokens are compared, and that is all."""

    @property
    def key(self) -> str:
        return f"{self.engine}-{self.format}".lower()

    @property
    def exact(self) -> bool:
        return self.format.lower() in ("float32", "f32")

    @property
    def title(self) -> str:
        return f"{self.engine} {self.format}"


ALL = (
    Configuration("daybreak", "float32", 4),
    Configuration("daybreak", "bfloat16", 2),
    Configuration("daybreak", "8bit", 1),
    Configuration("daybreak", "4bit", 0.5 + 4 / 32),  # 32 weights share a scale in float32
    Configuration("transformers", "float32", 4),
    Configuration("transformers", "bfloat16", 2),
    Configuration("CTranslate2", "float32", 4),
    Configuration("CTranslate2", "int8", 1),
    # Nobody runs llama.cpp like that: it shows that the files of the formats below hold the same model.
    Configuration("llama.cpp", "F32", 4, timed=False),
    Configuration("llama.cpp", "Q8_0", 34 / 32),
    Configuration("llama.cpp", "Q4_0", 18 / 32),
    Configuration("llama.cpp", "Q4_1", 20 / 32),
)


def of_shape(shape: Shape, chosen: Iterable[str] = ()) -> list[Configuration]:
    """Those that make sense for a shape on this machine; of these the `chosen`: names of engines, or keys,
    which are timed in any case."""
    wanted = [name.lower() for name in chosen]
    return [
        replace(one, timed=one.timed or one.key in wanted)
        for one in ALL
        if (one.format != "bfloat16" or multiplies_bfloat16())
        and (one.engine != "llama.cpp" or (one.format == "Q4_1") == (shape.gguf is not None))
        and (not wanted or one.key in wanted or one.engine.lower() in wanted)
    ]


def known(name: str) -> bool:
    """Whether a name given to --engines stands for anything."""
    return any(name.lower() in (one.key, one.engine.lower()) for one in ALL)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without them products take many times as long as in
    float32, and nobody would run that."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(name in flags.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))
