"""`daybreak verify`: a family, or one checkpoint, against the reference in all modes and both dtypes, and
with weights of few bits against its own float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from daybreak import families
from daybreak.architecture import Architecture
from daybreak.checkpoint.arrays import is_array_release
from daybreak.checkpoint.hub import resolve
from daybreak.compare import few_bits, few_bits_mutants, mutants, parity, references
from daybreak.compare.few_bits import FewBits
from daybreak.compare.mutants import Verdict
from daybreak.compare.parity import BOUND, MODES, Pair
from daybreak.compare.redraw import redraw
from daybreak.engine.quantised_linear import is_quantised
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from daybreak.families.trials import REFERENCES, alone, trials
from daybreak.language_model import LanguageModel, create, load
from daybreak.model.decoder import Decoder

BF16_FACTOR = 2.0
"""In bfloat16 we may be this many times as far from float32 as the reference in bfloat16 is."""
RELOADED = "saved and reloaded"
MODE_NAMES = (*MODES, RELOADED)
SEED = 20180611


@dataclass(frozen=True)
class Comparison:
    """One shape or checkpoint in one dtype."""

    family: str
    label: str
    dtype: str
    differences: dict[str, float]
    """Mode -> largest difference relative to the largest logit."""
    reference_own: dict[str, float] = field(default_factory=dict)
    """In bfloat16: how far the reference in this dtype is from itself in float32."""
    reference: str = ""
    """Name and version of the other side."""

    def failures(self) -> list[str]:
        """Modes beyond the bound; not-a-number is beyond every bound."""
        return [mode for mode, value in self.differences.items() if not value <= self.bound(mode)]

    def bound(self, mode: str) -> float:
        """What is accepted in this mode."""
        if self.dtype == "float32":
            return BOUND
        return BF16_FACTOR * self.reference_own["gradients" if mode == "gradients" else "full pass"]


@dataclass(frozen=True)
class Report:
    """Everything that was compared."""

    reference: str
    comparisons: list[Comparison] = field(default_factory=list)
    mutants: list[tuple[str, Verdict]] = field(default_factory=list)
    """(family, verdict)"""
    few_bits: list[FewBits] = field(default_factory=list)

    @property
    def survivors(self) -> list[tuple[str, Verdict]]:
        return [(family, verdict) for family, verdict in self.mutants if not verdict.killed_by]

    @property
    def passed(self) -> bool:
        """Within the bounds everywhere, and no mutant survived."""
        return not self.survivors and not self.failed

    @property
    def failed(self) -> list[Comparison | FewBits]:
        """What is beyond a bound."""
        every: list[Comparison | FewBits] = [*self.comparisons, *self.few_bits]
        return [one for one in every if one.failures()]


Progress = Callable[[str], None]


def verify_families(names: tuple[str, ...], progress: Progress = lambda text: None) -> Report:
    """Every trial shape of the named families, with mutants; those without a reference are compared with
    themselves alone.
    """
    *others, last = dict.fromkeys(_title(families.by_name(name)) for name in names if trials(name)) or [""]
    report = Report(f"{', '.join(others)} and {last}" if others else last)
    for name in names:
        for label, _ in trials(name).items():
            progress(f"{name}: {label}")
            with tempfile.TemporaryDirectory() as folder:
                pair = trial_pair(name, label, Path(folder))
                report.comparisons.extend(compare(pair, label))
                verdicts = mutants.judge(pair.pair, pair.pair.other.tensors(Path(folder)))
                report.mutants.extend((name, verdict) for verdict in verdicts)
                _few_bits(report, pair.model, Path(folder), label)
        for label, shape in alone(name).items():
            progress(f"{name}: {label}")
            with tempfile.TemporaryDirectory() as folder:
                _few_bits(report, alone_model(name, shape, Path(folder)), Path(folder), label)
    return report


def _few_bits(report: Report, model: LanguageModel, folder: Path, label: str) -> None:
    """`model` was loaded from `folder`."""
    report.few_bits.extend(few_bits.compare(model, folder, label, SEED))
    verdicts = few_bits_mutants.judge(model, folder, SEED)
    report.mutants.extend((model.family.name, verdict) for verdict in verdicts)


def alone_model(name: str, shape: Architecture, folder: Path) -> LanguageModel:
    """A model of a family without a reference: drawn, saved into `folder`, and loaded from there."""
    made = create(name, **{one.name: getattr(shape, one.name) for one in fields(shape)})
    redraw(made.decoder, SEED)
    made.save(folder)
    return load(folder)


def verify_checkpoint(
    source: str, revision: str | None = None, progress: Progress = lambda text: None
) -> Report:
    """One folder or hub repository: both sides load it by themselves and read the same random tokens."""
    progress("loading on both sides")
    folder = resolve(source, revision)
    ours = load(folder)
    if not (ours.family.hf_class or ours.family.name in REFERENCES) or is_array_release(folder):
        raise DaybreakError(
            f"{source}, a model of {ours.family.title}, has no reference to be compared with: transformers "
            "does not open it; name a second folder to compare the two with each other"
        )
    if is_quantised(ours.decoder):
        raise DaybreakError(
            f"{source} has quantised weights, which no reference reads; see what quantising costs with "
            "daybreak quantize --text"
        )
    theirs = references.of(ours.family).load(folder)
    progress("comparing")
    pair = ModelPair(ours, parity.pair(ours.family, theirs, ours.decoder, SEED))
    few = list(few_bits.compare(ours, folder, source, SEED))
    return Report(_title(ours.family), list(compare(pair, source)), few_bits=few)


def _title(family: Family) -> str:
    return references.of(family).title()


@dataclass(frozen=True)
class ModelPair:
    """A `Pair` and the whole model of our side, which can save itself."""

    model: LanguageModel
    pair: Pair


def trial_pair(name: str, label: str, folder: Path) -> ModelPair:
    """Draw a reference model of a trial's shape, let it save itself into `folder`, and load that file."""
    family = families.by_name(name)
    other = references.of(family)
    theirs = other.build(family, trials(name)[label], SEED)
    other.save(theirs, folder)
    ours = load(folder)
    return ModelPair(ours, parity.pair(family, theirs, ours.decoder, SEED))


