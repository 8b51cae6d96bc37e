"""Indexed sources: the batches, states and views of an eager source, read by number."""

import itertools
import json

import grain
import jax
import numpy as np
import pytest
from flax import nnx

from datarax import (
    GrainSource,
    IndexedSourceBase,
    Pipeline,
    SourceConfigBase,
    as_grain,
    prefetch_to_device,
)
from tests.support.models import memory, points

N = 101


class Rows(IndexedSourceBase):
    """Rows of arrays, which notes how many are read at once."""

    def __init__(self, data, **arguments):
        self.arrays = nnx.static(_Held(data))
        super().__init__(SourceConfigBase(), **arguments)

    def __len__(self):
        return len(self.arrays.data["id"])

    def read_rows(self, indices):
        self.arrays.most = max(self.arrays.most, len(indices))
        return {name: column[indices] for name, column in self.arrays.data.items()}


class _Held:
    def __init__(self, data):
        self.data, self.most = data, 0


@pytest.fixture(params=[True, False], ids=["shuffled", "stored"])
def pair(request):
    data = points(N)
    data["wide"] = np.arange(N, dtype=np.int64)
    eager = memory(data, shuffle=request.param)
    return eager, Rows(data, shuffle=request.param, seed=7)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True)


def test_it_is_the_eager_source_by_its_fingerprint_spec_and_length(pair):
    eager, indexed = pair
    assert indexed.fingerprint == eager.fingerprint
    assert indexed.element_spec() == eager.element_spec()
    assert len(indexed) == len(eager) == N
    assert int(indexed[-1]["id"]) == N - 1
    same(indexed[3:7], eager[3:7])


def test_batches_are_the_eager_ones_and_states_restore_either(pair):
    eager, indexed = pair
    key = jax.random.key(3) if eager.is_random_order else None
    same(eager.get_batch_at(95, 20, key), indexed.get_batch_at(95, 20, key))
    for size in (60, 1, 250, 33):
        same(eager.get_batch(size), indexed.get_batch(size))
        assert eager.get_state() == indexed.get_state()
    state = json.loads(json.dumps(eager.get_state()))
    eager.get_batch(5)
    eager.set_state(state)
    indexed.set_state(state)
    for a, b in itertools.islice(zip(eager, indexed, strict=True), 30):
        same(a, b)


def test_a_pipeline_and_prefetching_give_the_eager_batches(pair):
    eager, indexed = pair

    def noise(batch, key):
        return {**batch, "x": batch["x"] + jax.vmap(lambda k: jax.random.normal(k, (4,)))(key)}

    for shards in (1, 8):
        pipelines = [
            Pipeline(source=source.clone(), stages=[noise], batch_size=16, shards=shards)
            for source in pair
        ]
        for _ in range(2):
            for a, b in zip(*pipelines, strict=True):
                same(a, b)
        assert pipelines[0].get_state() == pipelines[1].get_state()
    with prefetch_to_device(indexed.clone(), batch_size=16) as batches:
        ids = np.concatenate([batch["id"] for batch in batches])
    np.testing.assert_array_equal(ids, eager.get_batch(N)["id"])


def test_views_are_those_of_the_eager_source(pair):
    eager, indexed = pair
    made = [
        lambda s: s.select(slice(3, 80, 2)),
        lambda s: s.fold(1, of=4, stratify="label")[0].balanced("label"),
        lambda s: s.weighted("wide", length=70),
    ]
    for make in made:
        a, b = make(eager), make(indexed)
        assert len(a) == len(b)
        assert a.get_state() == b.get_state()
        same(a.get_batch(150), b.get_batch(150))


def test_nothing_of_the_datas_size_is_read():
    indexed = Rows(points(5000), shuffle=True)
    indexed.arrays.most = 0
    for _ in range(5):
        indexed.get_batch(16)
    for _ in itertools.islice(indexed, 20):
        pass
    assert indexed.arrays.most <= 256


def test_a_traced_position_is_refused(pair):
    _, indexed = pair
    with pytest.raises(NotImplementedError, match=r"prefetch_to_device.*eager source"):
        jax.jit(lambda t: indexed.get_batch_at(t, 4, jax.random.key(0)))(3)


def test_rows_that_differ_from_the_first_are_named():
    class Uneven(Rows):
        def read_rows(self, indices):
            rows = super().read_rows(indices)
            return rows if indices.max() < 4 else {**rows, **self.arrays.other}

    data = {"id": np.arange(4), "x": np.zeros((4, 2), np.float32)}
    for other, words in (
        ({"x": np.zeros((1, 3), np.float32)}, r"\['x'\] of shape \(1, 3\).*from row 4 on"),
        ({"more": np.zeros(1)}, "'more' for row 4, and 'id', 'x' for row 0"),
    ):
        source = Uneven(data)
        source.arrays.data = {name: np.resize(column, (5, *column.shape[1:]))
                              for name, column in data.items()}  # fmt: skip
        source.arrays.other = other
        with pytest.raises(ValueError, match=words):
            source.host_rows(np.array([4]))


def test_without_rows_there_is_no_source():
    with pytest.raises(ValueError, match="has no rows"):
        Rows({"id": np.arange(0)})


def test_grains_sources_are_read_and_read_ours():
    records = grain.MapDataset.range(N).map(lambda i: {"x": np.float32(i), "text": f"t{i}"})
    source = GrainSource(records, shuffle=True, seed=7)
    batch = source.get_batch(5)
    assert batch["text"].tolist() == [f"t{int(i)}" for i in batch["x"]]
    eager = memory(points(N))
    np.testing.assert_array_equal([r["id"] for r in as_grain(eager)], np.arange(N))
    again = GrainSource(as_grain(eager.select(slice(0, 9))))
    assert again.get_batch(9)["id"].tolist() == list(range(9))
    with pytest.raises(TypeError, match=r"is a int: .*MapDataset"):
        GrainSource(grain.MapDataset.range(3))
    with pytest.raises(TypeError, match="__len__ and __getitem__"):
        GrainSource(iter([1]))
