"""Token shards: what is written is what is read, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.data import shard_writer
from daybreak.data.token_shards import Document, Manifest, Shard, ShardWriter, Source, TokenSet
from daybreak.errors import DaybreakError
from tests.unit.token_data import VOCABULARY, built

DOCUMENTS = st.lists(st.lists(st.integers(1, VOCABULARY - 1), max_size=12), min_size=1, max_size=8)


def written(folder: Path, vocabulary: int, shards: Sequence[Sequence[Sequence[int]]]) -> TokenSet:
    return built(folder, {"text": shards}, vocabulary=vocabulary)


@given(
    st.lists(DOCUMENTS, min_size=1, max_size=4),
    st.sampled_from([VOCABULARY, 1 << 16, (1 << 16) + 1]),
    st.data(),
)
def test_what_is_written_is_what_is_read(
    shards: list[list[list[int]]], vocabulary: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = written(Path(folder), vocabulary, shards).sources[0]
        documents = [[*document, 0] for shard in shards for document in shard]
        tokens = [token for document in documents for token in document]
        owner = [number for number, document in enumerate(documents) for _ in document]
        assert (source.tokens, source.documents) == (len(tokens), len(documents))
        first = data.draw(st.integers(0, len(tokens)))
        count = data.draw(st.integers(0, len(tokens) - first))
        assert source.read(first, count).tolist() == tokens[first : first + count]
        seen = [number for number, begin, end in source.spans(first, count) for _ in range(begin, end)]
        assert seen == owner[first : first + count]
        edges = [(begin, end) for _, begin, end in source.spans(first, count)]
        assert all(begin < end for begin, end in edges)
        assert [begin for begin, _ in edges[1:]] == [end for _, end in edges[:-1]]


@pytest.mark.parametrize(("vocabulary", "width"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_the_vocabulary_decides_the_width(tmp_path: Path, vocabulary: int, width: int) -> None:
    largest = vocabulary - 1
    data = written(tmp_path, vocabulary, [[[largest, 5]]])
    assert (tmp_path / "training/text/00000.tokens").stat().st_size == 3 * width
    assert data.sources[0].read(0, 3).tolist() == [largest, 5, 0]
    assert data.sources[0].read(0, 3).dtype == np.int64


def test_every_document_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "ROWS", 3)
    source = written(tmp_path, VOCABULARY, [[[1]] * 8, [[2]] * 4]).sources[0]
    for number in range(12):
        document = source.document(number)
        assert document == Document("text.jsonl", number + 1, f"text-{number}", ["de", None][number % 2], 10)


def test_a_document_without_tokens_and_foreign_ids_are_refused(tmp_path: Path) -> None:
    document = Document("a.txt", 3, "a", None, 0)
    writer = ShardWriter(tmp_path, "training/text/00000", 10)
    with pytest.raises(DaybreakError, match=r"a\.txt:3 has no tokens"):
        writer.add([], document)
    for wrong in (10, -1):
        with pytest.raises(DaybreakError, match=f"the token {wrong}, outside the vocabulary of 10"):
            writer.add([1, wrong], document)


def test_files_appear_when_they_are_complete(tmp_path: Path) -> None:
    def names() -> list[str]:
        return sorted(file.name for file in tmp_path.rglob("*") if file.is_file())

    document = Document("a.txt", 1, "a", None, 3)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "training/text/00000", 10) as writer:
        writer.add([1, 0], document)
        raise KeyboardInterrupt
    assert names() == []
    with ShardWriter(tmp_path, "training/text/00000", 10) as writer:
        writer.add([1, 0], document)
        assert all(name.endswith(".partial") for name in names())
    assert names() == ["00000.ends", "00000.parquet", "00000.tokens"]
    assert writer.close() == writer.close()  # and may be closed again


def test_a_shard_of_nothing(tmp_path: Path) -> None:
    data = written(tmp_path, VOCABULARY, [[], [[7]], []])
    assert data.sources[0].documents == 1
    assert data.sources[0].read(0, 2).tolist() == [7, 0]


@pytest.mark.parametrize("suffix", ["tokens", "ends", "parquet"])
def test_damage_is_named(tmp_path: Path, suffix: str) -> None:
    written(tmp_path, VOCABULARY, [[[1, 2, 3]], [[4]]])
    file = tmp_path / f"training/text/00001.{suffix}"
    TokenSet.open(tmp_path, verify=True)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    TokenSet.open(tmp_path)
    with pytest.raises(DaybreakError, match=rf"00001\.{suffix} is damaged.*daybreak data build"):
        TokenSet.open(tmp_path, verify=True)
    file.unlink()
    with pytest.raises(DaybreakError, match=rf"00001\.{suffix} is missing.*daybreak data build"):
        TokenSet.open(tmp_path)


@pytest.mark.parametrize("suffix", ["tokens", "ends"])
def test_a_file_that_is_too_short_is_named_at_once(tmp_path: Path, suffix: str) -> None:
    written(tmp_path, VOCABULARY, [[[1, 2, 3]]])
    file = tmp_path / f"training/text/00000.{suffix}"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DaybreakError, match=rf"00000\.{suffix} has 7 bytes instead of 8"):
        TokenSet.open(tmp_path)


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    data = written(tmp_path, VOCABULARY, [[[1, 2, 3]]])
    (tmp_path / "training/text/00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DaybreakError, match=r"00000\.parquet cannot be read"):
        data.sources[0].document(0)


def test_the_manifest_comes_back(tmp_path: Path) -> None:
    shard = Shard("training/text/00000", 1, 2, 3, {"tokens": "a", "ends": "b", "parquet": "c"})
    source = Source("text", 0.25, {"training": (shard,), "validation": ()})
    manifest = Manifest(50257, 1024, 50256, (source,), "d", {"files": {"ä.txt": "e"}, "seed": 1})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
    dataclasses.replace(manifest, context=7).write(tmp_path)
    assert Manifest.read(tmp_path).context == 7


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DaybreakError, match=r"no finished data set.*daybreak data build"):
        TokenSet.open(tmp_path)
    for text in ("{", "[]", '{"format": 2}', json.dumps({"format": 1, "vocabulary": "many"})):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DaybreakError, match=r"manifest\.json cannot be read.*daybreak data build"):
            TokenSet.open(tmp_path)


def test_a_data_set_knows_its_tokenizer(tmp_path: Path) -> None:
    data = written(tmp_path, VOCABULARY, [[[1]]])
    with pytest.raises(DaybreakError, match="has no tokenizer"):
        data.tokenizer()
