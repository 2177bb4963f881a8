"""Weights of recurrent models by the names in files, both ways; fastai's files among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from daybreak import rules
from daybreak.checkpoint.folder import weights
from daybreak.checkpoint.save import Written, write_folder
from daybreak.checkpoint.stored import Mapping as Pages
from daybreak.checkpoint.stored import Stored
from daybreak.checkpoint.tensors import contents
from daybreak.errors import DaybreakError
from daybreak.families.recurrent import Lstm, RecurrentFamily
from daybreak.model.awd_lstm import AwdLstm

HEAD = "head."
"""Begins the names of a classifier's head in a folder of ours."""
MODEL = "model"
"""Where fastai's files with an optimizer hold the weights."""


def names(family: RecurrentFamily, layers: int, parameters: Iterable[str]) -> dict[str, str]:
    """The name in the file -> the model's, for all its layers."""
    lines = rules.expand(family.rules, layers, parameters)
    return {line.theirs: line.names[0] for line in lines}


def spelled(family: RecurrentFamily, name: str) -> str:
    """The name of a language model's tensor for that of a part's, or of a classifier's."""
    found = next((start for start in family.shells if name.startswith(start)), None)
    return name if found is None else family.shells[found] + name.removeprefix(found)


def save(
    folder: Path,
    family: RecurrentFamily,
    model: AwdLstm,
    texts: Mapping[str, bytes],
    head: Mapping[str, Tensor],
) -> None:
    """Write a folder that `fill` reads: the weights under the family's names, the tensors of a classifier's
    `head` beside them, and the files `texts`."""
    own = dict(model.named_parameters())
    table = names(family, model.shape.layers, own)
    tensors = {theirs: own[ours].detach() for theirs, ours in table.items()}
    tensors.update({HEAD + name: tensor for name, tensor in head.items()})
    write_folder(folder, [_written(name, tensor) for name, tensor in tensors.items()], texts)


def _written(name: str, tensor: Tensor) -> Written:
    return Written(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor.reshape(-1)])


def head_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a classifier's head in a folder of ours; empty for a language model."""
    found = {name: stored for name, stored in weights(folder).items() if name.startswith(HEAD)}
    return {name.removeprefix(HEAD): _read(stored) for name, stored in found.items()}


def fill(family: RecurrentFamily, shape: Lstm, folder: Path) -> AwdLstm:
    """The model in a folder of ours."""
    found = {name: one for name, one in weights(folder).items() if not name.startswith(HEAD)}
    return _filled(family, shape, found, folder)


def read_fastai(family: RecurrentFamily, file: Path, direction: str = "forward") -> AwdLstm:
    """A language model, an encoder or a classifier that fastai saved (.pth, or as safetensors); of a
    classifier the encoder. Without a head of a language model, the bias of its head is 0.

    The file's pickle is read by torch's weights-only unpickler, which runs nothing. Raises `DaybreakError`
    for a file that is damaged or holds something else.
    """
    found = {spelled(family, one.name): one for one in _fastai_contents(file)}
    found = {name: one for name, one in found.items() if not name.startswith("1.layers.")}
    table = found.get("0.encoder.weight")
    states = _states(found)
    if table is None or not states:
        raise DaybreakError(
            f"{file} holds no AWD-LSTM of fastai's: there is no {'encoder' if table is None else 'rnns'} in "
            "it; give what learn.save or learn.save_encoder wrote"
        )
    hidden = states[0].shape[1]
    shape = family.shape(
        vocabulary=table.shape[0],
        width=table.shape[1],
        hidden=hidden,
        layers=len(states),
        direction=direction,
    )
    return _filled(family, shape, found, file)


def _states(found: Mapping[str, Stored]) -> list[Stored]:
    named = [f"0.rnns.{layer}.weight_hh_l0_raw" for layer in range(len(found))]
    return [found[name] for name in named if name in found]


def _fastai_contents(file: Path) -> list[Stored]:
    try:
        return contents(file)
    except DaybreakError as plain:
        try:
            return contents(file, MODEL)  # with the optimizer's state beside it
        except DaybreakError:
            raise plain from None


def _filled(family: RecurrentFamily, shape: Lstm, found: Mapping[str, Stored], source: Path) -> AwdLstm:
    model = AwdLstm(shape)
    own = dict(model.named_parameters())
    table = names(family, shape.layers, own)
    stale = {name.replace("{i}", str(layer)) for name in family.stale for layer in range(shape.layers)}
    if unknown := sorted(found.keys() - table.keys() - family.twins.keys() - stale):
        raise DaybreakError(
            f"{source} holds a tensor {unknown[0]!r}, which a model of {family.title} with {shape.layers} "
            "layers does not have; give one of its checkpoints"
        )
    with torch.no_grad():
        for theirs, ours in table.items():
            if theirs in found:
                _copy(own[ours], found[theirs], source)
            elif ours == "head_bias":
                own[ours].zero_()
            else:
                raise DaybreakError(f"{source} has no tensor {theirs!r}; fetch it again")
    return model.eval()


def _copy(parameter: Tensor, stored: Stored, source: Path) -> None:
    if tuple(parameter.shape) != stored.shape:
        raise DaybreakError(
            f"{source}: tensor {stored.name!r} has the shape {list(stored.shape)} and not "
            f"{list(parameter.shape)}; it is of another model"
        )
    parameter.copy_(_read(stored))


def _read(stored: Stored) -> Tensor:
    return Pages(stored.file).tensor(stored).clone()


def to_fastai(family: RecurrentFamily, model: AwdLstm) -> dict[str, Tensor]:
    """The state that fastai's language model loads: its names, with the tensors that it has twice."""
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = {theirs: own[ours] for theirs, ours in names(family, model.shape.layers, own).items()}
    return {**state, **{twin: state[name] for twin, name in family.twins.items()}}


def encoder_alone(family: RecurrentFamily, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of such a state what fastai's `load_encoder` reads."""
    bare: Sequence[tuple[str, str]] = [(name, name.removeprefix("0.")) for name in state]
    return {short: state[name] for name, short in bare if short != name and spelled(family, short) == name}
