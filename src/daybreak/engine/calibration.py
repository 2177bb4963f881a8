"""Calibration: a text is read block by block, and each matrix is rounded for what it reads of it.

In memory are the hidden states of the text, one block in float32, and the Hessian of one matrix. What is
rounded goes into files at once. What is read comes from matrices that are rounded already, so that their
errors are made up for, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from daybreak.architecture import Architecture, Blanks
from daybreak.checkpoint.convert import Parts
from daybreak.checkpoint.fill import empty_decoder
from daybreak.engine.gptq import Inputs, fitted
from daybreak.engine.packed import Packed, pack
from daybreak.engine.quantised import Quantised, Scheme, quantise
from daybreak.engine.quantised_linear import TOKENS
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder

WINDOW = 512
"""Tokens that are read together."""
LEAST = 1024
"""Tokens of a text."""
USUAL = 16384
"""Tokens that are read at most, where nothing is said."""

Step = Callable[[int], Tensor]
"""What a part of the decoder makes of the window of that number."""


def windows(tokens: Sequence[int], context: int, most: int = USUAL) -> list[Tensor]:
    """Stretches from everywhere in a text, at most `most` tokens in all; each [length] int64. Raises
    `DaybreakError` for a text that is too short.
    """
    length, there = min(WINDOW, context), min(len(tokens), most)
    least = max(LEAST, length)
    if there < least:
        raise DaybreakError(
            f"{there:,} tokens are too few to calibrate on, it takes {least:,}; take a longer text, or leave "
            "calibrating out"
        )
    whole, wanted = len(tokens) // length, there // length
    firsts = [whole * number // wanted * length for number in range(wanted)]
    return [torch.tensor(tokens[first : first + length]) for first in firsts]


def calibrate(
    parts: Parts,
    architecture: Architecture,
    scheme: Scheme,
    texts: Sequence[Tensor],
    scratch: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Packed]:
    """The matrices of the blocks and the head, rounded for `texts` (each [length] token ids), by the names of
    the parameters that they are made of. They are mapped files in the folder `scratch`.

    `parts` gives the parameters, of any dtype. `progress` is told bytes of rounded weights, done and in all.
    A table that is embedding and head at once, as `scheme.embeddings` has it, is not among them.
    Raises `DaybreakError` for what is not finite.
    """
    return _Calibration(parts, architecture, scheme, texts, scratch, progress).run()


class _Reached(Exception):
    pass


class _Calibration:
    def __init__(
        self,
        parts: Parts,
        architecture: Architecture,
        scheme: Scheme,
        texts: Sequence[Tensor],
        scratch: Path,
        progress: Callable[[int, int], None],
    ) -> None:
        self._parts, self._architecture, self._scheme = parts, architecture, scheme
        self._scratch, self._progress = scratch, progress
        self._decoder = empty_decoder(architecture)
        self._readings = [
            self._decoder.reading(with_blank(text, architecture.blanks)[None]) for text in texts
        ]
        self._hidden: list[Tensor] = [torch.empty(0)] * len(texts)
        self._found: dict[str, Packed] = {}
        self._head = None if architecture.tied and scheme.embeddings else _head(self._decoder)
        linears = [name for name, _ in _linears(self._decoder, "") if name != self._head]
        every = [*linears, *([] if self._head is None else [self._head])]
        self._total = sum(self._bytes(self._decoder.get_parameter(name)) for name in every)
        self._done = 0

    @torch.inference_mode()
    def run(self) -> dict[str, Packed]:
        self._embed()
        for layer in range(self._architecture.layers):
            self._block(layer)
        if self._architecture.final_norm:
            self._through("final_norm", lambda number: self._decoder.final_norm(self._hidden[number]))
        if self._architecture.embedding_width is not None:
            self._through("project_out", lambda number: self._decoder.project_out(self._hidden[number]))
        if self._head is not None:
            self._round({self._head: self._parts.part(self._head)}, self._hidden)
        return self._found

    def _embed(self) -> None:
        """Of the token embedding only the rows that occur are in memory, under numbers of their own."""
        decoder = self._decoder
        every = torch.cat([reading.tokens.flatten() for reading in self._readings])
        ids, places = every.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        rows = self._parts.part(TOKENS)[ids].float()
        rows = quantise(rows, self._scheme, TOKENS).whole() if self._scheme.embeddings else rows
        decoder.tokens = nn.Embedding.from_pretrained(rows)  # type: ignore[no-untyped-call]
        counts = [reading.tokens.numel() for reading in self._readings]
        renamed = [
            replace(reading, tokens=part.view_as(reading.tokens))
            for reading, part in zip(self._readings, places.split(counts), strict=True)
        ]
        for name in ("positions", "block_positions", "embedding_norm"):
            if hasattr(decoder, name):
                self._fill(name)
        name = "project_in" if hasattr(decoder, "project_in") else ""
        self._through(name, lambda number: decoder.embed(renamed[number]))

    def _block(self, layer: int) -> None:
        block, window = self._decoder.blocks[layer], self._architecture.window(layer)

        def step(number: int) -> Tensor:
            turns, sights = self._decoder.arrangement(self._readings[number])
            return block(self._hidden[number], sights[window], turns, None)  # type: ignore[no-any-return]

        self._through(f"blocks.{layer}", step)
        block.to("meta")

    def _through(self, prefix: str, step: Step) -> None:
        """Round the matrices of the part of that name, if it has one, and let the windows go through it."""
        if prefix:
            self._fill(prefix)
            linears = dict(_linears(self._decoder, prefix))
            for names in _sharing(linears, step):
                weights = {name: linears[name].weight for name in names}
                inputs = (_reached(linears[names[0]], step, number) for number in range(len(self._hidden)))
                for name, found in self._round(weights, inputs).items():
                    linears[name].weight = nn.Parameter(found.whole(), requires_grad=False)
        for number in range(len(self._hidden)):
            self._hidden[number] = step(number)

    def _fill(self, prefix: str) -> None:
        """Give a part its parameters, in float32."""
        part = self._decoder.get_submodule(prefix)
        # By kind: matrices that are fused in the file then follow one another, and are taken apart once.
        names = sorted(part.state_dict(), key=lambda name: name.rpartition(".")[2])
        state = {name: self._parts.part(f"{prefix}.{name}").float() for name in names}
        part.load_state_dict(state, assign=True)

    def _round(self, weights: dict[str, Tensor], inputs: Iterable[Tensor]) -> dict[str, Quantised]:
        """Matrices that read the same `inputs`."""
        known = Inputs.of(hessian(inputs), next(iter(weights)))
        rounded = {}
        for name, weight in weights.items():
            rounded[name] = fitted(weight, known, self._scheme, name)
            self._found[name] = self._put_away(name, pack(rounded[name], self._scheme))
            self._done += self._bytes(weight)
            self._progress(self._done, self._total)
        return rounded

    def _bytes(self, weight: Tensor) -> int:
        return weight.numel() * self._scheme.bits // 8

    def _put_away(self, name: str, packed: Packed) -> Packed:
        """The same in files, whose pages the system may let go."""
        numbers, scales, zeros = packed
        file = self._scratch / name
        return Packed(
            _mapped(numbers, file.with_suffix(".numbers")),
            _mapped(scales, file.with_suffix(".scales")),
            None if zeros is None else _mapped(zeros, file.with_suffix(".zeros")),
        )


def with_blank(text: Tensor, blanks: Blanks | None) -> Tensor:
    """[length] int64 as a model with blanks meets texts: half of it given, at its end the blank at which it
    goes on, and then the other half as the piece that fills it."""
    if blanks is None:
        return text
    half = len(text) // 2
    return torch.cat([text[:half], torch.tensor([blanks.rest, blanks.start]), text[half:-2]])


def hessian(inputs: Iterable[Tensor]) -> Tensor:
    """The mean products of inputs with each other, [width, width] float32, over all that is [.., width]."""
    total, count = torch.empty(0), 0
    for some in inputs:
        flat = some.flatten(0, -2)
        total = total.addmm_(flat.t(), flat) if count else flat.t() @ flat
        count += len(flat)
    return total / count


def _head(decoder: Decoder) -> str:
    return TOKENS if decoder.architecture.tied else "head.weight"


def _linears(decoder: Decoder, prefix: str) -> Iterable[tuple[str, nn.Linear]]:
    """Those within the part of that name, by their weights' names."""
    for name, module in decoder.get_submodule(prefix).named_modules(prefix=prefix):
        if isinstance(module, nn.Linear):
            yield f"{name}.weight", module


def _sharing(linears: dict[str, nn.Linear], step: Step) -> list[list[str]]:
    """Names in the order in which the layers are called, those together that are given the same tensor."""
    calls: list[tuple[Tensor, list[str]]] = []

    def note(name: str, inputs: Tensor) -> None:
        if calls and calls[-1][0] is inputs:
            calls[-1][1].append(name)
        else:
            calls.append((inputs, [name]))

    handles = [
        linear.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]))
        for name, linear in linears.items()
    ]
    if linears:
        step(0)
    for handle in handles:
        handle.remove()
    return [names for _, names in calls]


def _reached(linear: nn.Linear, step: Step, number: int) -> Tensor:
    """What the layer reads of a window."""
    found: list[Tensor] = []

    def stop(_: nn.Module, given: tuple[Tensor]) -> None:
        found.append(given[0])
        raise _Reached

    handle = linear.register_forward_pre_hook(stop)
    try:
        step(number)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _mapped(tensor: Tensor, file: Path) -> Tensor:
    kept = torch.from_file(str(file), shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
    return kept.copy_(tensor)
