"""The vocabulary: frozen, validated, serialisable."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given

from daybreak.architecture import Alibi, Architecture, Blanks, Learned, Rotary
from daybreak.errors import DaybreakError
from tests.unit.architectures import any_architecture

# A new field needs a published checkpoint that cannot be expressed without it, a sentence in
# compare/words.py, a reason in docs/architecture.md and a mutant; and there are never more than thirty.
FIELDS = [
    *("vocabulary", "context", "layers", "width", "heads", "key_heads", "inner", "embedding_width"),
    *("positions", "block", "shared_norm", "residual", "residual_scale", "embedding_norm", "final_norm"),
    *("norm", "norm_eps", "norm_affine", "activation", "gated", "windows", "scaled_scores"),
    *("layer_scaled_scores", "biases", "tied", "blanks"),
]


BLANKS = Blanks(start=1, end=2, mask=3, rest=4)


def test_the_list_of_fields_is_frozen() -> None:
    assert [field.name for field in dataclasses.fields(Architecture)] == FIELDS
    assert len(FIELDS) <= 30


def test_an_architecture_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Architecture().width = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0; it must be a whole number"),
        ({"width": -768}, "width is -768"),
        ({"heads": True}, "heads is True"),
        ({"vocabulary": 3.5}, "vocabulary is 3.5"),
        ({"inner": None}, "inner is None"),
        ({"context": "1024"}, "context is '1024'"),
        ({"embedding_width": 0}, "embedding_width is 0"),
        ({"width": 770}, "width 770 is not divisible by 12 heads"),
        ({"block": "sandwich"}, "block is 'sandwich'; it must be one of pre, post, parallel"),
        ({"activation": "gelu_new"}, "activation is 'gelu_new'; it must be one of gelu, gelu_tanh"),
        ({"residual": "scaled"}, "residual is 'scaled'"),
        ({"biases": frozenset({"query"})}, "biases names ['query']; known are"),
        ({"windows": ()}, "windows is ()"),
        ({"windows": (None, 0)}, "windows is (None, 0)"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"norm_eps": float("nan")}, "norm_eps is nan"),
        ({"residual_scale": -1.0}, "residual_scale is -1.0"),
        ({"shared_norm": True}, "shared_norm needs block 'parallel'"),
        ({"block": "post", "residual": "normed"}, "belong to block 'pre', not 'post'"),
        ({"block": "parallel", "residual_scale": 2.0}, "belong to block 'pre', not 'parallel'"),
        ({"biases": frozenset({"head"})}, "a tied head has no bias"),
        ({"positions": Learned(-1)}, "offset of learned positions is -1"),
        ({"positions": Rotary(0)}, "rotary width 0 must be even"),
        ({"positions": Rotary(7)}, "rotary width 7 must be even"),
        ({"positions": Rotary(66)}, "at most the head's 64"),
        ({"positions": Rotary(8, "thirds")}, "rotary pairs is 'thirds'"),  # type: ignore[arg-type]
        ({"positions": Rotary(8, base=0.0)}, "rotary base is 0.0"),
        ({"positions": Rotary(34, blocks=True), "blanks": BLANKS}, "at most half of the head's 64"),
        ({"positions": Rotary(8, blocks=True)}, "positions with blocks need blanks"),
        ({"positions": Rotary(8, half_frequencies=1)}, "half_frequencies of positions is 1"),  # type: ignore[arg-type]
        ({"positions": Learned(2, blocks=True), "blanks": BLANKS}, "blocks or an offset, not both"),
        ({"key_heads": 5}, "12 heads cannot share 5 heads of keys"),
        ({"key_heads": 0}, "key_heads is 0"),
        ({"norm": "batch"}, "norm is 'batch'; it must be one of layer, rms"),
        ({"gated": "yes"}, "gated is 'yes'"),
        ({"blanks": (1, 2, 3)}, "blanks is (1, 2, 3)"),
        ({"blanks": Blanks(1, 2, 3, 60000)}, "rest of blanks is 60000; it must be a token id below"),
        ({"blanks": Blanks(1, 2, 3, 3)}, "each must be a token of its own"),
        ({"blanks": BLANKS, "windows": (None, 5)}, "blanks go with neither windows nor ALiBi"),
        ({"blanks": BLANKS, "positions": Alibi()}, "blanks go with neither windows nor ALiBi"),
    ],
)
def test_conflicting_decisions_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DaybreakError) as error:
        Architecture(**changes)
    assert message in str(error.value)


@given(any_architecture())
def test_a_round_trip_through_json_changes_nothing(architecture: Architecture) -> None:
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_fields_left_out_take_their_defaults() -> None:
    assert Architecture.from_dict({"positions": {"kind": "alibi"}}) == Architecture(positions=Alibi())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"widht": 5}, "unknown field 'widht' of an architecture (did you mean 'width'?)"),
        ({"positions": {"kind": "alibi", "slope": 2}}, "slope"),
        ({"positions": {"kind": "sinus"}}, "sinus"),
        ({"positions": {}}, "kind"),
        ({"positions": 5}, "positions"),
        ({"windows": 5}, "windows"),
        ({"blanks": {"start": 1}}, "blanks"),
        ({"biases": None}, "biases"),
    ],
)
def test_a_wrong_dictionary_is_refused_by_name(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DaybreakError) as error:
        Architecture.from_dict(data)
    assert message in str(error.value)


def test_windows_repeat_over_the_layers() -> None:
    architecture = Architecture(windows=(None, 256, 8))
    assert [architecture.window(layer) for layer in range(7)] == [None, 256, 8, None, 256, 8, None]
