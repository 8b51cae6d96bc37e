"""Reading ahead: the same batches, their states, errors in their place, and no thread left."""

import gc
import glob
import os
import threading
import time
import tracemalloc

import datasets
import jax
import numpy as np
import pyarrow as pa
import pytest

from datarax import HFEagerSource, HFStreamingSource, Pipeline, prefetch_to_device

N = 500


def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"x": list(range(N)), "text": [f"row {row}" for row in range(N)]}
    )


def stream() -> HFStreamingSource:
    data = dataset().to_iterable_dataset(num_shards=5)
    return HFStreamingSource.from_dataset(data, shuffle=True, shuffle_buffer_size=100)


def eager() -> HFEagerSource:
    return HFEagerSource.from_dataset(dataset())


def pipeline() -> Pipeline:
    return Pipeline(source=eager(), stages=[lambda b: {**b, "y": 2 * b["x"]}], batch_size=64)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("datarax")]


@pytest.mark.parametrize("make", [stream, eager])
def test_batches_are_those_of_one_epoch_and_the_source_stands_where_the_loop_does(make):
    source, plain = make(), make()
    with prefetch_to_device(source, batch_size=64) as batches:
        found = list(batches)
    assert [len(b["x"]) for b in found] == [64] * 7 + [52]
    for batch in found:
        expected = plain.get_batch(len(batch["x"]))
        assert isinstance(batch["x"], jax.Array)
        assert np.array_equal(batch["x"], expected["x"])
        assert list(batch["text"]) == list(expected["text"])
    with prefetch_to_device(source, 4, batch_size=64) as batches:
        for _ in range(3):
            next(batches)
        state = batches.get_state()
    assert state == source.get_state()
    other = make()
    other.set_state(state)
    assert np.array_equal(other.get_batch(64)["x"], source.get_batch(64)["x"])
    assert threads() == []


def test_a_pipeline_and_a_source_without_batch_size_yield_what_iterating_yields():
    batches = list(prefetch_to_device(pipeline()))
    for batch, expected in zip(batches, pipeline(), strict=True):
        assert np.array_equal(batch["y"], expected["y"])
        assert list(batch["text"]) == list(expected["text"])
    records = [int(record["x"]) for record in prefetch_to_device(eager())]
    assert sorted(records) == list(range(N))
    with prefetch_to_device(pipeline()) as ahead:
        next(ahead)
        assert ahead.get_state()["index"] == 64


