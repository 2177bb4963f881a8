"""Deliberately wrong models, to prove that parity would notice.

A mutant changes one decision of the architecture, one line of the weight table, or one fact of a reading. It
is killed when its weights cannot be loaded or when its logits leave the bound. A survivor means that the
comparison is blind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from daybreak.architecture import Alibi, Architecture, Blanks, Learned, Rotary
from daybreak.compare.parity import BOUND, Pair
from daybreak.compare.redraw import redraw
from daybreak.compare.texts import LENGTHS
from daybreak.errors import DaybreakError
from daybreak.model.decoder import Decoder
from daybreak.model.reading import Reading
from daybreak.rules import PER_HEAD, SAME, THIRDS, TRANSPOSED, Layout, Rule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """One mutant's end."""

    kind: str
    """`architecture`, `weights` or `reading`."""
    subject: str
    """The field, tensor or fact that was changed."""
    change: str
    killed_by: str
    """`loading`, or the largest relative difference; empty for a survivor."""


def judge(pair: Pair, tensors: Tensors) -> Iterator[Verdict]:
    """Try every mutant that fits the pair's architecture on the reference's `tensors` (by their names in the
    file).
    """
    architecture = pair.decoder.architecture
    rules = pair.rules
    for field, change, wrong in architectures(architecture):
        yield Verdict("architecture", field, change, _fate(pair, wrong, rules, tensors))
    for subject, change, wrong_rules in tables(rules, architecture):
        yield Verdict("weights", subject, change, _fate(pair, architecture, wrong_rules, tensors))
    for fact, change, reading in readings(pair):
        yield Verdict("reading", fact, change, _reading_fate(pair, reading))


# Architectures
# ---------------------------------------------------------------------------------------------------


def architectures(right: Architecture) -> Iterator[tuple[str, str, Architecture]]:
    """(field, change, architecture) for every wrong value of every field that is a different model.

    Not listed, because they are the same model: another `context` without a position table. Nor are rounded
    frequencies where no published code rounds them: short texts hardly show them.
    """
    for field, value in [*_sizes(right), *_switches(right), *_positions(right), *_blanks(right)]:
        changes = {field: value} if field != "positions" else dict(value)
        shown = ", ".join(f"{k}={v}" for k, v in changes.items())
        try:
            yield field, shown, replace(right, **changes)
        except DaybreakError:
            continue  # not a model at all: the vocabulary itself refuses it


def _sizes(right: Architecture) -> Iterator[tuple[str, Any]]:
    for field in ("vocabulary", "inner"):
        yield field, getattr(right, field) + 1
    yield "layers", right.layers - 1
    yield "layers", right.layers + 1
    yield "width", right.width + right.heads
    divisors = [n for n in range(1, right.width + 1) if right.width % n == 0 and n != right.heads]
    for heads in divisors[:3]:
        yield "heads", heads
    divisors = [n for n in range(1, right.heads) if right.heads % n == 0 and n != right.key_heads]
    for key_heads in [*divisors[:2], *([] if right.key_heads is None else [None])]:
        yield "key_heads", key_heads
    yield "embedding_width", None if right.embedding_width else right.width
    if isinstance(right.positions, Learned):
        yield "context", right.context + 1
    yield "norm_eps", right.norm_eps * 10
    if right.norm_eps > 1e-5:  # a smaller one than that hides in rounding
        yield "norm_eps", right.norm_eps / 10


def _switches(right: Architecture) -> Iterator[tuple[str, Any]]:
    for block in ("pre", "post", "parallel"):
        if block != right.block:
            yield "block", block
    for activation in ("gelu", "gelu_tanh", "relu", "silu"):
        if activation != right.activation:
            yield "activation", activation
    yield "norm", "rms" if right.norm == "layer" else "layer"
    yield "residual", "normed" if right.residual == "input" else "input"
    yield "residual_scale", 1.01
    for field in ("shared_norm", "embedding_norm", "final_norm", "norm_affine", "gated", "tied"):
        yield field, not getattr(right, field)
    for field in ("scaled_scores", "layer_scaled_scores"):
        yield field, not getattr(right, field)
    for bias in ("qkv", "out", "mlp", "head"):
        yield "biases", right.biases ^ {bias}
    yield from _windows(right)


