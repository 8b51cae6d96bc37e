"""Pipelines: chains and graphs, epochs, keys of records, fused runs, state."""

import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import (
    HFEagerSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    Pipeline,
    index_shuffle,
)

N = 10


def source(shuffle=False, n=N):
    data = {"id": np.arange(n), "x": np.arange(n, dtype=np.float32)}
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=3), data)


def double(batch):
    return {**batch, "x": 2 * batch["x"]}


def noise(batch, key):
    return {**batch, "noise": jax.vmap(jax.random.normal)(key)}


def pipeline(stages=(), batch_size=4, shuffle=False, **options):
    return Pipeline(source=source(shuffle), stages=list(stages), batch_size=batch_size, **options)


def epoch_order(epoch):
    return np.asarray(index_shuffle(np.arange(N), num_records=N, seed=3 + epoch)).tolist()


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


def test_a_for_is_one_epoch_and_its_last_batch_may_be_short():
    batches = pipeline([double])
    assert ids(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3
    assert [b["x"].tolist() for b in batches][2] == [16, 18]


def test_each_for_is_the_next_epoch_and_sees_every_record_once():
    batches = pipeline(shuffle=True)
    for epoch in range(3):
        assert sum(ids(batches), []) == epoch_order(epoch)


def test_the_remainder_can_be_left_out():
    batches = pipeline(shuffle=True, drop_remainder=True)
    assert len(batches) == 2
    assert sum(ids(batches), []) == epoch_order(0)[:8]
    assert sum(ids(batches), []) == epoch_order(1)[:8]


def test_steps_are_always_full_and_run_on():
    batches = pipeline(shuffle=True)
    got = sum((batches.step()["id"].tolist() for _ in range(5)), [])
    assert got == epoch_order(0) + epoch_order(1)


def test_a_step_is_traceable():
    batches = pipeline([double], shuffle=True)

    @nnx.jit
    def two(batches):
        return batches.step()["id"], batches.step()["id"]

    assert [x.tolist() for x in two(batches)] == [epoch_order(0)[:4], epoch_order(0)[4:8]]
    assert batches.step()["id"].tolist() == epoch_order(0)[8:] + epoch_order(1)[:2]


def test_text_rides_along():
    dataset = datasets.Dataset.from_dict({"id": range(N), "text": [f"row {i}" for i in range(N)]})
    texts = HFEagerSource.from_dataset(dataset, shuffle=True, seed=3)
    batches = Pipeline(source=texts, stages=[lambda b: {"id": b["id"]}], batch_size=4)
    for batch in batches:
        assert batch["text"].tolist() == [f"row {i}" for i in batch["id"]]
    step = batches.step()
    assert step["text"].tolist() == [f"row {i}" for i in step["id"]]


# --- stages ----------------------------------------------------------------------------------


class Offset(nnx.Module):
    def __init__(self):
        self.by = nnx.Param(jnp.float32(1))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, batch):
        self.calls[...] += 1
        return {**batch, "x": batch["x"] + self.by[...]}


def test_modules_are_stages_and_keep_their_state():
    stage = Offset()
    batches = pipeline([stage, double])
    assert next(iter(batches))["x"].tolist() == [2, 4, 6, 8]
    batches.step()
    assert int(stage.calls[...]) == 2


def test_a_records_draw_depends_on_nothing_but_its_place():
    def draws(batch_size, skip=0):
        batches = pipeline([noise], batch_size, shuffle=True, rngs=nnx.Rngs(7))
        if skip:
            batches.source.get_batch(skip)
            batches.set_state(json.loads(json.dumps(batches.get_state())))
        return {
            (epoch, int(i)): float(x)
            for epoch in range(2)
            for batch in batches
            for i, x in zip(batch["id"], batch["noise"], strict=True)
        }

    whole = draws(4)
    assert len(set(whole.values())) == 2 * N  # the next epoch draws anew
    assert draws(3) == whole
    assert draws(10) == whole
    resumed = draws(4, skip=4)
    assert {k: whole[k] for k in resumed if k[0] == 0} == {
        k: v for k, v in resumed.items() if k[0] == 0
    }
    other = pipeline([noise], 4, rngs=nnx.Rngs(8)).step()
    assert not np.isin(np.asarray(other["noise"]), list(whole.values())).any()


def test_two_stochastic_stages_draw_independently():
    batches = pipeline([noise, lambda b: {**b, "first": b["noise"]}, noise])
    batch = batches.step()
    assert not np.allclose(batch["first"], batch["noise"])


