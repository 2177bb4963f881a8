"""Where adapters stand in PEFT's files: modules of transformers, and the maps of ours that they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from daybreak import rules
from daybreak.architecture import Architecture
from daybreak.families.family import Family
from daybreak.model.lora_settings import maps
from daybreak.rules import SAME, Layout, Rule, along_outputs

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
HEAD = "lm_head"
"""The head's module in transformers, whatever it is called in a checkpoint's files."""
PARTS = ("lora_A.weight", "lora_B.weight")
OF_TABLES = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class Place:
    """A module of transformers, and the maps of ours that it holds."""

    theirs: str
    also: tuple[str, ...]
    """Older names, read but never written."""
    ours: tuple[str, ...]
    layout: Layout
    """Of its weights."""

    @property
    def rows(self) -> Layout:
        """Of B and of biases."""
        return SAME if self.is_table else along_outputs(self.layout)

    @property
    def is_table(self) -> bool:
        return self.ours == ("tokens",)


def places(family: Family, architecture: Architecture, older: bool = False) -> list[Place]:
    """All modules that adapters can be on; with `older` those of older checkpoints, too."""
    own = {_weight(name): name for name in maps(architecture)}
    table = (*family.rules, *family.older_rules) if older else family.rules
    found = rules.expand(table, architecture.layers, own, family.prefix, family.older_prefixes)
    return [_place(rule, own) for rule in found]


def _weight(name: str) -> str:
    return "head.weight" if name == "tied_head" else f"{name}.weight"


def _place(rule: Rule, own: Mapping[str, str]) -> Place:
    names = [name.removesuffix(".weight") for name in (rule.theirs, *rule.also)]
    if rule.names == ("head.weight",):
        names = [HEAD, *(name for name in names if name != HEAD)]
    return Place(names[0], tuple(names[1:]), tuple(own[name] for name in rule.names), rule.layout)


def modules(family: Family, architecture: Architecture) -> Iterator[str]:
    """The modules of the model in transformers, norms and tables included."""
    yield HEAD
    for rule in family.rules:
        if rule.names[0].startswith("head."):
            continue
        for layer in range(architecture.layers if "{i}" in rule.theirs else 1):
            yield family.prefix + rule.at(layer).theirs.rpartition(".")[0]
