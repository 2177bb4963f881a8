"""The loader: the same sequences whoever asks, in whichever order and company."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daybreak.data import order
from daybreak.data.loader import Loader, Windows
from daybreak.data.token_shards import Manifest, TokenSet
from daybreak.errors import DaybreakError
from tests.unit.token_data import SEPARATOR, built

LENGTH = 8
SHARDS = st.lists(
    st.lists(st.lists(st.integers(1, 299), max_size=20), min_size=1, max_size=4), min_size=1, max_size=3
)


def numbered(begin: int, lengths: Sequence[int]) -> list[list[int]]:
    """Documents whose tokens are all different."""
    found = []
    for length in lengths:
        found.append(list(range(begin, begin + length)))
        begin += length
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    folder = tmp_path_factory.mktemp("data")
    shards = {
        "books": [numbered(1, [30, 5, 1]), numbered(37, [20, 8])],
        "web": [numbered(101, [3, 3, 3, 40]), numbered(150, [60])],
    }
    return built(folder, shards, {"books": 1.0, "web": 3.0})


def same(one: Windows, other: Windows) -> bool:
    return torch.equal(one.tokens, other.tokens) and one.lengths == other.lengths


@given(SHARDS, st.integers(1, 12), st.integers(0, 3), st.integers(0, 10**12), st.booleans())
def test_a_sequence_is_a_stretch_of_its_source(
    shards: list[list[list[int]]], length: int, seed: int, sequence: int, masking: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = built(Path(folder), {"text": shards})
        ring = [token for shard in shards for document in shard for token in [*document, SEPARATOR]]
        if len(ring) <= length:
            with pytest.raises(DaybreakError, match=r"source text has \d+ tokens.*weight 0.*shorter context"):
                Loader(data, length, seed, masking=masking)
            return
        loader = Loader(data, length, seed, masking=masking)
        windows = loader.windows([sequence])
        _, first = order.Walk("text", len(ring), length, seed).place(sequence)
        wanted = (ring + ring)[first : first + length + 1]
        assert windows.tokens.tolist() == [wanted]
        reads = loader.documents([sequence])
        assert sum(read.tokens for read in reads) == length
        assert {read.epoch for read in reads} == {sequence // (len(ring) // length)}
        if not masking:
            assert windows.lengths is None
            return
        assert windows.lengths is not None
        assert sum(windows.lengths[0]) == length + 1
        # A part ends behind every separator, and nowhere else but at the end.
        ends = [sum(windows.lengths[0][: k + 1]) for k in range(len(windows.lengths[0]))]
        separators = {place + 1 for place, token in enumerate(wanted) if token == SEPARATOR}
        assert set(ends) == separators | {length + 1}


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=12), st.data())
def test_the_company_does_not_matter(data: TokenSet, sequences: list[int], draw: st.DataObject) -> None:
    whole = Loader(data, LENGTH, seed=3, masking=True).windows(sequences)
    ranks = draw.draw(st.integers(1, 4))
    for rank in range(ranks):
        own = Loader(data, LENGTH, seed=3, masking=True).windows(sequences[rank::ranks])
        assert torch.equal(own.tokens, whole.tokens[rank::ranks])
        assert own.lengths == (whole.lengths or [])[rank::ranks]


def test_an_epoch_reads_every_token_of_a_source_and_names_its_documents(data: TokenSet) -> None:
    loader = Loader(data, LENGTH, seed=0, weights={"books": 1})
    tokens = data.sources[0].tokens
    sequences = range(tokens // LENGTH)
    windows = loader.windows(sequences).tokens
    seen = Counter(windows[:, :-1].flatten().tolist())
    assert tokens - LENGTH < sum(seen.values()) <= tokens
    assert all(count == 1 for token, count in seen.items() if token != SEPARATOR)
    reads = loader.documents(sequences)
    by_document = Counter[str]()
    for read in reads:
        assert (read.source, read.epoch, read.document.file) == ("books", 0, "books.jsonl")
        by_document[read.document.id] += read.tokens
    assert sum(by_document.values()) == len(windows) * LENGTH
    assert all(by_document[f"books-{k}"] <= size + 1 for k, size in enumerate([30, 5, 1, 20, 8]))


def test_documents_are_those_of_the_tokens(data: TokenSet) -> None:
    loader = Loader(data, LENGTH, seed=5)
    begins = {"books": [1, 31, 36, 37, 57, 65], "web": [101, 104, 107, 110, 150, 210]}
    for sequence in range(60):
        row = loader.windows([sequence]).tokens[0, :-1].tolist()
        for read in loader.documents([sequence]):
            part, row = row[: read.tokens], row[read.tokens :]
            number = int(read.document.id.rpartition("-")[2])
            inside = range(*begins[read.source][number : number + 2])
            assert all(token in inside for token in part if token != SEPARATOR)
        assert row == []


def test_weights_are_those_of_the_data_or_of_the_run(data: TokenSet) -> None:
    def counts(weights: Mapping[str, float] | None) -> Counter[str]:
        loader = Loader(data, LENGTH, 0, weights)
        return Counter(loader.documents([n])[0].source for n in range(order.WINDOW))

    assert counts(None) == {"books": 64, "web": 192}
    assert counts({"web": 1, "books": 1}) == {"books": 128, "web": 128}
    assert counts({"books": 5, "web": 0}) == counts({"books": 1}) == {"books": 256}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"book": 1}, "source 'book' .did you mean 'books'"),
        ({"books": -1.0}, "weight of books is -1"),
        ({"books": float("nan")}, "weight of books is nan"),
        ({"books": float("inf")}, "weight of books is inf"),
        ({"books": 0}, "no source of .* above 0; there are books, web"),
    ],
)
def test_weights_that_are_none_are_refused(data: TokenSet, weights: dict[str, float], message: str) -> None:
    with pytest.raises(DaybreakError, match=message):
        Loader(data, LENGTH, 0, weights)


def test_a_source_that_is_too_short_matters_only_where_it_is_read(data: TokenSet) -> None:
    longer = data.sources[0].tokens
    with pytest.raises(DaybreakError, match=f"books has {longer} tokens for training.*needs {longer + 1}"):
        Loader(data, longer, 0)
    Loader(data, longer, 0, {"web": 1, "books": 0}).windows([0])


def test_reading_ahead_reads_the_same(data: TokenSet) -> None:
    loader = Loader(data, LENGTH, 1, masking=True)
    requests = [[1, 2, 3], [], [10**12, 5], [4]] * 3
    found = list(loader.ahead(requests))
    assert len(found) == len(requests)
    assert all(same(one, loader.windows(request)) for one, request in zip(found, requests, strict=True))


def test_reading_ahead_takes_a_few_requests_and_ends_its_thread(data: TokenSet) -> None:
    taken = []

    def requests() -> Iterator[list[int]]:
        for number in range(10**9):
            taken.append(number)
            yield [number]

    before = threading.active_count()
    stream = Loader(data, LENGTH, 1).ahead(requests())
    assert same(next(stream), Loader(data, LENGTH, 1).windows([0]))
    assert len(taken) == 3
    assert threading.active_count() == before + 1
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_of_the_thread_comes_out(tmp_path: Path) -> None:
    data = built(tmp_path, {"text": [numbered(1, [40])]})
    loader = Loader(data, LENGTH, 1)
    (tmp_path / "training/text/00000.tokens").unlink()
    before = threading.active_count()
    with pytest.raises(FileNotFoundError, match=r"00000\.tokens"):
        list(loader.ahead([[0], [1]]))
    assert threading.active_count() == before


def test_the_fingerprint_changes_with_whatever_changes_the_order(data: TokenSet, tmp_path: Path) -> None:
    loader = Loader(data, LENGTH, 1)
    assert Loader(data, LENGTH, 1).fingerprint == loader.fingerprint
    assert Loader(data, LENGTH, 1, {"web": 6, "books": 2}).fingerprint == loader.fingerprint
    shard = data.manifest.sources[0].shards["training"][0]
    damaged = dataclasses.replace(shard, sha256={**shard.sha256, "tokens": "other"})
    shards = {"training": (damaged, *data.manifest.sources[0].shards["training"][1:])}
    source = dataclasses.replace(data.manifest.sources[0], shards=shards)
    other = dataclasses.replace(data.manifest, sources=(source, *data.manifest.sources[1:]))
    found = {
        loader.fingerprint,
        Loader(data, LENGTH + 1, 1).fingerprint,
        Loader(data, LENGTH, 2).fingerprint,
        Loader(data, LENGTH, 1, masking=True).fingerprint,
        Loader(data, LENGTH, 1, {"web": 1, "books": 1}).fingerprint,
        Loader(TokenSet(data.folder, "training", other), LENGTH, 1).fingerprint,
    }
    assert len(found) == 6
    other.write(tmp_path)
    assert Manifest.read(tmp_path) == other
