"""Views: the records that they say, as often as they say, at any position of an epoch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from datarax.order.keyed import keyed_permutation
from datarax.order.splits import fold, split
from datarax.order.views import Balanced, Selected, Weighted

seeds = st.one_of(st.none(), st.integers(0, 2**32 - 1))
classes = st.sampled_from([2, 5, 20]).flatmap(
    lambda n: st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(lambda c: len(set(c)) > 1)
)
lengths = st.sampled_from([1, 2, 7, 40])  # each is compiled
few = settings(deadline=None, max_examples=20)


def epoch(view, seed):
    """Returns the records of a whole epoch of a view."""
    # Padded, so that epochs of all lengths run through the same few compiled operations.
    position = np.arange(-(-view.length // 256) * 256, dtype=np.uint32) % np.uint32(view.length)
    seed = None if seed is None else np.uint32(seed)
    return np.asarray(view.records(jnp.asarray(position), seed))[: view.length]


def made(jaxpr):
    """Yields the shape of everything that a program makes."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.shape for var in eqn.outvars)
        for inner in jaxprs_in_params(eqn.params):
            yield from made(inner)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 31, 64, 1000, 65_537])
def test_a_keyed_permutation_is_one_for_every_key(length):
    # Padded, so that short ones run through the same compiled operations.
    index = jnp.arange(max(length, 1000), dtype=jnp.uint32) % np.uint32(length)
    orders = set()
    for key in (0, 1, 77, 2**32 - 1):
        order = keyed_permutation(
            index, jnp.full_like(index, length), jnp.full_like(index, np.uint32(key))
        )[:length]
        assert sorted(order.tolist()) == list(range(length))
        orders.add(tuple(order.tolist()))
    assert len(orders) > 1 or length < 4


def test_every_permutation_of_a_few_is_about_as_frequent():
    keys = jnp.arange(4800, dtype=jnp.uint32) * np.uint32(2654435761)
    index = jnp.arange(4, dtype=jnp.uint32)
    orders = jax.vmap(
        lambda key: keyed_permutation(index, jnp.full_like(index, 4), jnp.full_like(index, key))
    )(keys)
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    assert len(counts) == 24
    assert abs(counts / 200 - 1).max() < 0.4


@few
@given(lengths, st.randoms(), seeds)
def test_a_selection_has_its_records_once_an_epoch(length, random, seed):
    records = [random.randrange(10**6) for _ in range(length)]
    got = epoch(Selected.of(np.array(records), "rows"), seed)
    assert got.dtype == np.int32
    assert sorted(got.tolist()) == sorted(records)
    if seed is None:
        assert got.tolist() == records


@few
@given(classes, seeds, st.integers(1, 4), st.integers(0, 30))
def test_a_balanced_view_has_each_class_equally_often_in_every_window(classes, seed, m, start):
    classes = np.array(classes)
    view = Balanced.of(classes, np.arange(len(classes)), "balanced")
    got = epoch(view, seed)
    present, sizes = np.unique(classes, return_counts=True)
    assert len(got) == len(present) * sizes.max()
    counts = np.bincount(got, minlength=len(classes))
    for number in present:
        of = counts[classes == number]
        assert of.sum() == sizes.max()
        assert of.max() - of.min() <= 1
    window = classes[got[start : start + len(present) * m]]
    if len(window) == len(present) * m:
        assert all((window == number).sum() == m for number in present)


@few
@given(
    st.sampled_from([1, 2, 9, 40]).flatmap(  # each is compiled
        lambda n: st.lists(st.floats(0, 1e6), min_size=n, max_size=n).filter(any)
    ),
    st.sampled_from([1, 3, 40, 200]),
    seeds,
)
def test_a_weighted_view_draws_each_record_as_often_as_its_weight_says(weights, length, seed):
    weights = np.array(weights)
    counts = np.bincount(
        epoch(Weighted.of(weights, length, None, "w"), seed), minlength=len(weights)
    )
    share = weights / weights.sum() * length
    assert counts.sum() == length
    assert (abs(counts - share) <= 1 + 1e-6).all()
    assert not counts[weights == 0].any()


def test_weights_whose_sum_is_no_number_count_as_they_are():
    huge, view = (Weighted.of(np.array([1, 3, 4]) * x, 8, None, "w") for x in (4e307, 1.0))
    np.testing.assert_array_equal(huge.ends, view.ends)
    assert np.bincount(epoch(huge, None)).tolist() == [1, 3, 4]


