"""Views of sources: sources themselves, of the records that they say, without a copy."""

import json

import datasets
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFEagerSource, HFStreamingSource, MixedSource, Pipeline
from tests.support.models import memory, points

N = 60


@pytest.fixture
def source():
    return memory(points(N), shuffle=True)


def views(source, count=4):
    training, validation = source.fold(1, of=5, stratify="label")
    return [
        source.select(slice(5, 30)),
        training.balanced("label"),
        source.select(np.arange(N) % 2 == 0).weighted("id", length=17),
        validation,
        training.balanced("label").select(slice(0, 20)),
        source.balanced("label"),
        source.weighted(np.arange(N)),
    ][:count]


@pytest.mark.parametrize("count", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_a_view_is_a_source_wherever_it_is_read(source, count):
    for view in views(source, count):
        length = len(view)
        first = view.get_batch_at(0, length, jax.random.key(7))
        np.testing.assert_array_equal(view.clone().get_batch(length)["id"], first["id"])
        traced = jax.jit(lambda s, t: s.get_batch_at(t, 4, jax.random.key(7)))(view, 3)
        np.testing.assert_array_equal(traced["id"], first["id"][(3 + np.arange(4)) % length])
        np.testing.assert_array_equal([row["id"] for row in view.clone()], first["id"])
        batches = list(Pipeline(source=view, stages=[], batch_size=8))
        np.testing.assert_array_equal(np.concatenate([b["id"] for b in batches]), first["id"])


def test_a_view_shares_the_columns_and_leaves_the_source_where_it_was(source):
    for view in views(source):
        assert view.data["x"] is source.data["x"]
        view.get_batch(3)
    assert source.get_state()["index"] == 0
    assert len(source) == N


def test_records_by_number_are_those_of_the_stored_order(source):
    view = source.select([7, 3, 3, -1])
    assert [int(row["id"]) for row in (view[0], view[-1])] == [7, N - 1]
    assert view[1:]["id"].tolist() == [3, 3, N - 1]
    view.set_random_order(False)
    assert view.get_batch(4)["id"].tolist() == [7, 3, 3, N - 1]
    assert view.collect_to_array()["id"].tolist() == [7, 3, 3, N - 1]


CLASSES = st.lists(st.integers(0, 2), min_size=30, max_size=30).filter(
    lambda labels: min(np.bincount(labels[3:], minlength=3)) > 4
)
WEIGHTS = st.lists(st.floats(0.01, 9), min_size=30, max_size=30)


@pytest.mark.parametrize("examples", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_views_of_views_are_what_they_say_on_the_host_and_compiled(examples):
    @jax.jit
    def compiled(order, position):
        return order.records(2, position)

    @settings(deadline=None, max_examples=examples)
    @given(CLASSES, WEIGHTS, st.sampled_from([(2, 1), (4, 0)]), st.integers(0, 2**32 - 1))
    def holds(labels, weights, fold, seed):
        labels, weights = np.array(labels), np.array(weights)
        whole = memory({"label": labels, "weight": weights}, shuffle=True, seed=seed)
        selected = whole.select(slice(3, None))
        of, i = fold
        training, validation = selected.fold(i, of, seed=seed, stratify="label")
        rest, _ = whole.split(0.4, seed=seed, stratify="label")
        views = [
            training,
            validation,
            training.balanced("label"),
            rest.weighted("weight", length=23),
        ]
        seen = [view.order.host_records(2, np.arange(view.length)) for view in views]
        for view, records in zip(views, seen, strict=True):
            np.testing.assert_array_equal(compiled(view.order, np.arange(view.length)), records)

        assert sorted([*seen[0], *seen[1]]) == list(range(3, 30))
        counts = [np.bincount(labels[records], minlength=3) for records in seen]
        share = np.bincount(labels[3:], minlength=3) / of
        assert (abs(counts[1] - share) < 1).all()
        assert set(seen[2]) == set(seen[0])
        assert (labels[seen[2]].reshape(-1, 3) == [0, 1, 2]).all()  # so in every window of 3 x m
        held = rest.stored_records(np.arange(rest.length))
        share = 23 * weights[held] / weights[held].sum()
        assert (abs(np.bincount(seen[3], minlength=30)[held] - share) <= 1 + 1e-6).all()
        assert np.isin(seen[3], held).all()

    holds()


def test_a_state_goes_on_and_is_refused_by_another_view(source):
    made = views(source)
    for number, view in enumerate(made):
        view.get_batch(5)
        state = json.loads(json.dumps(view.get_state()))
        assert len(json.dumps(state)) < 400
        other = views(source)[number]
        other.set_state(state)
        np.testing.assert_array_equal(other.get_batch(30)["id"], view.get_batch(30)["id"])
    with pytest.raises(
        ValueError, match=r"is of select\(25 records\), .* has .*\.balanced\('label'\)"
    ):
        made[1].set_state(made[0].get_state())
    with pytest.raises(ValueError, match=r"is of all records, .* has select"):
        made[0].set_state(source.get_state())
    with pytest.raises(ValueError, match="other data"):
        source.select(slice(6, 31)).set_state(made[0].get_state())


def test_a_view_of_a_hugging_face_source_keeps_host_columns_and_copies():
    rows = {"text": [f"t{i}" for i in range(9)], "label": [i % 2 for i in range(9)]}
    source = HFEagerSource.from_dataset(datasets.Dataset.from_dict(rows))
    view = source.select([8, 0]).copy(name="two")
    assert view.get_batch(2)["text"].tolist() == ["t8", "t0"]
    assert view[1]["text"] == "t0"
    assert source.weighted("label").get_state()["view"] == "weighted('label')"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: s.balanced("lable"), r"no column 'lable'.* mean 'label'"),
        (lambda s: s.balanced("x"), r"has the shape \(60, 4\): expected classes"),
        (lambda s: s.balanced(np.zeros(N, int)), "all 60 records are of one class"),
        (lambda s: s.balanced(np.zeros(N)), "holds float64: expected classes"),
        (lambda s: s.weighted(np.ones(3)), r"shape \(3,\): expected weights of shape \(60,\)"),
        (lambda s: s.weighted(np.full(N, -1)), "weight of record 0 is -1"),
        (lambda s: s.weighted(np.zeros(N)), "all 60 weights are 0"),
        (lambda s: s.weighted(np.full(N, np.nan)), "weight of record 0 is nan"),
        (lambda s: s.fold(0, of=61), "of=61: expected 2 to 60"),
        (lambda s: s.fold(5, of=5), "i=5: expected an integer from 0 to 4"),
        (lambda s: s.split(1.5), r"fraction=1\.5"),
        (lambda s: s.select([]), r"select\(\[\]\): expected numbers of some of the 60 records"),
        (lambda s: s.select(np.zeros(N, bool)), "a mask or a slice that keeps some"),
        (lambda s: s.select(3), r"select\(3\): expected numbers .* as in select\(\[0, 2\]\)"),
        (lambda s: s.weighted(["a"] * N), "holds <U1: expected weights, numbers"),
        (lambda s: s.weighted("id", length=2.5), r"length=2\.5: expected an integer from 1"),
    ],
)
def test_views_that_make_no_sense_are_refused(source, make, words):
    with pytest.raises(ValueError, match=words):
        make(source)


def test_records_that_do_not_exist_are_refused(source):
    with pytest.raises(IndexError, match="60 records, 0 to 59: there is no record 60"):
        source.select([60])


def test_texts_are_no_classes():
    source = HFEagerSource.from_dataset(datasets.Dataset.from_dict({"text": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"host column.*class_encode_column"):
        source.balanced("text")
    with pytest.raises(ValueError, match=r"host column.*weighted\(np.array"):
        source.weighted("text")


@pytest.mark.parametrize("view", ["select", "split", "fold", "balanced", "weighted"])
def test_what_is_read_in_order_has_no_views_and_says_what_has(source, view):
    stream = HFStreamingSource.from_dataset(datasets.Dataset.from_dict({"x": [1, 2]}))
    mixture = MixedSource([source], [1])
    for one in [mixture] if view == "split" else [stream, mixture]:  # a stream has a split's name
        with pytest.raises(AttributeError, match=rf"{view}\(\) .*dataset\.take.*HFIndexedSource"):
            getattr(one, view)
    with pytest.raises(AttributeError, match="no attribute 'selekt'"):
        stream.selekt  # noqa: B018
