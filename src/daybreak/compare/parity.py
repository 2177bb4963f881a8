"""Parity that means something: the decoder against the reference in every mode in which people use it.

The truth for every mode is the reference reading one text at a time, unpadded, in one pass. A padded, packed,
cached or reloaded batch that differs from it is wrong, whatever the reference itself does with such a batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from daybreak.architecture import Architecture
from daybreak.compare import references, texts
from daybreak.compare.references import Reference
from daybreak.engine.pages import PAGE, PageLayout, Pages, PageTable
from daybreak.engine.step import Part, Stepper, stepper
from daybreak.families.family import Family
from daybreak.model.cache import Cache
from daybreak.model.decoder import Decoder
from daybreak.rules import Rule, expand

BOUND = 1e-5
"""Largest accepted difference in float32, relative to the largest logit."""


@dataclass(frozen=True)
class Pair:
    """The same weights on both sides, and the texts both read."""

    family: Family
    reference: nn.Module
    decoder: Decoder
    texts: list[Tensor]
    truth: list[Tensor]
    """Per text the reference's logits [length, vocabulary]."""

    @property
    def other(self) -> Reference:
        """How the reference is asked."""
        return references.of(self.family)

    def difference(self, ours: list[Tensor]) -> float:
        """Largest difference over all texts, relative to the largest logit of the truth."""
        largest = greatest(float(t.abs().max()) for t in self.truth)
        worst = greatest(float((a - b).abs().max()) for a, b in zip(ours, self.truth, strict=True))
        return worst / largest if math.isfinite(largest) else math.inf

    @property
    def rules(self) -> list[Rule]:
        """The weight table of the decoder."""
        names = dict(self.decoder.named_parameters())
        family, layers = self.family, self.decoder.architecture.layers
        return expand(family.rules, layers, names, family.prefix, family.older_prefixes)

    def later(self, text: Tensor) -> int:
        """How many of the last columns may come in a later call than the first: not those of a context."""
        context = texts.opening(text, self.decoder.architecture)
        return len(text) - context if context else self.longest

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.texts))


def greatest(values: Iterable[float]) -> float:
    """The largest value, or infinity if one is no number: `max` alone may drop it, and with it a failure."""
    found = list(values)
    return max(found) if all(map(math.isfinite, found)) else math.inf


@torch.no_grad()
def pair(family: Family, model: nn.Module, decoder: Decoder, seed: int = 0) -> Pair:
    """Draw the texts, one of them longer than every window, and let the reference read them one by one."""
    drawn = texts.draw(decoder.architecture, seed)
    other = references.of(family)
    return Pair(family, model, decoder, drawn, [other.logits(model, text) for text in drawn])


def singles(p: Pair) -> list[Tensor]:
    """One text at a time, in one pass."""
    return [p.decoder.logits(text[None])[0] for text in p.texts]


def cached(p: Pair) -> list[Tensor]:
    """One text at a time: a part at once, then token by token, then a chunk; the cache has to grow."""
    return [_read_cached(p.decoder, text) for text in p.texts]


def _read_cached(decoder: Decoder, text: Tensor) -> Tensor:
    cache = Cache(decoder.architecture, 1, capacity=4, dtype=decoder.tokens.weight.dtype)
    parts = [text[None, a:b] for a, b in itertools.pairwise(cuts(text, decoder.architecture))]
    return torch.cat([decoder.logits(part, cache=cache)[0] for part in parts])


def cuts(text: Tensor, architecture: Architecture) -> list[int]:
    """Where a text that is read in parts is cut, its ends included."""
    first = texts.opening(text, architecture) or 7
    return [0, *(first + c for c in (0, 1, 2, 3, 12) if first + c < len(text)), len(text)]