def test_rare_records_are_drawn_in_some_epochs():
    weights = np.array([0.2, 1, 1, 1, 1.8])
    view = Weighted.of(weights, 5, None, "w")
    draw = jax.vmap(lambda seed: view.records(jnp.arange(5, dtype=jnp.uint32), seed))
    counts = np.bincount(np.ravel(jax.jit(draw)(jnp.arange(500, dtype=jnp.uint32))), minlength=5)
    np.testing.assert_allclose(counts / 500, weights, atol=0.08)


@pytest.mark.parametrize("records", [None, np.arange(40_000)[::-1]])
def test_a_guided_search_finds_what_a_plain_one_does(records):
    weights = np.random.default_rng(0).pareto(1.0, 40_000)
    view = Weighted.of(weights, 30_000, records, "w")
    assert view.ends.dtype == np.uint16
    got = epoch(view, 3)
    ends = np.cumsum(weights)
    counts = np.bincount(got if records is None else records[got], minlength=40_000)
    assert (abs(counts - weights / ends[-1] * 30_000) <= 1 + 1e-3).all()


def test_nothing_of_an_epochs_length_is_formed():
    n = 1_000_000
    views = [
        Selected.of(np.arange(n)[::-1], "s"),
        Balanced.of(np.arange(n) % 7, np.arange(n), "b"),
        Weighted.of(np.arange(n), n, None, "w"),
    ]
    for view in views:
        assert sum(table.nbytes for table in jax.tree.leaves(view)) <= 4 * n + 200

        def batch(view, start, seed):
            position = start + jnp.arange(128, dtype=jnp.uint32)
            return view.records(position, seed)

        shapes = made(jax.make_jaxpr(batch)(view, np.uint32(5), np.uint32(1)).jaxpr)
        assert max(np.prod(shape, dtype=int) for shape in shapes) <= 8 * 128


@few
@given(classes, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1), st.booleans(), st.integers(2, 5))
def test_splits_and_folds_are_disjoint_complete_and_stratified(
    classes, fraction, seed, stratify, of
):
    classes = np.array(classes)
    n = len(classes)
    rest, part = split(n, fraction, seed=seed, classes=classes if stratify else None)
    assert sorted([*rest, *part]) == list(range(n))
    assert 0 < len(part) < n
    assert abs(len(part) - fraction * n) <= 1
    if stratify:
        for number in np.unique(classes):
            share = (classes == number).sum() * len(part) / n
            assert abs((classes[part] == number).sum() - share) < 1
    of = min(of, n)
    parts = []
    for i in range(of):
        training, validation = fold(n, i, of, seed=seed, classes=classes if stratify else None)
        assert sorted([*training, *validation]) == list(range(n))
        parts.append(validation)
    assert sorted(np.concatenate(parts)) == list(range(n))
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1
    if stratify:
        for number in np.unique(classes):
            of_class = [(classes[p] == number).sum() for p in parts]
            assert max(of_class) - min(of_class) <= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Weighted.of(np.array([1, -1.0]), 2, None, "w"), r"weight of record 1 is -1\.0"),
        (lambda: Weighted.of(np.array([1, np.nan]), 2, None, "w"), "weight of record 1 is nan"),
        (lambda: Weighted.of(np.zeros(3), 2, None, "w"), "all 3 weights are 0"),
        (
            lambda: Balanced.of(np.ones(3), np.arange(3), "b"),
            r"all 3 records are of one class, \[1\.0\]",
        ),
        (lambda: Selected.of(np.arange(0), "rows"), "rows has 0 records"),
        (lambda: fold(3, 0, 4), "of=4: expected 2 to 3 folds"),
        (lambda: fold(3, 3, 3), "i=3: expected an integer from 0 to 2"),
        (lambda: fold(3, 0, 2.5), r"of=2\.5: expected 2 to 3 folds"),
        (lambda: fold(3, 0.5, 2), r"i=0\.5: expected an integer from 0 to 1"),
        (lambda: split(3, "0.2"), "fraction='0.2': expected a number between 0 and 1"),
        (lambda: split(3, 0.5, seed=-1), "seed=-1: expected an integer"),
        (lambda: split(3, 1.0), r"fraction=1\.0: expected a number between 0 and 1"),
    ],
)
def test_views_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