def _windows(right: Architecture) -> Iterator[tuple[str, Any]]:
    local = any(right.windows)
    if not local:
        yield "windows", (5,)
        yield "windows", (None, LENGTHS[0] - 1)
        return
    yield "windows", (None,)
    yield "windows", tuple(w and w + 1 for w in right.windows)
    yield "windows", tuple(w and w - 1 for w in right.windows)
    if right.windows[1:] + right.windows[:1] != right.windows:
        yield "windows", right.windows[1:] + right.windows[:1]


def _positions(right: Architecture) -> Iterator[tuple[str, Any]]:
    """Changes of `positions`, as dictionaries of fields: a learned table keeps its rows when its offset
    changes.
    """
    now = right.positions
    small = Rotary(min(2, right.head_width))
    if isinstance(now, Learned) and now.blocks:
        yield "positions", {"positions": Learned()}
        yield "positions", {"positions": replace(small, blocks=True)}
        yield "positions", {"positions": small}
    elif isinstance(now, Learned):
        yield "positions", {"positions": Learned(now.offset + 1), "context": right.context - 1}
        if now.offset:
            yield "positions", {"positions": Learned(now.offset - 1), "context": right.context + 1}
        yield "positions", {"positions": small}
        yield "positions", {"positions": Alibi()}
    elif isinstance(now, Rotary):
        if now.width > 2:  # a single pair is its own halves
            yield (
                "positions",
                {"positions": replace(now, pairs="halves" if now.pairs == "neighbours" else "neighbours")},
            )
            yield "positions", {"positions": replace(now, width=now.width - 2)}
            yield "positions", {"positions": replace(now, base=now.base * 2)}
        if right.blanks is not None:
            yield "positions", {"positions": replace(now, half_frequencies=not now.half_frequencies)}
        yield "positions", {"positions": replace(now, width=now.width + 2)}
        yield "positions", {"positions": replace(now, blocks=not now.blocks)}
        yield "positions", {"positions": Alibi()}
        yield "positions", {"positions": Learned()}
    else:
        yield "positions", {"positions": small}
        yield "positions", {"positions": Learned()}


def _blanks(right: Architecture) -> Iterator[tuple[str, Any]]:
    """Not listed: another `end`, which is predicted and never read."""
    now = right.blanks
    if now is None:
        yield "blanks", Blanks(start=4, end=3, mask=2, rest=1)
        return
    yield "blanks", None
    yield "blanks", replace(now, runs_on=not now.runs_on)
    yield "blanks", replace(now, mask=now.rest, rest=now.mask)
    yield "blanks", replace(now, start=now.end)
    unused = next(n for n in range(right.vocabulary) if n not in (*now.masks, now.start, now.end))
    yield "blanks", replace(now, mask=unused)
    yield "blanks", replace(now, rest=unused)
    yield "blanks", replace(now, sentence=unused)
    if now.sentence is not None:
        yield "blanks", replace(now, sentence=None)
        yield "blanks", replace(now, rest=now.sentence, sentence=now.rest)


# Weight tables
# ---------------------------------------------------------------------------------------------------

ALTERNATING = Layout(
    "alternating",
    lambda t, a: [t[0::2], t[1::2]],
    lambda p, a: torch.stack(list(p), dim=1).flatten(0, 1),
    lambda s: (sum(shape[0] for shape in s), *s[0][1:]),
)
"""No family's: rows of the two maps in turn."""

_OTHER_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "same": (TRANSPOSED,),
    "transposed": (SAME,),
    "thirds": (PER_HEAD,),
    "transposed thirds": (THIRDS,),
    "per head": (THIRDS,),
    "halves": (ALTERNATING,),
}


