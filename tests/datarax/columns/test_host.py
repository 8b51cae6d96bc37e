"""Host columns: objects beside arrays, invisible to JAX."""

import copy
import gc
import weakref

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax import MemorySource, MemorySourceConfig, Pipeline, prefetch_to_device
from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns
from trainers import Trainer


@pytest.fixture(params=["arrow", "objects"])
def column(request):
    texts = [f"text {i}" for i in range(5)]
    if request.param == "objects":
        return HostColumn.of_objects("t", texts)
    return load_columns(datasets.Dataset.from_dict({"t": texts})).data["t"]


def test_it_reads_like_an_object_array(column):
    texts = np.array([f"text {i}" for i in range(5)], object)
    assert column.shape == (5,)
    assert column.dtype == object
    assert len(column) == 5
    assert column[3] == "text 3"
    assert column[-1] == "text 4"
    for index in (
        slice(1, 4),
        slice(None, None, -2),
        [4, 0, 4],
        np.array([], int),
        texts == "text 2",
    ):
        assert column[index].tolist() == texts[index].tolist()
        assert column[index].dtype == object
    assert column.take(np.array([2, -5])).tolist() == ["text 2", "text 0"]
    assert np.asarray(column).tolist() == texts.tolist()
    assert list(column) == texts.tolist()
    with pytest.raises(IndexError, match="5 rows, 0 to 4: there is no row 5"):
        column[5]


def test_it_is_no_part_of_the_pytree(column):
    batch = {"t": column, "x": jnp.arange(3)}
    assert len(jax.tree.leaves(batch)) == 1
    assert jax.tree.map(lambda x: x + 1, batch)["t"] is column
    assert copy.deepcopy(batch)["t"] is column


def test_it_rides_through_jit_as_static(column):
    traces = []

    @jax.jit
    def double(batch):
        traces.append(1)
        return batch | {"x": batch["x"] * 2}

    for _ in range(2):
        assert double({"t": column, "x": jnp.arange(3)})["t"] is column
    assert len(traces) == 1


def test_it_rides_through_nnx(column):
    class Source(nnx.Module):
        def __init__(self):
            self.columns = nnx.data({"t": column, "x": jnp.arange(3)})

    source = Source()
    graph, state = nnx.split(source)
    assert len(jax.tree.leaves(state)) == 1
    assert nnx.merge(graph, state).columns["t"] is column
    assert nnx.clone(source).columns["t"] is column
    assert nnx.jit(lambda source: source.columns["x"].sum())(source) == 3


def test_traced_use_explains_itself(column):
    words = r"column 't' is no JAX array: row 0 is 'text 0'.*exclude_keys=\{'t'\}"
    with pytest.raises(TypeError, match=words):
        jax.jit(lambda i: column[i])(0)
    with pytest.raises(TypeError, match=words):
        jax.jit(lambda i: column.take(i))(jnp.arange(2))
    with pytest.raises(TypeError, match=words):
        jnp.asarray(column)
    with pytest.raises(TypeError, match=words):
        jnp.sum(column)


def test_objects_of_one_length_stay_objects():
    column = HostColumn.of_objects("x", [[1, 2], [3, 4]])
    assert column.shape == (2,)
    assert column[1] == [3, 4]


# --- lifetimes ---------------------------------------------------------------------------------


def with_text():
    return MemorySource(
        MemorySourceConfig(shuffle=True),
        {"x": np.arange(300.0), "text": ["some text"] * 300, "nested": {"t": ["more"] * 300}},
    )


@jax.jit
def traced(source, start):
    return source.get_batch_at(start, 4, jax.random.key(0))


def train(source):
    class Scale(nnx.Module):
        def __init__(self):
            self.by = nnx.Param(jnp.ones(()))

    def loss(model, batch):
        return (model.by * batch["x"]) ** 2

    Trainer(Scale(), source, loss=loss, steps=3, batch_size=4).fit()


USES = {
    "get_batch": lambda source: source.get_batch(4),
    "get_batch_at": lambda source: source.get_batch_at(0, 4, jax.random.key(0)),
    "for": lambda source: next(iter(source)),
    "traced": lambda source: traced(source, 0),
    "pipeline": lambda source: next(iter(Pipeline(source=source, stages=[], batch_size=4))),
    "scan": lambda source: Pipeline(source=source, stages=[], batch_size=4).scan(
        lambda batch: batch["x"].sum(), length=2
    ),
    "clone": lambda source: nnx.clone(source).get_batch(4),
    "split": lambda source: nnx.split(source),
    "prefetch": lambda source: list(prefetch_to_device(source, batch_size=16)),
    "placed": lambda source: source.collect_to_array(
        jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    "train": train,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_host_columns_are_freed_with_their_source(use):
    source = with_text()
    kept = use(source)
    column = weakref.ref(source.columns["text"])
    del source
    gc.collect()
    assert column() is None
    del kept


def test_a_data_set_with_the_same_columns_compiles_nothing_again():
    traces = []

    def stage(batch):
        traces.append(1)
        return batch

    pipelines = [Pipeline(source=with_text(), stages=[stage], batch_size=4) for _ in range(3)]
    for pipeline in pipelines:
        assert list(pipeline.step()["text"]) == ["some text"] * 4
    assert len(traces) == 1


def test_a_structure_that_outlives_its_column_says_so():
    source = with_text()
    leaves, structure = jax.tree.flatten(source.columns)
    del source
    gc.collect()
    with pytest.raises(ReferenceError, match="keep the source"):
        jax.tree.unflatten(structure, leaves)