def compare(both: ModelPair, label: str) -> Iterator[Comparison]:
    """Float32, then bfloat16 (which rounds the weights of both sides: do it last)."""
    name, title = both.model.family.name, _title(both.model.family)
    differences = {**parity.measure(both.pair), RELOADED: reloaded(both)}
    yield Comparison(name, label, "float32", differences, reference=title)
    rounded, own = in_bfloat16(both)
    differences = {**parity.measure(rounded.pair), RELOADED: reloaded(rounded)}
    yield Comparison(name, label, "bfloat16", differences, own, title)


def in_bfloat16(both: ModelPair) -> tuple[ModelPair, dict[str, float]]:
    """The same pair with rounded weights, and the reference's own distance.

    The truth stays a float32 computation, of the rounded weights: two computations in bfloat16 differ from
    each other by chance, and neither could be called right.
    """
    theirs = both.pair.reference.bfloat16()
    seed_truth = parity.pair(
        both.model.family, theirs, both.pair.decoder, SEED
    )  # texts are the same for one seed
    coarse = seed_truth.truth
    coarse_gradients = parity.reference_gradients(seed_truth)
    exact = parity.pair(both.model.family, theirs.float(), both.pair.decoder, SEED)
    own = {
        "full pass": exact.difference(coarse),
        "gradients": parity.gradient_difference(coarse_gradients, parity.reference_gradients(exact)),
    }
    decoder = _rounded(both.pair.decoder)
    model = replace(both.model, decoder=decoder)
    return ModelPair(model, replace(exact, decoder=decoder)), own


def _rounded(decoder: Decoder) -> Decoder:
    copy = Decoder(decoder.architecture)
    copy.load_state_dict(decoder.state_dict())
    return copy.bfloat16().eval()


@torch.no_grad()
def reloaded(both: ModelPair) -> float:
    """Saved here, then opened by the reference and by us: the farther of the two from the truth."""
    with tempfile.TemporaryDirectory() as folder:
        both.model.save(folder)
        dtype = both.pair.decoder.tokens.weight.dtype
        again = load(folder, dtype=str(dtype).removeprefix("torch."))
        ours = [again.logits(text[None])[0] for text in both.pair.texts]
        other = both.pair.other
        theirs = other.load(Path(folder), dtype=torch.float32)
        exact = [other.logits(theirs, text) for text in both.pair.texts]
    return parity.greatest((both.pair.difference(ours), both.pair.difference(exact)))


def worst(comparisons: list[Comparison], family: str, dtype: str) -> dict[str, float]:
    """Per mode the largest difference over the family's trials."""
    mine = [c.differences for c in comparisons if c.family == family and c.dtype == dtype]
    return {mode: parity.greatest(d[mode] for d in mine) for mode in MODE_NAMES} if mine else {}
