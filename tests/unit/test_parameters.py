"""Counting without torch agrees with the decoder that is built, and with what was published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from daybreak import families, parameters
from daybreak.architecture import Architecture
from daybreak.model.decoder import Decoder
from tests.unit.architectures import any_architecture

SIZES = [(family.name, size) for family in families.everyone() for size in family.sizes]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_every_size_has_the_published_count(name: str, size: str) -> None:
    family = families.by_name(name)
    assert parameters.count(family.architecture(size)) == family.sizes[size].parameters


@settings(max_examples=100)
@given(any_architecture())
def test_the_count_is_that_of_the_decoder(architecture: Architecture) -> None:
    with torch.device("meta"):
        decoder = Decoder(architecture)
    named = {name: parameter.numel() for name, parameter in decoder.named_parameters()}
    told = parameters.breakdown(architecture)
    assert parameters.count(architecture) == sum(named.values())

    def held(*parts: str) -> int:
        return sum(count for name, count in named.items() if any(part in name for part in parts))

    assert told.norms == held("norm")
    assert told.attention == held(".attention.")
    assert told.mlp == held(".mlp.")
    assert told.head == held("head.")
    assert told.positions == held("positions.")
    assert told.embedding == held("tokens.", "project_")
    assert told.non_embedding == held("blocks.") + sum(
        count for name, count in named.items() if name.startswith(("embedding_norm", "final_norm"))
    )


def test_the_published_count_without_embeddings() -> None:
    # The column "non-embedding" of Pythia's table.
    published = {"pythia-70m": 18_915_328, "pythia-1.4b": 1_208_602_624, "pythia-12b": 11_327_027_200}
    family = families.by_name("gpt_neox")
    found = {name: parameters.breakdown(family.architecture(name)).non_embedding for name in published}
    assert found == published


def test_bytes() -> None:
    architecture = Architecture()
    count = parameters.count(architecture)
    assert parameters.weight_bytes(architecture, "float32") == 4 * count
    assert parameters.weight_bytes(architecture, "bfloat16") == 2 * count
    assert parameters.weight_bytes(architecture, "int4") == (count + 1) // 2
    assert parameters.cache_bytes(architecture, 1000, "float32") == 2 * 12 * 768 * 1000 * 4
