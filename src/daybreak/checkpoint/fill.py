"""From stored tensors to a decoder: every tensor used, every parameter filled, nothing guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from daybreak import rules
from daybreak.architecture import Architecture
from daybreak.checkpoint import stored as files
from daybreak.checkpoint.leftovers import check_leftovers, listed
from daybreak.checkpoint.stored import Stored
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.model.decoder import Decoder
from daybreak.rules import Rule, Shape

Taker = Callable[[str, Tensor], bool]
"""Of a parameter by its name: True if it was taken, and is no parameter of the decoder any more."""
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fill(
    family: Family,
    architecture: Architecture,
    found: Mapping[str, Stored],
    dtype: torch.dtype,
    device: torch.device,
    source: Path,
    others: Callable[[Decoder], Taker] | None = None,
) -> Decoder:
    """A decoder whose parameters are the tensors `found` in the checkpoint `source`. `others` may put other
    layers into the empty decoder, and takes what is theirs, tensor by tensor.

    Where the file holds a parameter as it is wanted, the parameter is a view of the mapped file; where dtype,
    device or layout differ, it is a copy, and the file's pages do not stay in memory. Raises `DaybreakError`
    for a tensor that is missing, unexpected, of another shape or not of floating point.
    """
    decoder = empty_decoder(architecture)
    uses = matched(family, decoder, found, source)
    take = None if others is None else others(decoder)
    state: dict[str, Tensor] = {}
    for use in uses:
        parts = use.rule.layout.split(use.land(dtype, device), architecture)
        for name, part in zip(use.rule.names, parts, strict=True):
            if take is None or not take(name, part):
                state[name] = part
        use.mapping.release(use.stored)
    lacking = decoder.load_state_dict(state, strict=take is None, assign=True)
    assert take is not None or not lacking.missing_keys
    return decoder


def matched(family: Family, decoder: Decoder, found: Mapping[str, Stored], source: Path) -> list[Use]:
    """Which stored tensor gives which parameters of `decoder`, in file order; checked as `fill` promises."""
    architecture = decoder.architecture
    wanted = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    uses = _uses(family, architecture, wanted, found, source)
    check_leftovers(family, architecture, found, {use.stored.name: use.rule for use in uses}, source)
    for use in uses:
        _check(use, wanted)
    return uses


class _WithoutDraws(TorchFunctionMode):
    """Modules made under it leave their parameters as they are. Even on the meta device, where a draw does
    nothing, asking for one makes torch import its symbolic machinery: a second, and 60 MB."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return None
        return function(*args, **(kwargs or {}))


def empty_decoder(architecture: Architecture) -> Decoder:
    """A decoder whose parameters have shapes and no memory."""
    with torch.device("meta"), _WithoutDraws():
        return Decoder(architecture)


def expected_shapes(family: Family, architecture: Architecture) -> dict[str, Shape]:
    """Every name that the family's files may give to a tensor of such a model -> the tensor's shape there."""
    wanted = {
        name: tuple(parameter.shape) for name, parameter in empty_decoder(architecture).named_parameters()
    }
    return {
        name: rule.layout.shape([wanted[ours] for ours in rule.names])
        for rule in rules.expand(
            (*family.rules, *family.older_rules),
            architecture.layers,
            wanted,
            family.prefix,
            family.older_prefixes,
        )
        for name in (rule.theirs, *rule.also)
    }


@dataclass(frozen=True, eq=False)
class Use:
    """A rule, the stored tensor it reads, and the mapping of the file."""

    rule: Rule
    stored: Stored
    mapping: files.Mapping

    def land(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor as the file lays it out: a view of the mapping, or a copy made piece by piece."""
        if self.stored.rows is not None:
            return files.whole(self.stored.rows, dtype, device)
        whole = self.mapping.tensor(self.stored)
        if whole.dtype == dtype and device.type == "cpu":
            return whole
        landed = torch.empty(whole.shape, dtype=dtype, device=device)
        for rows in files.in_chunks(whole):
            files.copy_serially(whole[rows], landed[rows])
            self.mapping.release(self.stored)
        return landed


def _uses(
    family: Family,
    architecture: Architecture,
    wanted: Iterable[str],
    found: Mapping[str, Stored],
    source: Path,
) -> list[Use]:
    mappings = {file: files.Mapping(file) for file in {stored.file for stored in found.values()}}
    filled: dict[str, str] = {}
    uses = []
    for rule in rules.expand(
        (*family.rules, *family.older_rules),
        architecture.layers,
        wanted,
        family.prefix,
        family.older_prefixes,
    ):
        spelled = [name for name in (rule.theirs, *rule.also) if name in found]
        for name in spelled:
            if twice := next((ours for ours in rule.names if ours in filled), None):
                raise DaybreakError(
                    f"{source} holds both {filled[twice]!r} and {name!r}, two names of one tensor; remove one"
                )
            filled.update(dict.fromkeys(rule.names, name))
            uses.append(Use(rule, found[name], mappings[found[name].file]))
    if missing := [name for name in wanted if name not in filled]:
        raise DaybreakError(_missing(family, architecture, missing, source))
    return sorted(uses, key=lambda use: (use.stored.file, use.stored.offset))


def _missing(family: Family, architecture: Architecture, missing: list[str], source: Path) -> str:
    expected = rules.expand(family.rules, architecture.layers, missing, family.prefix)
    names = [rule.theirs for rule in expected if set(rule.names) <= set(missing)] or missing
    if all(name.startswith("head.") for name in missing):
        return (
            f"{source} has no tensor {names[0]!r}: it was saved without its head, and config.json says that "
            "the head is not "
            "the token embedding; take the checkpoint of the whole language model"
        )
    return (
        f"{source} has no tensor {listed(names)}, which config.json's architecture needs; the checkpoint is "
        "incomplete or "
        "its config.json belongs to another model"
    )


def _check(use: Use, wanted: Mapping[str, Shape]) -> None:
    stored = use.stored
    expected = use.rule.layout.shape([wanted[name] for name in use.rule.names])
    if stored.shape != expected:
        raise DaybreakError(
            f"{stored.file}: tensor {stored.name!r} has shape {list(stored.shape)}, config.json makes it "
            f"{list(expected)}; "
            "take config.json and weights from the same checkpoint"
        )
    if stored.dtype not in FLOATING:
        kind = str(stored.dtype).removeprefix("torch.")
        raise DaybreakError(
            f"{stored.file}: tensor {stored.name!r} is stored as {kind}; this way of quantising is not read, "
            "take the checkpoint in float32, float16 or bfloat16"
        )