def _padded(p: Pair, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    mask = torch.stack(masks)  # [texts, longest]
    tokens = torch.full(mask.shape, 1)
    for row, text in enumerate(p.texts):
        tokens[row, mask[row]] = text
    return tokens, mask


def _read_padded(p: Pair, masks: list[Tensor]) -> list[Tensor]:
    tokens, mask = _padded(p, masks)
    logits = p.decoder.logits(tokens, mask)
    return [logits[row, mask[row]] for row in range(len(p.texts))]


def left(p: Pair) -> list[Tensor]:
    """All texts in one batch, padding in front."""
    longest = p.longest
    return _read_padded(p, [torch.arange(longest) >= longest - len(t) for t in p.texts])


def right(p: Pair) -> list[Tensor]:
    """All texts in one batch, padding behind."""
    return _read_padded(p, [torch.arange(p.longest) < len(t) for t in p.texts])


def left_cached(p: Pair) -> list[Tensor]:
    """A left-padded batch read in two parts through the cache, as generation does."""
    longest = p.longest
    tokens, mask = _padded(p, [torch.arange(longest) >= longest - len(t) for t in p.texts])
    ours: dict[int, Tensor] = {}
    for rows in _alike(p):
        whole = longest - min(p.later(p.texts[row]) for row in rows)
        cache = Cache(p.decoder.architecture, len(rows), capacity=4, dtype=p.decoder.tokens.weight.dtype)
        cuts = [0, *(longest - c for c in (8, 2, 1) if longest - c >= whole), longest]
        parts = [
            p.decoder.logits(tokens[rows, a:b], mask[rows, a:b], cache=cache)
            for a, b in itertools.pairwise(cuts)
        ]
        logits = torch.cat(parts, dim=1)
        ours.update((row, logits[place, mask[row]]) for place, row in enumerate(rows))
    return [ours[row] for row in range(len(p.texts))]


def _alike(p: Pair) -> list[list[int]]:
    """Rows that can be read in the same parts: those whose last eight tokens may come later, and the rest."""
    late = [row for row, text in enumerate(p.texts) if p.later(text) >= 8]
    return [rows for rows in (late, [r for r in range(len(p.texts)) if r not in late]) if rows]


def packed(p: Pair) -> list[Tensor]:
    """All texts one after another in two rows, the second one shorter."""
    rows = [p.texts[:2], p.texts[2:]]
    lengths = [[len(text) for text in row] for row in rows]
    tokens = torch.full((2, max(map(sum, lengths))), 1)
    for row, parts in enumerate(rows):
        tokens[row, : sum(lengths[row])] = torch.cat(parts)
    logits = p.decoder.logits(tokens, lengths=lengths)
    return [part for row in range(2) for part in torch.split(logits[row, : sum(lengths[row])], lengths[row])]


def stepped(p: Pair) -> list[Tensor]:
    """As generation reads, one text at a time: over pages of keys and values, in the parts of `cached`."""
    stored = str(p.decoder.tokens.weight.dtype).removeprefix("torch.")
    layout = PageLayout.of(p.decoder.architecture, stored)
    pages = Pages(layout, sum(layout.bytes_for(len(text) + PAGE, len(text)) for text in p.texts))
    step = stepper(p.decoder, pages)
    return [_read_in_steps(p.decoder, step, PageTable(pages), text) for text in p.texts]


def _read_in_steps(decoder: Decoder, step: Stepper, table: PageTable, text: Tensor) -> Tensor:
    reading = decoder.reading(text[None])
    context = texts.opening(text, decoder.architecture)
    logits = []
    for begin, end in itertools.pairwise(cuts(text, decoder.architecture)):
        assert table.reach(end)
        part = Part(table, text[begin:end].tolist(), begin)
        if reading.blocks is not None:
            positions, blocks = (each[0, begin:end].tolist() for each in (reading.positions, reading.blocks))
            part = replace(part, positions=positions, blocks=blocks, context=context)
        logits.append(step.unembed(step.read([part])))
    return torch.cat(logits)


def batched(p: Pair) -> float:
    """Our left-padded batch against our own single calls."""
    return replace(p, truth=singles(p)).difference(left(p))


def gradients(p: Pair) -> float:
    """Gradients of the next-token loss of the longest text, in the reference's layout; see
    `gradient_difference`.
    """
    text = p.texts[0]
    with torch.enable_grad():
        ours = _loss_gradients(p.decoder, p.decoder.logits(text[None])[0], text)
    architecture = p.decoder.architecture
    theirs = reference_gradients(p)
    joined = {}
    for rule in p.rules:
        name = next((n for n in (rule.theirs, *rule.also) if n in theirs), rule.theirs)
        joined[name] = rule.layout.join([ours[n] for n in rule.names], architecture)
    return gradient_difference(joined, theirs)


def reference_gradients(p: Pair) -> dict[str, Tensor]:
    """The same by the reference, by the names in its files."""
    with torch.enable_grad():
        found = _loss_gradients(p.reference, p.other.logits(p.reference, p.texts[0]), p.texts[0])
    return p.other.as_saved(p.reference, found)


def gradient_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest over all tensors, relative to the tensor's largest gradient.

    Or to 1e-2 of the model's largest where the tensor has next to none: the gradient of a key's bias is zero
    in exact arithmetic, and what is left of it is rounding.
    """
    largest = greatest(float(g.abs().max()) for g in theirs.values())
    return greatest(
        float((ours[name] - grad).abs().max()) / max(float(grad.abs().max()), 1e-2 * largest)
        for name, grad in theirs.items()
    )


def _loss_gradients(model: nn.Module, logits: Tensor, text: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    loss = cross_entropy(logits[:-1], text[1:])
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: grad.float() for name, grad in zip(parameters, found, strict=True) if grad is not None}


READINGS: dict[str, Callable[[Pair], list[Tensor]]] = {
    "full pass": singles,
    "KV cache": cached,
    "left-padded": left,
    "left-padded, cached": left_cached,
    "right-padded": right,
    "packed": packed,
    "generation's steps": stepped,
}
"""Ways to read the texts: the logits of each, [length, vocabulary]."""


def _compared(read: Callable[[Pair], list[Tensor]]) -> Callable[[Pair], float]:
    return lambda p: p.difference(read(p))


MODES: dict[str, Callable[[Pair], float]] = {
    **{name: _compared(read) for name, read in READINGS.items()},
    "batch = singles": batched,
    "gradients": gradients,
}


def measure(p: Pair, modes: dict[str, Callable[[Pair], float]] | None = None) -> dict[str, float]:
    """Every mode's largest relative difference."""
    with torch.no_grad():
        return {name: mode(p) for name, mode in (modes or MODES).items()}