def tables(rules: list[Rule], architecture: Architecture) -> Iterator[tuple[str, str, list[Rule]]]:
    """(tensor, change, rules) with one line of the first two layers read wrongly."""
    for index, rule in enumerate(rules):
        if ".1." in rule.theirs or ".0." in rule.theirs or "blocks" not in rule.names[0]:
            for change, wrong in _misread(rule, architecture):
                yield rule.theirs, change, [*rules[:index], wrong, *rules[index + 1 :]]
    for first, second in _pairs(rules, architecture):
        swapped = [_swap(rule, rules[first], rules[second]) for rule in rules]
        yield rules[first].theirs, f"swapped with {rules[second].theirs}", swapped


def _misread(rule: Rule, architecture: Architecture) -> Iterator[tuple[str, Rule]]:
    is_matrix = rule.theirs.endswith("weight") and "norm" not in rule.names[0]
    if rule.layout.name in ("thirds", "per head", "halves") or is_matrix:
        for layout in _OTHER_LAYOUTS[rule.layout.name]:
            if not (layout is PER_HEAD or rule.layout is PER_HEAD) or architecture.heads > 1:
                yield f"read as {layout.name}", replace(rule, layout=layout)
    if architecture.key_heads not in (None, 1) and rule.names[0].endswith("query.weight"):
        yield "keys shared by other heads", replace(rule, layout=replace(SAME, split=_shared_otherwise))
    if len(rule.names) == 2:
        yield "the other way round", replace(rule, ours=rule.names[::-1])
    if len(rule.names) == 3:
        query, key, value = rule.names
        for order in ((key, query, value), (query, value, key), (value, key, query), (key, value, query)):
            yield "order " + " ".join(name.split(".")[-2] for name in order), replace(rule, ours=order)


def _shared_otherwise(tensor: Tensor, architecture: Architecture) -> list[Tensor]:
    """Heads 0, 2, 4 and 1, 3, 5 share a head of keys each, where it should be 0, 1, 2 and 3, 4, 5."""
    groups = architecture.key_heads or architecture.heads
    parts = tensor.view(-1, groups, architecture.head_width, *tensor.shape[1:])
    return [parts.transpose(0, 1).reshape(tensor.shape)]


def _pairs(rules: list[Rule], architecture: Architecture) -> Iterator[tuple[int, int]]:
    """Lines of one layer, or the same line of two layers, whose tensors could be taken for each other.

    The bias of keys is left out where they are not rotated: it adds the same to all scores of a query, which
    softmax ignores, so any other value gives the same model.
    """
    place = {rule.theirs: i for i, rule in enumerate(rules)}
    roles = [
        ("query", "key"),
        ("key", "value"),
        ("attention_norm", "mlp_norm"),
        ("query", "out"),
        ("gate", "up"),
    ]
    for i, rule in enumerate(rules):
        name = rule.names[0]
        free = name.endswith("key.bias") and not isinstance(architecture.positions, Rotary)
        if not name.startswith("blocks.0.") or free:
            continue
        for one, other in roles:
            partner = name.replace(one, other)
            if one in name and len(rule.names) == 1:
                yield from ((i, place[r.theirs]) for r in rules if r.names == (partner,))
        deeper = name.replace("blocks.0.", "blocks.1.")
        yield from ((i, place[r.theirs]) for r in rules if r.names[0] == deeper)


def _swap(rule: Rule, first: Rule, second: Rule) -> Rule:
    if rule.theirs == first.theirs:
        return replace(rule, ours=second.names)
    return replace(rule, ours=first.names) if rule.theirs == second.theirs else rule


# Readings
# --------------------------------------------------------------------------------------------------------

ReadingCall = Callable[[Decoder], list[Tensor]]