def test_a_graph_feeds_nodes_in_the_order_of_its_edges():
    batches = Pipeline.from_dag(
        source=source(),
        nodes={
            "difference": lambda a, b: {"d": a["x"] - b["x"]},
            "double": double,
            "triple": lambda b: {**b, "x": 3 * b["x"]},
        },
        edges=[
            ("source", "double"),
            ("source", "triple"),
            ("triple", "difference"),
            ("double", "difference"),
        ],
        sink="difference",
        batch_size=4,
    )
    assert batches.step()["d"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("edges", "sink", "words"),
    [
        ([("source", "doubel")], "double", "Did you mean 'double'"),
        ([("source", "double")], "end", "'end' is no node"),
        ([("double", "again"), ("again", "double")], "again", "circle"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(edges, sink, words):
    nodes = {"double": double, "again": double}
    with pytest.raises(ValueError, match=words):
        Pipeline.from_dag(source=source(), nodes=nodes, edges=edges, sink=sink, batch_size=2)


def test_other_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="stage '0'"):
        pipeline([3])
    with pytest.raises(ValueError, match="batch_size=0"):
        pipeline(batch_size=0)
    with pytest.raises(TypeError, match="expected a source"):
        Pipeline(source=[1, 2], stages=[], batch_size=2)
    for stages in (None, dict):
        with pytest.raises(TypeError, match=r"stages=\[...\]"):
            Pipeline(source=source(), stages=stages, batch_size=2)
    with pytest.raises(TypeError, match=r"rngs=nnx.Rngs\(0\)"):
        Pipeline(source=source(), stages=[], batch_size=2, rngs=0)
    with pytest.raises(ValueError, match="'augment', and stages draw from 'default'"):
        Pipeline(source=source(), stages=[], batch_size=2, rngs=nnx.Rngs(augment=0))
    with pytest.raises(TypeError, match=r"stage '0'.*returned None"):
        pipeline([lambda batch: None]).step()
    with pytest.raises(TypeError, match="return carry, out"):
        pipeline().scan(lambda carry, batch: carry, length=2, init_carry=0)


def test_a_batch_without_names_leaves_the_text_behind():
    dataset = datasets.Dataset.from_dict({"id": range(4), "text": list("abcd")})
    texts = HFEagerSource.from_dataset(dataset)
    pairs = Pipeline(source=texts, stages=[lambda b: (b["id"], -b["id"])], batch_size=4)
    assert [array.tolist() for array in pairs.step()] == [[0, 1, 2, 3], [0, -1, -2, -3]]


def test_iterating_stepping_and_scanning_give_the_same_numbers():
    def shifted(batch, key):
        return batch["id"] + jax.vmap(jax.random.uniform)(key)

    runs = [
        Pipeline(source=source(shuffle=True), stages=[shifted], batch_size=5, rngs=nnx.Rngs(1))
        for _ in range(3)
    ]
    iterated = [batch for _ in range(2) for batch in runs[0]]
    stepped = [runs[1].step() for _ in range(4)]
    scanned = runs[2].scan(lambda batch: batch, length=4)
    np.testing.assert_array_equal(np.stack(iterated), np.stack(stepped))
    np.testing.assert_array_equal(np.stack(iterated), scanned)
    assert runs[0].get_state() == runs[1].get_state() == runs[2].get_state()


# --- scan --------------------------------------------------------------------------------------


def test_scan_gives_the_batches_that_steps_give():
    want = [pipeline(shuffle=True).step()["id"].tolist()]
    batches = pipeline(shuffle=True)
    got = batches.scan(lambda batch: batch["id"], length=5)
    assert got.shape == (5, 4)
    assert got[0].tolist() == want[0]
    assert got.reshape(-1).tolist() == epoch_order(0) + epoch_order(1)
    assert batches.step()["id"].tolist() == epoch_order(2)[:4]


def test_scan_trains_modules_and_carries():
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-2), wrt=nnx.Param)
    batches = pipeline(shuffle=True)

    def train(carry, model, optimizer, batch):
        def loss(model):
            return jnp.mean((model(batch["x"][:, None])[:, 0] - 2 * batch["x"]) ** 2)

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return carry + 1, value

    steps, losses = batches.scan(
        train, length=60, modules=(model, optimizer), init_carry=jnp.int32(0)
    )
    assert int(steps) == 60
    assert losses[-1] < losses[0] / 100


def test_scan_traces_its_function_once():
    traces = []

    def step(batch):
        traces.append(1)
        return batch["x"].sum()

    batches = pipeline()
    for _ in range(3):
        batches.scan(step, length=7)
    assert len(traces) == 1


# --- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(4))
def test_a_for_goes_on_where_the_state_says(cut):
    whole = ids(pipeline(shuffle=True))
    batches = pipeline(shuffle=True)
    for _, _ in zip(range(cut), batches, strict=False):
        pass
    state = json.loads(json.dumps(batches.get_state()))
    other = pipeline(shuffle=True)
    other.set_state(state)
    got = ids(other)
    assert got == (whole[cut:] if cut < 3 else ids(other)) or cut == 3
    assert state == batches.source.get_state()


# --- streams -----------------------------------------------------------------------------------


