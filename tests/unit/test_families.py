"""Every family's page: published files are read, what is written is read back, the rest is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak import families
from daybreak.architecture import Architecture, Rotary
from daybreak.errors import DaybreakError
from daybreak.families.family import Family
from tests.unit import published_configs as published
from tests.unit.architectures import of_family

SIZES = [(family.name, size) for family in families.everyone() for size in family.sizes]
BY_FAMILY = {
    "gpt": published.OPENAI_GPT,
    "gpt2": published.GPT2,
    "gpt3": {**published.GPT2, "model_type": "gpt3", "windows": [None, 256]},
    "gpt_neo": published.GPT_NEO,
    "gpt_j": published.GPT_J,
    "glm": published.GLM_10B,
    "gpt_neox": published.PYTHIA,
    "opt": published.OPT,
    "bloom": published.BLOOMZ,
    "glm_130b": published.GLM_130B,
    "chatglm": published.CHATGLM,
    "llama": published.LLAMA,
}


def read(config: dict[str, Any]) -> Architecture:
    return families.by_model_type(config["model_type"]).read(config)


def written_and_read(family: Family, architecture: Architecture) -> Architecture:
    return family.read(json.loads(json.dumps(family.config(architecture)))).spelled_out()


def test_every_family_is_examined() -> None:
    assert tuple(BY_FAMILY) == families.NAMES


@pytest.mark.parametrize(("size", "config"), published.PUBLISHED)
def test_published_files_are_read_as_the_preset(size: str, config: dict[str, Any]) -> None:
    found = families.find_size(size)
    assert found is not None
    family, _ = found
    assert family.model_type == config["model_type"]
    assert read(json.loads(json.dumps(config))).spelled_out() == family.architecture(size).spelled_out()


def test_newer_files_of_galactica_carry_biases() -> None:
    older, newer = read(published.GALACTICA_OLDER), read(published.GALACTICA)
    assert older.biases == frozenset()
    assert newer.biases == {"qkv", "out", "mlp"}


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_every_size_is_read_as_it_is_written(name: str, size: str) -> None:
    family = families.by_name(name)
    architecture = family.architecture(size)
    assert written_and_read(family, architecture) == architecture.spelled_out()


@pytest.mark.parametrize("name", families.NAMES)
@given(data=st.data())
def test_whatever_a_family_can_say_is_read_as_it_is_written(name: str, data: st.DataObject) -> None:
    family = families.by_name(name)
    architecture = data.draw(of_family(name))
    assert written_and_read(family, architecture) == architecture.spelled_out()


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        *((name, "rope_scaling", {"type": "linear", "factor": 2.0}) for name in families.NAMES),
        *((name, "quantization_config", {"bits": 4}) for name in families.NAMES),
        *((name, "sliding_window", 128) for name in families.NAMES),
        *((name, "attn_logit_softcapping", 50.0) for name in families.NAMES),
        *((name, "add_cross_attention", True) for name in families.NAMES),
        *((name, "num_key_value_heads", 2) for name in families.NAMES if name != "llama"),
        *((name, "head_dim", 4) for name in families.NAMES),
        ("gpt", "afn", "swiglu"),
        ("gpt2", "activation_function", "quick_gelu"),
        ("gpt3", "windows", [0]),
        ("gpt_neo", "attention_layers", ["global"]),
        ("gpt_neo", "attention_layers", ["sparse"] * 12),
        ("gpt_j", "scale_attn_weights", False),
        ("gpt_j", "tie_word_embeddings", True),
        ("gpt_neox", "rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("gpt_neox", "rope_parameters", {"rope_type": "default", "factor": 4.0}),
        ("opt", "scale_embeddings", True),
        ("opt", "learned_embeddings", False),
        ("bloom", "n_inner", 5000),
        ("glm", "relative_encoding", True),
        ("glm", "block_position_encoding", False),
        ("glm", "vocab_size", 50000),
        ("glm_130b", "no_glu", True),
        ("glm_130b", "position_encoding_2d", True),
        ("chatglm", "pre_seq_len", 128),
        ("llama", "num_key_value_heads", 5),
        ("llama", "rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
        ("llama", "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("llama", "rope_interleaved", True),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(family: str, key: str, value: object) -> None:
    with pytest.raises(DaybreakError, match=key):
        read({**BY_FAMILY[family], key: value})


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        ("chatglm", {"padded_vocab_size": 65024, "ffn_hidden_size": 13696}, "ChatGLM2"),
        ("glm", {"num_hidden_layers": 40}, "GLM-4"),
    ],
)
def test_later_models_of_the_same_name_are_told_apart(
    model_type: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DaybreakError, match=said):
        read({"model_type": model_type, "hidden_size": 4096, "num_attention_heads": 32, **changes})


def test_the_first_chatglm_is_known_by_what_its_file_leaves_out() -> None:
    first, later = read(published.CHATGLM_FIRST), read(published.CHATGLM)
    assert first.blanks is not None and later.blanks is not None
    assert (first.blanks.mask, first.blanks.rest, first.blanks.runs_on) == (150000, 150001, True)
    assert (later.blanks.mask, later.blanks.rest, later.blanks.runs_on) == (130000, 130001, False)


@pytest.mark.parametrize("name", families.NAMES)
def test_switched_off_options_and_notes_are_no_obstacle(name: str) -> None:
    notes = {
        "rope_scaling": None,
        "add_cross_attention": False,
        "output_hidden_states": False,
        "license": "mit",
    }
    assert read({**BY_FAMILY[name], **notes}) == read(BY_FAMILY[name])


NEEDED = [
    (name, key)
    for name, config in BY_FAMILY.items()
    for key in config
    if key in ("vocab_size", "n_embd", "n_layer", "n_head", "hidden_size", "num_heads", "num_layers")
    or key in ("num_hidden_layers", "num_attention_heads")
]


@pytest.mark.parametrize(("name", "key"), NEEDED)
def test_a_missing_size_is_named(name: str, key: str) -> None:
    config = {other: value for other, value in BY_FAMILY[name].items() if other != key}
    with pytest.raises(DaybreakError, match=key):
        read(config)


WRONG = st.sampled_from(["12", "true", -1, 0, 1.5, True, [], [3], {}, {"a": 1}, float("nan"), 10**4])


@pytest.mark.parametrize("name", families.NAMES)
@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_an_error_for_people_or_no_damage(name: str, data: st.DataObject) -> None:
    config = dict(BY_FAMILY[name])
    for key in data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=2)):
        if key != "model_type":
            config[key] = data.draw(WRONG)
    try:
        architecture = read(config)
    except DaybreakError:
        return
    # What is accepted is a whole architecture: it can be written, and is read back as the same.
    assert written_and_read(families.by_name(name), architecture) == architecture.spelled_out()


def test_what_a_family_cannot_say_is_not_written() -> None:
    gpt2 = families.by_name("gpt2")
    with pytest.raises(DaybreakError, match="cannot say final_norm = False"):
        gpt2.config(gpt2.architecture(final_norm=False))
    neo, opt, bloom = (families.by_name(name) for name in ("gpt_neo", "opt", "bloom"))
    with pytest.raises(DaybreakError, match="one window size"):
        neo.config(neo.architecture(windows=(None, 128, 256)))
    with pytest.raises(DaybreakError, match="norm_eps"):
        opt.config(opt.architecture(norm_eps=1e-3))
    with pytest.raises(DaybreakError, match="4 x width"):
        bloom.config(bloom.architecture(inner=100))


@pytest.mark.parametrize("name", families.NAMES)
@given(data=st.data())
def test_what_is_written_is_never_a_different_architecture(name: str, data: st.DataObject) -> None:
    """Any single decision changed: the family refuses to write it, or what it writes is read as it was."""
    from tests.unit.architectures import any_architecture

    family = families.by_name(name)
    field = data.draw(st.sampled_from(list(Architecture.__dataclass_fields__)))
    try:
        architecture = family.architecture(**{field: getattr(data.draw(any_architecture()), field)})
        understood = written_and_read(family, architecture)
    except DaybreakError:
        return
    assert understood == architecture.spelled_out()


def test_names_are_forgiving_and_errors_helpful() -> None:
    assert families.by_name("GPT-NeoX") is families.by_name("gpt_neox")
    assert families.find_size("PYTHIA-70M") == families.find_size("pythia-70m") is not None
    assert families.find_size("gpt5") is None
    with pytest.raises(DaybreakError, match=r"no family 'gpt_nex' \(did you mean 'gpt_neox'\?\)"):
        families.by_name("gpt_nex")
    with pytest.raises(DaybreakError, match=r"model_type 'gpt-neox' \(did you mean 'gpt_neox'\?\)"):
        families.by_model_type("gpt-neox")
    with pytest.raises(DaybreakError, match=r"has no size 'pythia-71m' \(did you mean 'pythia-70m'\?\)"):
        families.by_name("gpt_neox").architecture("pythia-71m")
    with pytest.raises(DaybreakError, match=r"no field 'layer' \(did you mean 'layers'\?\)"):
        families.by_name("gpt2").architecture(layer=3)


def test_every_model_type_is_registered_to_its_family() -> None:
    for family in families.everyone():
        assert families.by_model_type(family.model_type) is family


def test_sizes_have_names_of_their_own() -> None:
    names = [size.lower() for family in families.everyone() for size in family.sizes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("gpt2", {"n_head": 4}, {"num_attention_heads": 8}),
        ("bloom", {"hidden_size": 64}, {"n_embed": 32}),
        ("gpt_neox", {"rotary_pct": 0.25}, {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("gpt_neox", {"rotary_emb_base": 10000}, {"rope_parameters": {"rope_theta": 500}}),
        ("gpt_neox", {}, {"rope_theta": 500}),
        ("gpt_neox", {}, {"partial_rotary_factor": 0.5}),
        ("llama", {"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 600.0}}),
    ],
)
def test_spellings_that_disagree_are_refused(
    family: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    page = families.by_name(family)
    written = page.config(page.base)
    for key in ("rotary_pct", "rotary_emb_base"):
        written.pop(key, None)
    agreeing = {**written, **first}
    page.read(agreeing)
    with pytest.raises(DaybreakError) as error:
        page.read({**agreeing, **second})
    assert any(key in str(error.value) for key in (*first, *second))


def test_what_is_left_out_is_what_the_reference_takes_for_it() -> None:
    """transformers rotates 64 components of a GPT-J head where config.json does not say."""
    page = families.by_name("gpt_j")
    config = page.config(page.architecture(width=2048, heads=16))
    del config["rotary_dim"]
    positions = page.read(config).positions
    assert isinstance(positions, Rotary) and positions.width == 64
