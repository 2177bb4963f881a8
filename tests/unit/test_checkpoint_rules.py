"""Layouts: splitting and joining are inverse for every shape; every table covers its decoder once."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daybreak import families, rules
from daybreak.architecture import Architecture
from daybreak.checkpoint.fill import empty_decoder
from daybreak.families.trials import TRIALS, trials
from daybreak.rules import PER_HEAD, SAME, THIRDS, TRANSPOSED, TRANSPOSED_THIRDS, Layout

MATRICES = (SAME, TRANSPOSED, THIRDS, TRANSPOSED_THIRDS, PER_HEAD)
FUSED = (THIRDS, TRANSPOSED_THIRDS, PER_HEAD)
CASES = [(name, label) for name, labels in TRIALS.items() for label in labels]


@st.composite
def attentions(draw: st.DrawFn) -> Architecture:
    heads = draw(st.integers(1, 6))
    return Architecture(width=heads * draw(st.integers(1, 7)), heads=heads)


def numbered(shape: tuple[int, ...], start: int = 0) -> torch.Tensor:
    count = int(torch.tensor(shape).prod())
    return torch.arange(start, start + count, dtype=torch.float32).view(shape)


@pytest.mark.parametrize("layout", MATRICES, ids=lambda layout: layout.name)
@given(architecture=attentions(), inputs=st.integers(1, 9))
def test_joining_what_was_split_gives_the_file_s_tensor(
    layout: Layout, architecture: Architecture, inputs: int
) -> None:
    outputs = architecture.width * (3 if layout in FUSED else 1)
    flipped = layout in (TRANSPOSED, TRANSPOSED_THIRDS)
    theirs = numbered((inputs, outputs) if flipped else (outputs, inputs))
    ours = layout.split(theirs, architecture)
    assert [tuple(part.shape) for part in ours] == [(architecture.width, inputs)] * len(ours)
    assert torch.equal(layout.join(ours, architecture), theirs)
    assert layout.shape([tuple(part.shape) for part in ours]) == tuple(theirs.shape)


@pytest.mark.parametrize("layout", MATRICES, ids=lambda layout: layout.name)
@given(architecture=attentions(), inputs=st.integers(1, 9))
def test_splitting_what_was_joined_gives_our_tensors(
    layout: Layout, architecture: Architecture, inputs: int
) -> None:
    shape = (architecture.width, inputs)
    ours = [numbered(shape, 1000 * k) for k in range(3 if layout in FUSED else 1)]
    back = layout.split(layout.join(ours, architecture), architecture)
    assert all(torch.equal(a, b) for a, b in zip(ours, back, strict=True))


@pytest.mark.parametrize("layout", (SAME, THIRDS, PER_HEAD), ids=lambda layout: layout.name)
@given(architecture=attentions())
def test_biases_go_both_ways(layout: Layout, architecture: Architecture) -> None:
    theirs = numbered((architecture.width * (1 if layout is SAME else 3),))
    ours = layout.split(theirs, architecture)
    assert torch.equal(layout.join(ours, architecture), theirs)
    assert layout.shape([tuple(part.shape) for part in ours]) == tuple(theirs.shape)


def test_a_per_head_row_belongs_to_the_head_and_part_that_the_papers_say() -> None:
    architecture = Architecture(width=6, heads=2)
    query, key, value = PER_HEAD.split(torch.arange(18.0), architecture)
    assert query.tolist() == [0, 1, 2, 9, 10, 11]
    assert key.tolist() == [3, 4, 5, 12, 13, 14]
    assert value.tolist() == [6, 7, 8, 15, 16, 17]


@pytest.mark.parametrize(("name", "label"), CASES)
def test_a_table_names_every_parameter_once(name: str, label: str) -> None:
    family, architecture = families.by_name(name), trials(name)[label]
    parameters = [parameter for parameter, _ in empty_decoder(architecture).named_parameters()]
    lines = rules.expand(family.rules, architecture.layers, parameters, family.prefix, family.older_prefixes)
    covered = [ours for rule in lines for ours in rule.names]
    assert sorted(covered) == sorted(parameters)
    spellings = [name for rule in lines for name in (rule.theirs, *rule.also)]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize("name", families.NAMES)
def test_no_parameter_is_taken_for_a_buffer(name: str) -> None:
    family = families.by_name(name)
    for rule in (*family.rules, *family.older_rules):
        line = rule.at(3)
        for spelling in (line.theirs, *line.also):
            assert not any(re.fullmatch(pattern, spelling) for pattern in family.ignored)
