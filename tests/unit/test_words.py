"""families, describe and diff: what they know, before it is printed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak import families, parameters
from daybreak.architecture import Architecture
from daybreak.compare.describe import describe, overview
from daybreak.compare.differences import differences
from daybreak.compare.subject import find
from daybreak.compare.words import WORDS
from daybreak.errors import DaybreakError
from tests.unit.architectures import any_architecture
from tests.unit.published_configs import PYTHIA


def test_every_field_has_a_sentence() -> None:
    assert set(WORDS) == {field.name for field in dataclasses.fields(Architecture)}
    assert len({word.title for word in WORDS.values()}) == len(WORDS)


@given(any_architecture(), any_architecture(), st.sampled_from(sorted(WORDS)))
def test_different_values_have_different_sentences(
    one: Architecture, other: Architecture, field: str
) -> None:
    """Otherwise `diff` would be silent about a difference."""
    if getattr(one.spelled_out(), field) == getattr(other.spelled_out(), field):
        return
    if field == "windows" and one.layers != other.layers:
        return
    assert WORDS[field].say(one) != WORDS[field].say(other)


@given(any_architecture())
def test_windows_are_spoken_of_by_what_they_do(architecture: Architecture) -> None:
    say = WORDS["windows"].say
    assert say(architecture) == say(architecture.spelled_out())


def test_overview() -> None:
    told = overview()
    assert [family["name"] for family in told] == [*families.RECURRENT, *families.NAMES]
    years = [family["year"] for family in told]
    assert years == sorted(years)
    pages = [*families.recurrents(), *families.everyone()]
    assert sum(len(family["sizes"]) for family in told) == sum(len(page.sizes) for page in pages)


def test_describe_a_model() -> None:
    told = describe("bloom-7b1")
    assert told["kind"] == "model"
    assert told["hub"] == "bigscience/bloom-7b1"
    assert told["parameters"]["total"] == 7_069_016_064
    assert told["weight_bytes"]["bfloat16"] == 2 * 7_069_016_064
    assert told["cache_bytes_per_1000_tokens"]["bfloat16"] == 2 * 30 * 4096 * 1000 * 2
    assert (
        sum(told["parameters"][k] for k in ("embedding", "positions", "attention", "mlp", "norms", "head"))
        == (told["parameters"]["total"])
    )
    assert Architecture.from_dict(told["architecture"]) == families.by_name("bloom").architecture("bloom-7b1")
    fields = [line["field"] for lines in told["decisions"].values() for line in lines]
    assert sorted(fields) == sorted(WORDS)


def test_describe_a_family_leaves_sizes_to_the_sizes() -> None:
    told = describe("gpt-neo")
    assert told["kind"] == "family"
    assert "parameters" not in told
    fields = {line["field"] for lines in told["decisions"].values() for line in lines}
    assert fields == {name for name, word in WORDS.items() if not word.scale}


def test_describe_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PYTHIA, "num_hidden_layers": 3}))
    told = describe(str(tmp_path))
    assert told["kind"] == "folder"
    assert told["family"]["name"] == "gpt_neox"
    expected = families.by_name("gpt_neox").architecture("pythia-70m", layers=3)
    assert told["parameters"]["total"] == parameters.count(expected)
    assert told["special_tokens"] == {"bos_token_id": 0, "eos_token_id": 0}


def test_galactica_has_tokens_of_its_own() -> None:
    told = describe("galactica-125m")
    assert told["special_tokens"] == {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    assert not told["starts_with_bos"]
    assert describe("opt-125m")["starts_with_bos"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GPT2", "model"),
        ("openai-community/gpt2-xl", "model"),
        ("gpt-neox", "family"),
        ("Pythia-70M", "model"),
    ],
)
def test_names_are_found(name: str, kind: str) -> None:
    assert find(name).kind == kind


def test_a_name_that_is_both_is_what_the_question_is_about() -> None:
    assert find("gpt2", prefer="family").kind == "family"
    assert find("gpt2", prefer="model").kind == "model"
    assert differences("gpt2", "bloom")["first"]["kind"] == "family"


def test_nothing_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=r"'bloom-7b2' \(did you mean 'bloom-7b1'\?\)"):
        describe("bloom-7b2")
    with pytest.raises(DaybreakError, match=r"has no config\.json"):
        describe(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "list where an object with keys"),
        ("{}", "no model_type"),
        ('{"model_type": ["gpt2"]}', "no model_type"),
        ('{"model_type": "gpt2", "auto_map": {"AutoConfig": "x.Y"}}', "auto_map"),
    ],
)
def test_a_broken_folder(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DaybreakError, match=message):
        describe(str(tmp_path))


def test_differences_of_families_are_decisions() -> None:
    told = differences("gpt2", "bloom")
    assert [change["field"] for change in told["changes"]] == [
        "vocabulary",
        "context",
        "positions",
        "embedding_norm",
    ]
    positions = told["changes"][2]
    assert positions["first"] == {"kind": "learned", "offset": 0, "blocks": False}
    assert positions["second"] == {"kind": "alibi"}
    assert "ALiBi" in positions["words"][1]


def test_differences_of_sizes() -> None:
    told = differences("gpt2-medium", "gpt2-xl")
    assert [change["field"] for change in told["changes"]] == ["layers", "width", "heads", "inner"]
    assert told["second"]["parameters"] == 1_557_611_200


def test_no_difference() -> None:
    assert differences("bloom-560m", "bloomz-560m")["changes"] == []


@pytest.mark.parametrize("one", families.NAMES)
@pytest.mark.parametrize("other", families.NAMES)
def test_differences_are_complete(one: str, other: str) -> None:
    """Every field in which the bases differ, and no other, but for those that only say how large."""
    a, b = (families.by_name(name).base for name in (one, other))
    expected = {name for name in WORDS if getattr(a, name) != getattr(b, name) and not WORDS[name].scale}
    assert {change["field"] for change in differences(one, other)["changes"]} == expected
