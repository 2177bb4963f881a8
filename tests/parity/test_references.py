"""The references themselves: they agree with each other, and are used as they are published."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import daybreak
from daybreak import families
from daybreak.architecture import Blanks, Rotary
from daybreak.compare import folder_of, loops, loops_reference, references, sat, sat_reference, texts
from daybreak.compare.redraw import redraw
from daybreak.compare.sat import OnCpu
from daybreak.errors import DaybreakError
from daybreak.families.trials import REFERENCES, trials

MARKS = loops.Marks(start=1, blanks=(3, 4, 5), rest=5)
PUBLISHED = [name for name, reference in REFERENCES.items() if reference.startswith("SAT/")]


def model(name: str, label: str) -> Any:
    return sat_reference.build(families.by_name(name), trials(name)[label], seed=3)


def test_the_loops_place_the_tokens_of_the_papers_figure() -> None:
    """Figure 2 of arXiv 2103.10360: x1 x2 [M] x4 [M], whose second blank is filled first in the figure; here
    in order."""
    found = loops.layout([11, 12, 3, 14, 3, 1, 13, 1, 15, 16], MARKS)
    assert found.positions == [0, 1, 2, 3, 4, 2, 2, 4, 4, 4]
    assert found.places == [0, 0, 0, 0, 0, 1, 2, 1, 2, 3]
    seen = [[found.sees(query, key) for key in range(10)] for query in range(10)]
    assert seen[0] == [True] * 5 + [False] * 5
    assert seen[6] == [True] * 7 + [False] * 3


@pytest.mark.parametrize("runs_on", [False, True])
def test_the_loops_let_the_text_go_on_at_the_last_kind_of_blank(runs_on: bool) -> None:
    marks = loops.Marks(start=1, blanks=(3, 4, 5), rest=5, runs_on=runs_on)
    found = loops.layout([3, 12, 5, 14, 1, 15, 1], marks)
    assert found.positions == ([0, 1, 2, 3, 4, 5, 6] if runs_on else [0, 1, 2, 3, 2, 2, 2])
    assert found.places == [0, 0, 0, 0, 1, 2, 3]


def test_the_published_layout_is_the_loops() -> None:
    """One of the published models derives positions and sight from the tokens: for a single piece, as the
    loops do."""
    name = next(name for name in PUBLISHED if trials(name)["three heads"].has_blocks)
    architecture = trials(name)["three heads"]
    blanks = architecture.blanks
    assert blanks is not None
    theirs = model(name, "three heads").model
    theirs.bos_token_id, theirs.mask_token_id = blanks.start, blanks.mask
    theirs.gmask_token_id, theirs.pad_token_id = blanks.rest, 0
    compared = 0
    for text in texts.draw(architecture, seed=1):
        tokens = text.tolist()
        if tokens.count(blanks.start) != 1 or not {blanks.mask, blanks.rest} & set(tokens):
            continue
        sight, positions = theirs.get_inputs(text[None])
        found = loops.layout(tokens, loops_reference.marks(architecture))
        assert positions[0].tolist() == [found.positions, found.places]
        every = range(len(tokens))
        assert sight[0, 0].bool().tolist() == [[found.sees(q, k) for k in every] for q in every]
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_code_is_not_rounded_by_its_half(name: str) -> None:
    """Its softmax in plain torch ends in half(): in float32 nothing may be rounded, or the bound of the
    comparison would mean nothing. In float64 the same model is far closer than float16 could be."""
    reference = model(name, "three heads")
    text = texts.draw(trials(name)["three heads"], seed=1)[1]
    with torch.no_grad():
        single = sat_reference.logits(reference, text)
        double = sat_reference.logits(reference.double(), text)
    assert (single - double).abs().max() <= 2e-6 * double.abs().max()
    assert torch.ones(2).half().dtype == torch.float16, "half() is itself again"


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_survive_a_cast(name: str) -> None:
    reference = model(name, "three heads")
    text = texts.draw(trials(name)["three heads"], seed=1)[1]
    with torch.no_grad():
        before = sat_reference.logits(reference, text)
        rounded = sat_reference.logits(reference.bfloat16(), text)
        after = sat_reference.logits(reference.float(), text)
    assert (before - rounded).abs().max() < 0.1 * before.abs().max()
    for module in reference.modules():
        if hasattr(module, "inv_freq"):
            assert (
                torch.equal(module.inv_freq, reference.frequencies) and module.inv_freq.dtype == torch.float32
            )
    assert (before - after).abs().max() < 0.1 * before.abs().max()


def test_the_published_frequencies_are_the_exact_ones() -> None:
    """What is set in each call is what its own files compute, unless the family rounds."""
    for name in PUBLISHED:
        for architecture in trials(name).values():
            assert isinstance(architecture.positions, Rotary)
            own = importlib.import_module("sat.model.position_embedding.rotary_embeddings")
            theirs = own.RotaryEmbedding(architecture.positions.width).inv_freq
            ours = sat_reference._frequencies(architecture.positions)
            if architecture.positions.half_frequencies:
                theirs = theirs.half().float()
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", REFERENCES)
def test_what_a_reference_saved_it_opens_again(name: str, tmp_path: Path) -> None:
    label = next(iter(trials(name)))
    other = references.of(families.by_name(name))
    built = other.build(families.by_name(name), trials(name)[label], 5)
    other.save(built, tmp_path)
    again = dict(other.load(tmp_path).named_parameters())
    for parameter, tensor in built.named_parameters():
        assert torch.equal(tensor, again[parameter]), parameter
    assert daybreak.load(tmp_path).architecture == trials(name)[label]


def test_without_the_published_code_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(DaybreakError, match=re.escape(sat.COMMAND)):
        sat.version()
    assert sat.COMMAND == "pip install --no-deps SwissArmyTransformer==0.4.12"


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match="save it again"):
        folder_of.tensors(tmp_path)


def test_redrawn_norms_stay_near_one_whatever_their_class() -> None:
    made = daybreak.create("llama", vocabulary=31, context=8, layers=1, width=24, heads=3, inner=40)
    redraw(made.decoder, seed=1)
    assert 0.7 < float(made.decoder.final_norm.weight.detach().mean()) < 1.3


def test_texts_hold_every_kind_of_blank() -> None:
    blanks = Blanks(start=30, end=29, mask=26, rest=27, sentence=28)
    architecture = families.by_name("glm").architecture(vocabulary=31, context=40, layers=1, blanks=blanks)
    drawn = [text.tolist() for text in texts.draw(architecture, seed=2)]
    assert {number for text in drawn for number in text} >= {26, 27, 28, 30}
    assert max(text.count(30) for text in drawn) == 2
    assert any(text[-1] == 30 for text in drawn) and any(len(text) == 1 for text in drawn)
    assert len(drawn[0]) == max(map(len, drawn))
    assert isinstance(model(PUBLISHED[0], "three heads"), OnCpu)
