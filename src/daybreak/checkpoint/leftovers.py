"""Tensors of a checkpoint that no parameter of the decoder reads: each must be known to be without effect."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from daybreak import rules
from daybreak.architecture import Architecture
from daybreak.checkpoint import stored as files
from daybreak.checkpoint.stored import Stored
from daybreak.errors import DaybreakError, nearest
from daybreak.families.family import Family
from daybreak.rules import Rule

SHOWN = 3
"""How many names an error lists before it only counts."""


def check_leftovers(
    family: Family,
    architecture: Architecture,
    found: Mapping[str, Stored],
    used: Mapping[str, Rule],
    source: Path,
) -> None:
    """Refuse what is neither a buffer, nor the tied embedding once more, nor a bias of zeros or a gain of
    ones."""
    table = _all_spellings(family, architecture)
    unknown = []
    for stored in found.values():
        if stored.name in used or _is_buffer(family, stored.name):
            continue
        rule = table.get(stored.name)
        if rule is None:
            unknown.append(stored.name)
        elif architecture.tied and rule.names == ("head.weight",):
            _check_tied(stored, found, used)
        else:
            _check_neutral(rule, stored)
    if unknown:
        hint = nearest(unknown[0], table) if len(unknown) == 1 else ""
        raise DaybreakError(
            f"{source} holds {listed(unknown)}, for which this {family.title} model has no place{hint}; "
            "it may be the checkpoint of another model or of another task"
        )


def listed(names: Sequence[str]) -> str:
    """The first few names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _all_spellings(family: Family, architecture: Architecture) -> dict[str, Rule]:
    """Every name that any model of the family with as many layers can hold."""
    written = (*family.rules, *family.older_rules)
    ours = {name for rule in written for i in range(architecture.layers) for name in rule.at(i).names}
    lines = rules.expand(written, architecture.layers, ours, family.prefix, family.older_prefixes)
    return {name: rule for rule in lines for name in (rule.theirs, *rule.also)}


def _is_buffer(family: Family, name: str) -> bool:
    bare = {name.removeprefix(prefix) for prefix in ("", family.prefix, *family.older_prefixes)}
    return any(re.fullmatch(pattern, candidate) for pattern in family.ignored for candidate in bare)


def _check_tied(head: Stored, found: Mapping[str, Stored], used: Mapping[str, Rule]) -> None:
    embedding = next(found[name] for name, rule in used.items() if rule.names == ("tokens.weight",))
    if (head.file, head.offset, head.loaded) == (embedding.file, embedding.offset, None):
        return
    if head.shape != embedding.shape or head.dtype != embedding.dtype or not _equal(head, embedding):
        raise DaybreakError(
            f"{head.file}: {head.name!r} differs from the embedding {embedding.name!r}, but config.json says "
            "that the model "
            "has one matrix for both; set tie_word_embeddings to false there if the head is meant to be "
            "separate"
        )


def _equal(first: Stored, second: Stored) -> bool:
    maps = files.Mapping(first.file), files.Mapping(second.file)
    left, right = maps[0].tensor(first), maps[1].tensor(second)
    for rows in files.in_chunks(left):
        if not torch.equal(left[rows], right[rows]):
            return False
        maps[0].release(first)
        maps[1].release(second)
    return True


def _check_neutral(rule: Rule, stored: Stored) -> None:
    """Published files may spell out biases of zero and gains of one that the architecture leaves out."""
    neutral = 0 if all(name.endswith(".bias") for name in rule.names) else 1
    is_norm = all(name.rpartition(".")[0].endswith("norm") for name in rule.names)
    tensor = files.Mapping(stored.file).tensor(stored)
    if (neutral == 1 and not is_norm) or not bool((tensor == neutral).all()):
        raise DaybreakError(
            f"{stored.file}: tensor {stored.name!r} has no place in the architecture that config.json "
            "describes, and is not "
            "without effect; take config.json and weights from the same checkpoint"
        )
