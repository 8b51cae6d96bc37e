"""Copies of any source, or of a Pipeline over one: at the same position, and on their own."""

import copy
import pickle

import datasets
import jax
import numpy as np
import pytest
from flax import nnx

from datarax import (
    HFEagerSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    Pipeline,
    prefetch_to_device,
)

N = 100


def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"x": range(N), "text": [f"row {i}" for i in range(N)]})


def memory() -> MemorySource:
    data = {"x": np.arange(N), "text": [f"row {i}" for i in range(N)]}
    return MemorySource(MemorySourceConfig(shuffle=True), data)


def files(tmp_path) -> HFStreamingSource:
    for number in range(4):
        table().shard(4, number).to_parquet(tmp_path / f"train-{number}.parquet")
    data = datasets.load_dataset(str(tmp_path), split="train", streaming=True)
    return HFStreamingSource.from_dataset(data, shuffle=True, shuffle_buffer_size=20)


MAKES = {
    "memory": lambda _: memory(),
    "eager": lambda _: HFEagerSource.from_dataset(table(), shuffle=True),
    "stream of a table": lambda _: HFStreamingSource.from_dataset(table(), shuffle=True),
    "stream of files": files,
    "split stream": lambda path: files(path).split(2),
    "mixture": lambda path: MixedSource([memory(), files(path)], [2, 1]),
}
WAYS = {
    "clone": lambda source: source.clone(),
    "nnx.clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda source: pickle.loads(pickle.dumps(source)),
}


def read(source) -> tuple[list[int], list[str]]:
    batch = source.get_batch(6)
    return np.asarray(batch["x"]).tolist(), list(batch["text"])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_copy_of_a_source_goes_on_at_its_position(make, way, used, tmp_path):
    source = make(tmp_path)
    if used:
        source.get_batch(8)
    state = source.get_state()
    twin = way(source)
    assert twin.get_state() == state
    expected = [read(source) for _ in range(3)]
    assert [read(twin) for _ in range(3)] == expected
    state = source.get_state()
    read(twin), read(twin)
    assert source.get_state() == state
    assert twin.get_operation_stats() != source.get_operation_stats()


@pytest.mark.parametrize("way", [nnx.clone, copy.deepcopy])
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_copy_of_a_pipeline_moves_on_its_own(make, way, tmp_path):
    pipeline = Pipeline(source=make(tmp_path), stages=[], batch_size=4)
    pipeline.step()
    twin = way(pipeline)
    expected = [pipeline.step()["x"].tolist() for _ in range(3)]
    assert [twin.step()["x"].tolist() for _ in range(3)] == expected


def test_a_copy_after_set_state_goes_on_there_with_a_for():
    for make in (memory, lambda: HFStreamingSource.from_dataset(table())):
        source = make()
        source.get_batch(7)
        other = make()
        other.set_state(source.get_state())
        assert int(next(iter(nnx.clone(other)))["x"]) == int(next(iter(other))["x"])


def test_a_source_as_an_argument_of_jit_is_traced_once_for_all_its_copies():
    traces = []

    @jax.jit
    def first(source, start):
        traces.append(1)
        return source.get_batch_at(start, 4, jax.random.key(0))["x"]

    source = MemorySource(MemorySourceConfig(shuffle=True), {"x": np.arange(N)})
    expected = first(source, 0).tolist()
    source.get_batch(5)
    twin = source.clone()
    twin.get_batch(3)
    assert first(source, 0).tolist() == first(twin, 0).tolist() == expected
    assert len(traces) == 1


def test_a_prefetched_iterator_is_read_ahead_again():
    source, plain = memory(), memory()
    with prefetch_to_device(prefetch_to_device(source, batch_size=8), 3) as ahead:
        for _ in range(4):
            assert next(ahead)["x"].tolist() == plain.get_batch(8)["x"].tolist()
        assert ahead.get_state() == plain.get_state()
    assert source.get_state() == plain.get_state()
    assert sum(1 for _ in prefetch_to_device(prefetch_to_device([{"x": np.ones(2)}] * 3))) == 3
