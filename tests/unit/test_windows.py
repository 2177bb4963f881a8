"""Windows: no token twice, none forgotten."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daybreak.data.windows import scoring_windows, training_windows
from daybreak.errors import DaybreakError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@given(LENGTHS, st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_the_promised_context(
    lengths: list[int], context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    scored: Counter[tuple[int, int]] = Counter()
    for window in scoring_windows(lengths, context, stride):
        inputs = window.end - 1 - window.begin
        assert 1 <= inputs <= context
        assert 0 <= window.begin < window.first < window.end <= lengths[window.document]
        for token in range(window.first, window.end):
            scored[window.document, token] += 1
            seen = token - window.begin  # tokens before it that the model reads
            assert seen >= min(token, context - stride + 1)
    wanted = {(document, token) for document, length in enumerate(lengths) for token in range(1, length)}
    assert scored == Counter(wanted)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_would_lose_tokens_is_refused(stride: int) -> None:
    with pytest.raises(DaybreakError, match="stride"):
        scoring_windows([10], 8, stride)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 3))
def test_one_pass_of_training_sees_no_place_twice(lengths: list[int], length: int, seed: int) -> None:
    # Every token is its own place, so a repetition shows.
    numbers = np.arange(sum(lengths), dtype=np.int32)
    documents = np.split(numbers, np.cumsum(lengths)[:-1])
    if len(numbers) <= length:
        with pytest.raises(DaybreakError, match="too few"):
            next(training_windows(documents, length, seed))
        return
    most = (len(numbers) - 1) // length
    least = (len(numbers) - 1 - (length - 1)) // length
    windows = [window.tolist() for window in islice(training_windows(documents, length, seed), max(least, 1))]
    assert len(windows) <= most
    inputs = [token for window in windows for token in window[:-1]]
    assert len(set(inputs)) == len(inputs)
    assert all(len(window) == length + 1 for window in windows)


def test_the_same_seed_gives_the_same_windows_and_another_gives_others() -> None:
    documents = [np.arange(100, dtype=np.int32), np.arange(100, 300, dtype=np.int32)]

    def first(seed: int) -> list[list[int]]:
        return [window.tolist() for window in islice(training_windows(documents, 8, seed), 50)]

    assert first(1) == first(1)
    assert first(1) != first(2)
