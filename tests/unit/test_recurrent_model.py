"""An LSTM behind `load`, `create`, `generate`, `save`, `describe` and `diff`; its words; fastai's files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import daybreak
from daybreak import families
from daybreak.checkpoint.recurrent import encoder_alone, read_fastai, to_fastai
from daybreak.compare.describe import describe
from daybreak.compare.differences import differences
from daybreak.errors import DaybreakError
from daybreak.recurrent_model import RecurrentModel, create_recurrent
from daybreak.text.words import Words, split
from tests.reference import lstm as loops

PAGE = next(families.recurrents())
TEXT = "The cat sat on the mat, and the DOG sat on the log. It didn't move!!!\nThe end."


def words() -> Words:
    return Words.learn([TEXT], PAGE, least_count=1)


def model(**changes: Any) -> RecurrentModel:
    made = create_recurrent(PAGE, None, 1, words(), **{"width": 8, "hidden": 12, "layers": 2, **changes})
    loops.redrawn(made.decoder, 3)
    return made


# Words


def test_words_have_marks_for_capitals_and_repetitions() -> None:
    found = list(split("He said NO!!!! I am soooo sad sad sad.\r\n\n\nDon't", PAGE.specials))
    assert found == [
        *("xxmaj", "he", "said", "xxup", "no", "xxrep", "4", "!", "i", "am", "s", "xxrep", "4", "o"),
        *("xxwrep", "3", "sad", ".", "\n\n", "xxmaj", "do", "n't"),
    ]


def test_no_text_spells_a_special_word() -> None:
    ids = words().encode("the xxbos cat XXPAD")
    assert ids[0] == 2 and ids.count(2) == 1 and 1 not in ids and ids.count(0) >= 2


def test_what_is_written_is_read_back_where_all_words_are_known() -> None:
    known = words()
    assert known.decode(known.encode(TEXT)) == TEXT
    assert known.decode([0, 2, 1, 10_000, -1]) == "xxunk"
    assert known.decode(known.encode("The cat"), skip_special=False) == "xxbos xxmaj the cat"


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 12))
def test_a_text_only_grows_at_its_end(ids: list[int], cut: int) -> None:
    """Streaming shows pieces as they come, so what was shown may not change."""
    known = words()
    assert known.decode(ids).startswith(known.decode(ids[:cut]))


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_has_ids(text: str) -> None:
    known = words()
    ids = known.encode(text)
    assert ids[0] == known.bos_id and all(0 <= number < known.vocabulary for number in ids)


def test_the_most_frequent_words_are_kept() -> None:
    found = Words.learn(["b b b a a a c c d"], PAGE, most=11, least_count=1)
    assert found.words == (*PAGE.specials, "3", "c"), "the marks of repetition are no words of their own"
    assert Words.learn(["d a a"], PAGE, least_count=2).words == (*PAGE.specials, "a")


# The model


def test_saved_and_loaded(tmp_path: Path) -> None:
    before = model()
    before.save(tmp_path / "one")
    after = daybreak.load(tmp_path / "one")
    assert isinstance(after, RecurrentModel) and repr(after).startswith("RecurrentModel(ulmfit, 2 layers")
    assert after.tokenizer is not None and after.tokenizer.words == words().words
    tokens = torch.tensor([[2, 9, 10, 11]])
    assert torch.equal(before.logits(tokens), after.logits(tokens))
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["model_type"] == "awd_lstm" and config["hidden"] == 12
    (tmp_path / "one" / "config.json").write_text(json.dumps({**config, "note": "kept"}))
    daybreak.load(tmp_path / "one").save(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["note"] == "kept"
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_created() -> None:
    made = daybreak.create("ulmfit", "awd-lstm-1150", vocabulary=50, seed=3)
    assert made.architecture.hidden == 1150 and made.dtype == torch.float32
    assert daybreak.create("ulmfit", vocabulary=9, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(DaybreakError, match="no field 'heads'"):
        daybreak.create("ulmfit", heads=3)


def test_greedy_text_is_the_likeliest_one_and_a_batch_changes_nothing() -> None:
    made = model()
    prompts = [[2, 9, 10], [2, 11]]
    found = made.generate(prompts, max_new_tokens=6, temperature=0, ignore_eos=True, prompt_logprobs=0)
    for prompt, result in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(6):
            tokens.append(int(made.logits(torch.tensor([tokens]))[0, -1].argmax()))
        assert result.tokens == tokens[len(prompt) :]
        logits = made.logits(torch.tensor([prompt]))[0].log_softmax(-1)
        assert result.prompt_logprobs is not None and result.prompt_logprobs[1] is not None
        assert result.prompt_logprobs[1].logprob == pytest.approx(logits[0, prompt[1]].item(), abs=1e-5)


def test_sampled_text_depends_on_its_seed_alone_and_streams() -> None:
    made = model()
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "suppress_tokens": [0, 1]}
    alone = made.generate("The cat", **options)
    beside = made.generate(["It", "The cat"], **options)
    assert alone[0].tokens == beside[1].tokens and alone[0].text == beside[1].text
    assert "".join(made.stream("The cat", **options)) == alone[0].text
    assert made.generate("The cat", **{**options, "seed": 6})[0].tokens != alone[0].tokens
    assert len({result.text for result in made.generate("The cat", n=3, **options)}) > 1


def test_a_text_ends_where_the_next_one_begins() -> None:
    made = model()
    with torch.no_grad():
        made.decoder.head_bias[2] = 1e4
    result = made.generate("The cat", temperature=0)[0]
    assert result.finish_reason == "stop" and result.tokens == [2] and result.text == ""


def test_what_is_for_transformers_says_so(tmp_path: Path) -> None:
    model().save(tmp_path)
    for refused in (
        lambda: families.by_name("ulmfit"),
        lambda: families.by_model_type("awd_lstm"),
        lambda: daybreak.language_model.load(tmp_path),
    ):
        with pytest.raises(DaybreakError, match="ulmfit is an LSTM"):
            refused()
    with pytest.raises(DaybreakError, match="no weights of few bits"):
        daybreak.load(tmp_path, bits=8)
    with pytest.raises(DaybreakError, match="outside the model"):
        model().logits(torch.tensor([[1000]]))


def test_a_damaged_folder(tmp_path: Path) -> None:
    model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden": 13}))
    with pytest.raises(DaybreakError, match=r"has the shape \[48, 8\] and not \[52, 8\]"):
        daybreak.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers": 3}))
    with pytest.raises(DaybreakError, match=r"has no tensor '0\.rnns\.2|has the shape"):
        daybreak.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "words.json").write_text(json.dumps([*words().words, "one", "more"]))
    with pytest.raises(DaybreakError, match="rows; take both from the same model"):
        daybreak.load(tmp_path)


def test_describe_and_diff(tmp_path: Path) -> None:
    told = describe("awd-lstm-1152")
    assert told["kind"] == "model" and told["parameters"]["total"] == 44_333_280
    assert told["parameters"]["recurrent"] == 20_273_280
    assert told["state_bytes"] == {"float32": 4 * 2 * (1152 + 1152 + 400)}
    assert describe("ulmfit")["kind"] == "family"
    model().save(tmp_path)
    assert describe(str(tmp_path))["architecture"]["hidden"] == 12
    found = differences("ulmfit", "gpt")
    assert found["changes"][0]["field"] == "network"
    assert "an LSTM" in found["changes"][0]["words"][0] and "a transformer" in found["changes"][0]["words"][1]
    assert differences("gpt", "ulmfit")["changes"][0]["words"][1].startswith("an LSTM")
    sizes = differences("awd-lstm-1150", "awd-lstm-1152")["changes"]
    assert [change["field"] for change in sizes] == ["hidden"]
    assert differences("ulmfit", "ulmfit")["changes"] == []


# fastai's files


def fastai_file(file: Path, made: RecurrentModel, kind: str) -> Path:
    state = to_fastai(PAGE, made.decoder)
    if kind == "encoder":
        state = encoder_alone(PAGE, state)
    elif kind == "classifier":
        state = {f"0.module.{name}": one for name, one in encoder_alone(PAGE, state).items()}
        state["1.layers.0.0.weight"] = torch.ones(3)
    elif kind == "older":
        for layer in range(2):
            state[f"0.rnns.{layer}.module.weight_hh_l0"] = torch.zeros(1)
    elif kind == "with optimizer":
        state = {"model": state, "opt": {"state": [], "hypers": [{"lr": 0.1}]}}  # type: ignore[dict-item]
    torch.save(state, file, _use_new_zipfile_serialization=kind != "older")
    return file


@pytest.mark.parametrize("kind", ["language model", "encoder", "classifier", "older", "with optimizer"])
def test_fastais_files_of_every_kind_are_read(tmp_path: Path, kind: str) -> None:
    made = model()
    found = read_fastai(PAGE, fastai_file(tmp_path / "saved.pth", made, kind))
    own = dict(made.decoder.named_parameters())
    for name, parameter in found.named_parameters():
        if name == "head_bias" and kind in ("encoder", "classifier"):
            assert parameter.abs().max() == 0
        else:
            assert torch.equal(parameter, own[name]), name


def test_the_names_are_fastais() -> None:
    found = set(to_fastai(PAGE, model().decoder))
    assert found == {
        *("0.encoder.weight", "0.encoder_dp.emb.weight", "1.decoder.weight", "1.decoder.bias"),
        *(
            f"0.rnns.{layer}.{name}"
            for layer in range(2)
            for name in ("weight_hh_l0_raw", "module.weight_ih_l0", "module.bias_ih_l0", "module.bias_hh_l0")
        ),
    }


def test_a_folder_of_fastais_is_loaded_with_its_words(tmp_path: Path) -> None:
    made = model()
    fastai_file(tmp_path / "fwd.pth", made, "language model")
    (tmp_path / "fwd.pkl").write_bytes(pickle.dumps(list(words().words)))
    found = daybreak.load(tmp_path)
    assert found.tokenizer is not None and found.tokenizer.words == words().words
    assert torch.equal(found.logits(torch.tensor([[2, 9]])), made.logits(torch.tensor([[2, 9]])))
    found.save(tmp_path / "ours")
    assert daybreak.load(tmp_path / "ours").architecture == found.architecture
    (tmp_path / "fwd.pkl").write_bytes(pickle.dumps([*words().words, "more"]))
    with pytest.raises(DaybreakError, match="give the vocabulary that was saved with the weights"):
        daybreak.load(tmp_path)
    (tmp_path / "fwd.pth").rename(tmp_path / "bwd.pth")
    (tmp_path / "fwd.pkl").unlink()
    assert daybreak.load(tmp_path).architecture.direction == "backward"


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/should-not-be-there").touch, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pkl", pickle.dumps(Bomb()), "could run code"),
        ("w.pkl", pickle.dumps(["a", 3]), "no list of words"),
        ("w.pkl", b"\x80\x04", "damaged"),
        ("w.json", b"{", "damaged"),
        ("w.json", b'["xxunk", "xxpad"]', "no word 'xxbos'"),
        ("w.json", b'["xxunk", "xxpad", "xxbos", "a", "a"]', "'a' twice"),
    ],
)
def test_vocabularies_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DaybreakError, match=message):
        Words.read(tmp_path / name, PAGE)
    assert not Path("/tmp/should-not-be-there").exists()


@pytest.mark.parametrize("name", ["w.pkl", "w.json", "w.txt"])
def test_vocabularies_of_every_kind(tmp_path: Path, name: str) -> None:
    listed = [*PAGE.specials, "the", "xxfake", "xxfake"]
    content = {
        "w.pkl": pickle.dumps(listed),
        "w.json": json.dumps(listed).encode(),
        "w.txt": "\n".join(listed).encode(),
    }
    (tmp_path / name).write_bytes(content[name])
    assert Words.read(tmp_path / name, PAGE).words == tuple(listed)


def test_what_is_no_awd_lstm(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(DaybreakError, match=r"no AWD-LSTM of fastai's: there is no encoder"):
        read_fastai(PAGE, tmp_path / "a.pth")
    state = to_fastai(PAGE, model().decoder)
    torch.save({**state, "2.more": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(DaybreakError, match=r"'2\.more'"):
        read_fastai(PAGE, tmp_path / "b.pth")
    del state["0.rnns.1.module.bias_ih_l0"]
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(DaybreakError, match=r"no tensor '0\.rnns\.1\.module\.bias_ih_l0'"):
        read_fastai(PAGE, tmp_path / "c.pth")
