"""The permutation of a window: every length, another for each key, no place preferred."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.order.windows import permutation


@given(st.integers(0, 40_000), st.integers(0, 2**32 - 1), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_it_is_a_permutation_and_a_function_of_its_key(length, seed, window):
    found = permutation(length, seed, 0, window)
    assert np.array_equal(np.sort(found), np.arange(length))
    assert np.array_equal(found, permutation(length, seed, 0, window))
    if length > 20:
        assert not np.array_equal(found, permutation(length, seed, 0, window + 1))
        assert not np.array_equal(found, permutation(length, seed, 1, window))


@pytest.mark.parametrize("length", [2, 3, 17, 32])
def test_every_row_is_as_often_in_every_place_and_after_every_other(length):
    windows = 20_000
    places, after = np.zeros((2, length, length))
    for window in range(windows):
        found = permutation(length, 42, 0, window)
        places[found, np.arange(length)] += 1
        after[found[:-1], found[1:]] += 1
    for counts in places.ravel(), after[~np.eye(length, dtype=bool)]:
        freedom = counts.size - 1
        excess = np.sum((counts - counts.mean()) ** 2 / counts.mean()) - freedom
        assert abs(excess) < 6 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [1000, 16_384, 16_385, 100_000])
def test_a_long_one_has_no_runs(length):
    steps = np.diff(permutation(length, 42, 0, 0))
    assert abs(np.mean(steps > 0) - 0.5) < 6 / np.sqrt(12 * length)
    assert np.mean(abs(steps) < length / 100) == pytest.approx(0.02, abs=6 * 0.14 / length**0.5)