@pytest.mark.parametrize("make", [lambda: pipeline(), lambda: eager()])
def test_a_for_after_one_that_was_closed_begins_the_next_epoch(make):
    def first(batch):
        return np.ravel(batch["y" if "y" in batch else "x"])[0]

    expected = make()
    next(iter(expected))
    with prefetch_to_device(source := make()) as ahead:
        next(ahead)
    assert first(next(iter(source))) == first(next(iter(expected)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_arrays_of_any_kind_are_placed(dtype):
    (batch,) = prefetch_to_device([{"x": np.ones(2, dtype), "text": np.array(["a"], object)}])
    assert isinstance(batch["x"], jax.Array)
    assert isinstance(batch["text"], np.ndarray)


def test_errors_come_in_their_place():
    def batches():
        for number in range(3):
            yield {"x": np.full(4, number)}
        raise KeyError("the fourth")

    ahead = prefetch_to_device(batches(), 8)
    assert [int(next(ahead)["x"][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="the fourth"):
        next(ahead)
    assert list(ahead) == []
    assert threads() == []
    with pytest.raises(TypeError, match="plain iterable"):
        prefetch_to_device(batches()).get_state()
    with pytest.raises(TypeError, match="leave batch_size out"):
        prefetch_to_device(batches(), batch_size=4)
    with pytest.raises(ValueError, match="size=0"):
        prefetch_to_device(batches(), 0)


def test_a_buffer_that_is_filled_again_does_not_change_batches_in_flight():
    def batches():
        buffer = np.zeros(1 << 16, np.float32)
        for number in range(8):
            buffer[:] = number
            yield {"x": buffer}

    found = list(prefetch_to_device(batches(), 8))
    assert [float(b["x"].min()) for b in found] == [float(b["x"].max()) for b in found]
    assert [float(b["x"][0]) for b in found] == list(range(8))


def test_reading_ahead_is_bounded():
    read = []

    def batches():
        for number in range(20):
            read.append(number)
            yield {"x": np.zeros(1)}

    with prefetch_to_device(batches(), 3) as ahead:
        next(ahead)
        time.sleep(0.3)
        assert len(read) <= 1 + 3 + 1  # taken, ready, and the one that waits for room


@pytest.fixture
def files(tmp_path) -> HFStreamingSource:
    """A shuffled stream that has several files open at once."""
    for number in range(5):
        rows = dataset().shard(5, number)
        rows.to_parquet(tmp_path / f"train-{number}.parquet", batch_size=10)
    data = datasets.load_dataset(str(tmp_path), split="train", streaming=True)
    return HFStreamingSource.from_dataset(data, shuffle=True, shuffle_buffer_size=20)


def opened() -> list[str]:
    """The Parquet files that this process has open."""
    links = glob.glob("/proc/self/fd/*")
    return [link for link in links if os.path.realpath(link).endswith(".parquet")]


@pytest.mark.parametrize("ways", ["prefetch", "batches", "records", "clone"])
def test_abandoned_iterators_leave_nothing_behind(files, ways):
    iterators = {
        "prefetch": lambda: prefetch_to_device(files, batch_size=8),
        "batches": lambda: files.epoch_batches(8),
        "records": lambda: iter(files),
        "clone": lambda: files.clone().epoch_batches(8),
    }
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        abandoned = iterators[ways]()
        next(abandoned)
        del abandoned
    gc.collect()
    assert threads() == []
    files.close()
    gc.collect()
    assert opened() == []
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_memory_does_not_grow_over_ten_epochs(files):
    def epoch():
        count = sum(len(batch["x"]) for batch in prefetch_to_device(files, batch_size=64))
        assert count == N

    def held():
        gc.collect()
        arrays = sum(array.nbytes for array in jax.live_arrays())
        return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() + arrays

    tracemalloc.start()
    try:
        for _ in range(3):
            epoch()
        before = held()
        for _ in range(10):
            epoch()
        assert held() - before < 100_000  # ten epochs' numbers and texts are some 400,000
    finally:
        tracemalloc.stop()


def test_sharding_places_global_arrays():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = next(prefetch_to_device(stream(), batch_size=8 * len(devices), sharding=sharding))
    assert batch["x"].sharding == sharding
    assert len(batch["text"]) == 8 * len(devices)


def test_reading_and_computing_overlap():
    def batches():
        for number in range(20):
            time.sleep(0.02)
            yield {"x": np.full(1, number)}

    start = time.perf_counter()
    for _ in prefetch_to_device(batches(), 2):
        time.sleep(0.02)
    assert time.perf_counter() - start < 1.6 * 20 * 0.02  # one after the other: 2.0


# --- a last batch that is short, and a loader that blocks ---------------------------------------


def spread(count: int = 1) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def batches_of_four():
    for first in (0, 4, 8):
        yield {"x": np.arange(first, min(first + 4, 10))}


@pytest.mark.parametrize("sharding", [None, spread()])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: eager(), {"batch_size": 64}),
        (lambda: stream(), {"batch_size": 64}),
        (lambda: pipeline(), {}),
    ],
)
def test_a_short_last_batch_is_padded_dropped_or_refused(make, options, sharding):
    options = options | {"sharding": sharding}
    padded = list(prefetch_to_device(make(), last="pad", **options))
    assert [len(b["x"]) for b in padded] == [64] * 8
    assert [int(b["valid"].sum()) for b in padded] == [64] * 7 + [52]
    assert padded[-1]["x"][52:].tolist() == padded[-1]["x"][:12].tolist()
    assert list(padded[-1]["text"][52:]) == list(padded[-1]["text"][:12])
    counted = [int(x) for b in padded for x in b["x"][b["valid"]]]
    assert sorted(counted) == list(range(N))
    dropped = list(prefetch_to_device(make(), last="drop", **options))
    assert [len(b["x"]) for b in dropped] == [64] * 7
    assert "valid" not in dropped[0]
    if make().length if hasattr(make(), "length") else make().source.length:
        with pytest.raises(ValueError, match="52 records, the others 64"):
            prefetch_to_device(make(), last="error", **options)
    else:
        with pytest.raises(ValueError, match="52 records, the others 64"):
            list(prefetch_to_device(make(), last="error", **options))
    assert threads() == []


def test_a_short_last_batch_of_any_iterable():
    padded = list(prefetch_to_device(batches_of_four(), last="pad"))
    assert padded[-1]["x"].tolist() == [8, 9, 8, 9]
    assert padded[-1]["valid"].tolist() == [True, True, False, False]
    assert sum(1 for _ in prefetch_to_device(batches_of_four(), last="drop")) == 2
    ahead = prefetch_to_device(batches_of_four(), last="error")
    assert [len(next(ahead)["x"]) for _ in range(2)] == [4, 4]
    with pytest.raises(ValueError, match="2 records, the others 4"):
        next(ahead)


def test_what_cannot_be_done_with_a_last_batch_is_refused():
    with pytest.raises(ValueError, match='expected "pad", "drop"'):
        prefetch_to_device(eager(), batch_size=64, last="fill")
    with pytest.raises(ValueError, match="give a batch_size"):
        prefetch_to_device(eager(), last="pad")
    with pytest.raises(ValueError, match="column 'valid'"):
        next(prefetch_to_device([{"valid": np.ones(2)}], last="pad"))


def test_a_state_is_that_of_the_last_batch_taken_whatever_is_padded():
    source, plain = eager(), eager()
    with prefetch_to_device(source, batch_size=64, last="pad") as ahead:
        next(ahead), next(ahead)
        plain.get_batch(128)
        assert ahead.get_state() == plain.get_state()


def test_closing_waits_only_briefly_for_a_loader_that_blocks(caplog):
    goes_on = threading.Event()

    def loader():
        yield {"x": np.zeros(1)}
        goes_on.wait(30)
        yield {"x": np.zeros(1)}

    ahead = prefetch_to_device(loader())
    next(ahead)
    begun = time.perf_counter()
    ahead.close()
    assert time.perf_counter() - begun < 5
    assert "is left to end by itself" in caplog.text
    goes_on.set()
    while threads():
        time.sleep(0.01)


def test_an_iterator_with_a_state_of_its_own_is_taken_back():
    class Counting:
        at = 0

        def __iter__(self):
            while self.at < 6:
                self.at += 1
                yield {"x": np.full(2, self.at)}

        def get_state(self):
            return {"at": self.at}

        def set_state(self, state):
            self.at = state["at"]

    loader = Counting()
    with prefetch_to_device(loader, 3) as ahead:
        next(ahead), next(ahead)
        assert ahead.get_state() == {"at": 2}
    assert loader.at == 2