def stream(shuffle=False, n=N):
    dataset = datasets.Dataset.from_dict({"id": range(n), "text": [f"row {i}" for i in range(n)]})
    rows = dataset.to_iterable_dataset(num_shards=3)
    return HFStreamingSource.from_dataset(rows, shuffle=shuffle, seed=3)


def test_a_stream_goes_through_the_stages_and_text_rides_along():
    batches = Pipeline(source=stream(), stages=[lambda b: {"id": 2 * b["id"]}], batch_size=4)
    got = list(batches)
    assert ids(got) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    assert got[2]["text"].tolist() == ["row 8", "row 9"]
    assert len(ids(batches)) == 3  # and the next epoch follows
    assert batches.step()["id"].tolist() == [0, 2, 4, 6]


def test_a_streams_stage_that_asks_for_text_says_what_to_do():
    batches = Pipeline(source=stream(), stages=[lambda b: {"id": b["text"]}], batch_size=4)
    with pytest.raises(TypeError, match="'text'"):
        batches.step()


def test_a_streams_draws_depend_on_nothing_but_the_place():
    def draws(batch_size, cut=0):
        batches = Pipeline(
            source=stream(shuffle=True), stages=[noise], batch_size=batch_size, rngs=nnx.Rngs(7)
        )
        for _ in range(cut):
            batches.step()
        state = json.loads(json.dumps(batches.get_state()))
        resumed = Pipeline(
            source=stream(shuffle=True), stages=[noise], batch_size=batch_size, rngs=nnx.Rngs(7)
        )
        resumed.set_state(state)
        return {
            int(i): float(x)
            for batch in resumed
            for i, x in zip(batch["id"], batch["noise"], strict=True)
        }

    whole = draws(4)
    assert len(set(whole.values())) == N
    assert draws(3) == whole
    tail = draws(4, cut=1)
    assert len(tail) == 6
    assert tail == {i: whole[i] for i in tail}


def test_a_stream_cannot_be_scanned():
    with pytest.raises(NotImplementedError, match=r"step\(\)"):
        Pipeline(source=stream(), stages=[], batch_size=2).scan(lambda b: b["id"], length=2)


# --- a batch of one's own ----------------------------------------------------------------------


def test_a_pipeline_puts_a_batch_through_its_stages():
    batches = pipeline([double, noise], rngs=nnx.Rngs(1))
    given = {"x": np.arange(3.0), "id": [1, 2, 3], "text": ["a", "b", "c"]}
    found = batches(given)
    assert found["x"].tolist() == [0, 2, 4]
    assert found["id"].tolist() == [1, 2, 3]
    assert found["text"].tolist() == ["a", "b", "c"]
    assert found["noise"].tolist() == batches(given)["noise"].tolist()
    assert found["noise"].tolist() == batches.step()["noise"][:3].tolist()
    assert batches.get_state()["index"] == 4  # a batch of one's own moves nothing


def test_a_batch_of_ones_own_traces():
    batches = pipeline([double])
    assert jax.jit(lambda x: batches({"x": x})["x"].sum())(jnp.ones(4)) == 8


def test_a_pipeline_over_a_stream_takes_a_batch_too():
    rows = datasets.Dataset.from_dict({"x": [1.0, 2.0], "t": ["a", "b"]})
    batches = Pipeline(source=HFStreamingSource.from_dataset(rows), stages=[double], batch_size=2)
    assert batches({"x": np.ones(5, np.float32)})["x"].tolist() == [2] * 5
    with pytest.raises(TypeError, match="column 't' is no JAX array"):
        Pipeline(source=batches.source, stages=[lambda b: b["t"]], batch_size=2)(
            {"x": np.ones(2), "t": ["a", "b"]}
        )


@pytest.mark.parametrize(
    "edges",
    [
        [("source", "double"), ("source", "both"), ("double", "both")],
        {"source": ["double", "both"], "double": "both"},
        {"source": ("double", "both"), "double": ["both"]},
        [["source", "double"], ["source", "both"], ["double", "both"]],
    ],
)
def test_edges_are_pairs_or_a_mapping(edges):
    nodes = {"double": lambda b: {"y": 2 * b["x"]}, "both": lambda a, b: {**a, **b}}
    dag = Pipeline.from_dag(source=source(), nodes=nodes, edges=edges, sink="both", batch_size=2)
    batch = dag.step()
    assert (batch["x"].tolist(), batch["y"].tolist()) == ([0, 1], [0, 2])


@pytest.mark.parametrize("edges", [["source"], [("source", "double", "both")], {"source": [3]}])
def test_what_is_no_edge_is_refused(edges):
    nodes = {"double": double, "both": double}
    with pytest.raises(ValueError, match=r"is no pair|is no node"):
        Pipeline.from_dag(source=source(), nodes=nodes, edges=edges, sink="both", batch_size=2)
