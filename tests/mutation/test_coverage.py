"""The mutants reach every field of the vocabulary and every layout of the weight tables."""

from __future__ import annotations

import dataclasses

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.compare.mutants import architectures, tables
from daybreak.families.trials import trials
from daybreak.model.decoder import Decoder
from daybreak.rules import expand

ALL = [(families.by_name(name), shape) for name in families.NAMES for shape in trials(name).values()]


def test_every_field_is_mutated_somewhere() -> None:
    reached = {field for _, shape in ALL for field, _, _ in architectures(shape)}
    assert reached == {field.name for field in dataclasses.fields(Architecture)}


def test_every_mutant_is_another_architecture() -> None:
    for _, shape in ALL:
        for field, change, wrong in architectures(shape):
            assert wrong != shape, (field, change)


def test_every_layout_is_misread_somewhere() -> None:
    misread = set()
    for family, shape in ALL:
        rules = expand(family.rules, shape.layers, dict(Decoder(shape).named_parameters()), family.prefix)
        found = list(tables(rules, shape))
        assert found
        by_name = {rule.theirs: rule for rule in rules}
        misread |= {by_name[tensor].layout.name for tensor, _, _ in found}
    assert misread >= {"same", "transposed", "transposed thirds", "thirds", "per head", "halves"}
