"""Draws of a mixture: proportions that hold in every thousand, also while they change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax.order.draws import MixtureDraws, stages_of

few = settings(deadline=None, max_examples=30)
weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)


def drawn(stages, count, start=0):
    """Returns the sources of `count` draws, and how many of each came before, of no end."""
    sources = len(stages[0][1])
    draws = MixtureDraws(stages_of(stages, sources), (None,) * sources, "never")
    index = start + np.arange(count)
    return draws.at(np.zeros_like(index), index)


def integral(stages, count):
    """Returns the weights that each of the first `count` draws should follow."""
    density = np.empty((count, len(stages[0][1])))
    for start, given_weights in stages:
        density[start:] = np.array(given_weights) / sum(given_weights)
    return density


@few
@given(weights, st.integers(1, 4000))
def test_proportions_hold_in_every_round(weights, start):
    chosen, before = drawn([(0, weights)], 5000)
    share = np.array(weights) / sum(weights)
    for first in range(0, 5000, 1000):
        counts = np.bincount(chosen[first : first + 1000], minlength=len(weights))
        assert np.all(np.abs(counts - 1000 * share) <= 1 + 1e-9)
    assert np.all(np.abs(np.bincount(chosen, minlength=len(weights)) - 5000 * share) <= 4)
    for source in range(len(weights)):
        mine = before[chosen == source]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
    again = drawn([(0, weights)], 900, start)
    np.testing.assert_array_equal(again[0], chosen[start : start + 900])
    np.testing.assert_array_equal(again[1], before[start : start + 900])


def staged(sources, starts):
    """Returns a strategy of two to four stages; a source may be left out of some of them."""
    one = st.lists(st.floats(0.01, 10), min_size=sources, max_size=sources)
    masked = st.tuples(one, st.integers(0, sources)).map(
        lambda pair: [w * (i + 1 != pair[1] or sources == 1) for i, w in enumerate(pair[0])]
    )
    first = st.tuples(st.just(0), one)
    return st.tuples(first, st.lists(st.tuples(starts, masked), min_size=1, max_size=3)).map(
        lambda pair: [pair[0], *sorted({start: (start, w) for start, w in pair[1]}.values())]
    )


def expect_independent(stages, chosen, before):
    """What comes before a stage does not depend on it."""
    for number in range(1, len(stages)):
        shorter = drawn(stages[:number], stages[number][0])
        np.testing.assert_array_equal(shorter[0], chosen[: stages[number][0]])
        np.testing.assert_array_equal(shorter[1], before[: stages[number][0]])


@few
@given(st.integers(1, 6).flatmap(lambda k: staged(k, st.integers(1, 5).map(lambda n: n * 1000))))
def test_stages_hold_the_integral_of_their_weights_in_every_thousand(stages):
    chosen, before = drawn(stages, 6000)
    density = integral(stages, 6000)
    for first in range(0, 6000, 1000):
        counts = np.bincount(chosen[first : first + 1000], minlength=density.shape[1])
        assert np.all(np.abs(counts - density[first : first + 1000].sum(axis=0)) <= 1 + 1e-9)
    expect_independent(stages, chosen, before)


@few
@given(st.integers(2, 6).flatmap(lambda k: staged(k, st.integers(1, 2999))))
def test_a_stage_within_a_thousand_holds_it_too_where_what_was_drawn_before_allows(stages):
    chosen, before = drawn(stages, 3000)
    density = integral(stages, 3000)
    for first in (0, 1000, 2000):
        sources, share = density.shape[1], density[first : first + 1000].sum(axis=0)
        counts = np.bincount(chosen[first : first + 1000], minlength=sources)
        last = max(start for start, _ in stages if start < first + 1000)
        taken = np.bincount(chosen[first : max(first, last)], minlength=sources)
        least = np.maximum(taken, np.ceil(share - 1 - 1e-9))
        most = np.floor(share + 1 + 1e-9)
        if np.all(least <= most) and least.sum() <= 1000 <= most.sum():
            assert np.all(np.abs(counts - share) <= 1 + 1e-9)
    expect_independent(stages, chosen, before)


def test_no_order_of_five_sources_stays_within_one_of_every_stage_that_may_follow():
    chosen, _ = drawn([(0, [1] * 5)], 998)
    owed = 998 / 5 - np.bincount(chosen, minlength=5)
    one, two = np.flatnonzero(owed > 0.5)
    weights = np.zeros(5)
    weights[[one, two]] = 0.25, 0.75
    stages = [(0, [1] * 5), (998, weights.tolist())]
    chosen, _ = drawn(stages, 1000)
    off = integral(stages, 1000).sum(axis=0) - np.bincount(chosen, minlength=5)
    assert 1 < abs(off).max() < 1.2


@few
@given(st.lists(st.integers(1, 3000), min_size=2, max_size=4), st.data())
def test_an_epoch_ends_with_the_last_record_of_the_first_or_the_last_source(lengths, data):
    stages = data.draw(staged(len(lengths), st.integers(1, 4000)))
    stages = [*stages, (5000, [1.0] * len(lengths))]
    chosen, _ = drawn(stages, 5000 + 2000 * 4 + 3000 * 4)
    ends = [np.flatnonzero(chosen == n)[length - 1] + 1 for n, length in enumerate(lengths)]
    for stop, expected in (("first", min(ends)), ("all", max(ends))):
        draws = MixtureDraws(stages_of(stages, len(lengths)), tuple(lengths), stop)
        assert draws.length == expected
        counts = np.bincount(chosen[:expected], minlength=len(lengths))
        np.testing.assert_array_equal(draws.counts, counts)
        # Another epoch has the same draws, and goes on with the records.
        one = draws.at(np.zeros(7, int), np.arange(expected - 1, expected + 6) % expected)
        two = draws.at(np.full(7, 3), np.arange(expected - 1, expected + 6) % expected)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(two[1], one[1] + 3 * counts[one[0]])


@pytest.mark.parametrize(
    ("given_weights", "words"),
    [
        ([1, 2, 3], r"2 sources and weights=\[1, 2, 3\]: expected one positive weight a source"),
        ([1, -0.5], r"weights=\[1, -0\.5\]: expected one positive weight a source"),
        ([0, 0], "expected one positive weight a source"),
        ([1, float("nan")], r"weights=\[1, nan\]"),
        ([1, float("inf")], r"weights=\[1, inf\]"),
        ([1, 0], r"Source 1 would never be drawn"),
        ([], r"weights=\[\]"),
        ([(0, [1, 1]), (500, [1])], r"weights=\[1\]"),
        ([(0, [1, 1]), (500, [0, 0])], r"weights=\[0, 0\]"),
        ([(0, [1, 0]), (500, [1, 0])], "Source 1 would never be drawn"),
        ([(10, [1, 1])], "the first stage's draw=10: expected an integer from 0 to 0"),
        ([(0, [1, 1]), (0, [1, 2])], "the first draw of stage 1=0: expected an integer from 1"),
        ([(0, [1, 1]), (0.5, [1, 2])], r"the first draw of stage 1=0\.5: expected an integer"),
        ([(0, [1, 1], 3)], r"stage 0 is .* expected the first draw and the weights from it on"),
        ([(0, 1), (5, 1)], r"stage 0 is \(0, 1\)"),
    ],
)
def test_weights_that_are_none_are_refused(given_weights, words):
    with pytest.raises(ValueError, match=words):
        stages_of(given_weights, 2)


def test_an_epoch_that_would_never_end_is_refused():
    stages = stages_of([(0, [1, 1]), (10, [1, 0])], 2)
    assert MixtureDraws(stages, (50, 5), "all").length == 55
    with pytest.raises(ValueError, match=r'stop=.all.: source 1 .* its last weight is 0.*"first"'):
        MixtureDraws(stages, (50, 6), "all")
    assert MixtureDraws(stages, (50, 6), "first").length == 55
    with pytest.raises(ValueError, match=r"source 0 is never .* it has no length"):
        MixtureDraws(stages, (None, None), "first")
