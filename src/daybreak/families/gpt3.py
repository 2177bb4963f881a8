"""GPT-3 (2020): GPT-2's block, every second layer sees only a band of recent tokens. The weights were never
released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from daybreak.architecture import Architecture
from daybreak.families import gpt2
from daybreak.families.family import Family, sizes
from daybreak.families.keys import Keys
from daybreak.families.tokenizer import PAIRS_OF_BYTES

# The paper (section 2.1) names "alternating dense and locally banded sparse attention patterns ... similar to
# the Sparse Transformer" and publishes neither the band's width nor which layers have it; GPT-Neo's answer to
# both is taken.
WINDOWS = (None, 256)


def read(config: Mapping[str, Any]) -> Architecture:
    windows = Keys(config, "GPT-3").get("windows", list(WINDOWS))
    rest = {key: value for key, value in config.items() if key != "windows"}
    return replace(gpt2.read(rest), windows=tuple(windows))


def write(architecture: Architecture) -> dict[str, Any]:
    return {**gpt2.write(architecture), "windows": list(architecture.windows)}


FAMILY = Family(
    name="gpt3",
    title="GPT-3",
    year=2020,
    paper="Brown et al., Language Models are Few-Shot Learners (arXiv 2005.14165)",
    story=(
        "GPT-2 with dense and locally banded attention in turn, 2048 tokens of context, and "
        "far more of everything."
    ),
    model_type="gpt3",
    hf_class="",
    base=Architecture(context=2048, windows=WINDOWS),
    # Table 2.1. XL is printed with 24 heads and 13B with 40, which do not divide their widths 2048 and 5140;
    # see
    # docs/decisions/002-gpt3-table.md for the heads taken here.
    sizes=sizes(
        {
            "gpt3-125m": (12, 768, 12, 125_226_240),
            "gpt3-350m": (24, 1024, 16, 355_871_744),
            "gpt3-760m": (24, 1536, 16, 760_300_032),
            "gpt3-1.3b": (24, 2048, 16, 1_315_723_264),
            "gpt3-2.7b": (32, 2560, 32, 2_651_553_280),
            "gpt3-6.7b": (32, 4096, 32, 6_658_404_352),
            "gpt3-13b": (40, 5140, 20, 12_952_938_780),
            "gpt3-175b": (96, 12288, 96, 174_604_259_328),
        }
    ),
    read=read,
    write=write,
    rules=gpt2.RULES,
    initialisation=gpt2.initialisation,
    prefix="transformer.",
    special_tokens={"bos_token_id": 50256, "eos_token_id": 50256},
    tokenizer=PAIRS_OF_BYTES,
)