def readings(pair: Pair) -> Iterator[tuple[str, str, ReadingCall]]:
    """(fact, change, how the decoder reads the texts) with one fact of padding, packing or caching wrong."""
    longest, architecture = pair.longest, pair.decoder.architecture
    mask = torch.stack([torch.arange(longest) >= longest - len(text) for text in pair.texts])
    tokens = torch.ones(mask.shape, dtype=torch.int64)
    for row, text in enumerate(pair.texts):
        tokens[row, mask[row]] = text
    left = Reading.of(tokens, mask, blanks=architecture.blanks)
    yield "padding", "padding is seen", _padded(replace(left, real_keys=None), mask)
    if isinstance(pair.decoder.architecture.positions, Learned):  # elsewhere only distances count
        counted = torch.arange(longest)[None]
        yield (
            "positions",
            "padding is counted",
            _padded(replace(left, positions=counted, key_positions=counted), mask),
        )
    lengths = [[len(text) for text in pair.texts]]
    packed = Reading.of(torch.cat(pair.texts)[None], lengths=lengths, blanks=architecture.blanks)
    yield "packing", "texts see each other", _packed(replace(packed, documents=None), pair)
    if isinstance(pair.decoder.architecture.positions, Learned):
        total = torch.arange(packed.length)[None] % pair.decoder.architecture.context
        yield "positions", "packed texts count on", _packed(replace(packed, positions=total), pair)
    if architecture.blanks is not None:
        yield from _readings_of_blanks(pair, left, mask)


def _readings_of_blanks(pair: Pair, right: Reading, mask: Tensor) -> Iterator[tuple[str, str, ReadingCall]]:
    """Wrong in what is special about a text with blanks."""
    yield "context", "a context is read from left to right", _padded(replace(right, open_keys=None), mask)
    assert right.open_keys is not None and right.blocks is not None
    longer = right.open_keys | (right.open_keys.roll(1, 1) & mask)  # contexts never end a row
    yield "context", "the start token belongs to it", _padded(replace(right, open_keys=longer), mask)
    if pair.decoder.architecture.has_blocks:
        lower = (right.blocks - 1).clamp(min=0)
        yield "places", "a piece counts from 0", _padded(replace(right, blocks=lower), mask)


def _padded(reading: Reading, mask: Tensor) -> ReadingCall:
    def read(decoder: Decoder) -> list[Tensor]:
        logits = decoder.unembed(decoder(reading))
        return [logits[row, mask[row]] for row in range(len(mask))]

    return read


def _packed(reading: Reading, pair: Pair) -> ReadingCall:
    def read(decoder: Decoder) -> list[Tensor]:
        return list(torch.split(decoder.unembed(decoder(reading))[0], [len(text) for text in pair.texts]))

    return read


# Judgement
# -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _fate(pair: Pair, architecture: Architecture, rules: list[Rule], tensors: Tensors) -> str:
    decoder = _careless(architecture, rules, tensors)
    if decoder is None:
        return "loading"
    # The longest text tells; only which token is which blank has to be looked for in all of them.
    count = 1 if architecture.blanks == pair.decoder.architecture.blanks else len(pair.texts)
    try:
        ours = [decoder.logits(text[None])[0] for text in pair.texts[:count]]
    except DaybreakError:
        return "loading"
    return _verdict(pair.difference([*ours, *pair.truth[count:]]))


@torch.no_grad()
def _reading_fate(pair: Pair, read: ReadingCall) -> str:
    return _verdict(pair.difference(read(pair.decoder)))


def _verdict(difference: float) -> str:
    return "" if difference <= BOUND else f"{difference:.1e}"


def _careless(architecture: Architecture, rules: list[Rule], tensors: Tensors) -> Decoder | None:
    """A decoder filled as far as names and shapes allow, the rest drawn at random; None where a shape does
    not fit.

    Careless on purpose: the loader proper would stop at the first tensor too few or too many, and hide what
    the comparison of logits can see.
    """
    with torch.device("meta"):
        decoder = Decoder(architecture).eval()
    decoder.to_empty(device="cpu")
    redraw(decoder, seed=2)
    parameters = dict(decoder.named_parameters())
    for rule in rules:
        found = next((tensors[name] for name in (rule.theirs, *rule.also) if name in tensors), None)
        if found is None:
            continue
        for name, part in zip(rule.names, rule.layout.split(found, architecture), strict=True):
            if name in parameters:
                if parameters[name].shape != part.shape:
                    return None
                parameters[name].copy_(part)
    return decoder
