"""Streams: every record once, in an order of arithmetic, resumed exactly from any batch."""

import json
import random

import datasets
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFStreamingSource, Pipeline, StreamingSourceBase, prefetch_to_device
from datarax.sources.module import DataraxModuleConfig
from datarax.stream.shards import TableShards
from datarax.stream.state import merge_states

N = 1003


def dataset(rows: int = N) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"x": list(range(rows)), "text": [f"row {row}" for row in range(rows)]}
    )


def stream(num_shards: int = 7, rows: int = N) -> datasets.IterableDataset:
    return dataset(rows).to_iterable_dataset(num_shards=num_shards)


def source(data=None, **fields) -> HFStreamingSource:
    return HFStreamingSource.from_dataset(stream() if data is None else data, **fields)


def epoch(of, batch_size: int) -> list[np.ndarray]:
    """The column `x` of the batches of one epoch, whose texts are checked."""
    found = []
    for batch in of.epoch_batches(batch_size):
        assert list(batch["text"]) == [f"row {x}" for x in batch["x"]]
        found.append(np.asarray(batch["x"]))
    return found


def through_json(state):
    text = json.dumps(state)
    assert len(text) < 16384
    assert "row " not in text
    return json.loads(text)


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("data", [dataset, stream])
def test_an_epoch_has_every_record_once(data, shuffle):
    reader = source(data(), shuffle=shuffle, shuffle_buffer_size=100)
    orders = [np.concatenate(epoch(reader, 32)) for _ in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(N))
    assert np.array_equal(*orders) != shuffle
    assert np.array_equal(orders[0], np.arange(N)) != shuffle
    reader.reset()
    assert np.array_equal(np.concatenate(epoch(reader, 77)), orders[0])
    seeded = source(data(), shuffle=shuffle, shuffle_buffer_size=100, seed=43)
    assert np.array_equal(np.concatenate(epoch(seeded, 32)), orders[1])


def check_exact(rng: random.Random) -> None:
    """One random case: stop, resume, stop, resume, with batches in flight."""
    rows = rng.randint(1, 900)
    shards = rng.randint(1, min(rows, 20))
    batch = rng.randint(10, 200)
    data = dataset(rows) if rng.random() < 0.3 else stream(shards, rows)
    if rng.random() < 0.2 and isinstance(data, datasets.IterableDataset):
        data = data.filter(lambda row: row["x"] % 3 != 1)
    fields = {
        "shuffle": rng.random() < 0.8,
        "shuffle_buffer_size": rng.choice([1, 10, 100, 1000]),
        "seed": rng.randint(0, 2**32 - 1),
    }
    whole = source(data, **fields)
    full = epoch(whole, batch) + epoch(whole, batch)
    cut = rng.randint(0, len(full))
    first = source(data, **fields)
    states, again = [], first
    for stop in sorted({cut, rng.randint(cut, len(full))}):
        read, left = sum(states and [states[-1][0]]), stop - sum(states and [states[-1][0]])
        while left:
            with prefetch_to_device(again, rng.randint(1, 4), batch_size=batch) as batches:
                for found in batches:
                    assert np.array_equal(found["x"], full[read])
                    read, left = read + 1, left - 1
                    if not left:
                        break
                state = through_json(batches.get_state())
        states.append((stop, state if stop else through_json(again.get_state())))
        again = source(data, **fields)
        again.set_state(states[-1][1])
    tail = []
    while len(tail) < len(full) - states[-1][0]:
        tail += epoch(again, batch)
    assert same(tail, full[states[-1][0] :])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_resumed_stream_goes_on_exactly(seed):
    check_exact(random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_many_resumed_streams_go_on_exactly(seed):
    check_exact(random.Random(seed))


def deal(processes: int, streams: int = 4, **fields) -> list[HFStreamingSource]:
    fields = {"shuffle": True, "shuffle_buffer_size": 50} | fields
    return [source(**fields).split(streams, index, processes) for index in range(processes)]


def global_batches(group, batch_size: int, blocks: int | None = None) -> list[np.ndarray]:
    """What a data-parallel run sees: the processes' batches joined, masked records left out."""
    found = []
    while blocks is None or blocks:
        read = [part.read_batches(3, batch_size // len(group)) for part in group]
        filled = max(block.filled for block in read)  # what the processes agree on
        for batch in range(filled):
            valid = np.concatenate([block.valid[batch] for block in read])
            x = np.concatenate([block.columns["x"][batch] for block in read])
            found.append(np.where(valid, x, -1))
        if filled < 3:
            for part, block in zip(group, read, strict=True):
                part.go_to(block.positions[filled])
            break
        blocks = blocks and blocks - 1
    return found


def test_any_number_of_processes_reads_the_same_global_batches():
    alone = global_batches(deal(1), 16)
    records = np.concatenate(alone)
    assert sorted(records[records >= 0].tolist()) == list(range(N))
    for processes in (2, 4):
        assert same(global_batches(deal(processes), 16), alone)


def test_a_state_of_four_processes_resumes_on_two_and_again_on_four():
    alone = global_batches(deal(1), 16)
    found, state = [], None
    for processes, blocks in ((4, 5), (2, 4), (4, None)):
        group = deal(processes)
        for part in group:
            if state is not None:
                part.set_state(state)
        found += global_batches(group, 16, blocks)
        state = through_json(merge_states([part.get_state() for part in group]))
    assert same(found, alone)


def test_streams_that_end_unevenly_repeat_real_records_that_do_not_count():
    group = deal(1, streams=3, data=stream(4, 40), shuffle=False)
    block = group[0].read_batches(8, 12)
    assert sorted(block.columns["x"][block.valid].tolist()) == list(range(40))
    assert block.filled == 5  # a stream of two shards holds 20 records, 4 a batch
    assert set(block.columns["x"][:5].ravel().tolist()) == set(range(40))
    states = [group[0].state_at(position) for position in block.positions]
    group[0].set_state(through_json(states[2]))
    again = group[0].read_batches(3, 12)
    assert np.array_equal(again.columns["x"], block.columns["x"][2:5])


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_pipeline_over_streams_that_end_unevenly_gives_each_record_once(shuffle):
    def pipeline(**options):
        data = source(stream(7, 95), shuffle=shuffle)
        return Pipeline(source=data, stages=[], batch_size=8, shards=4, **options)

    batches = list(pipeline())
    assert any(len(batch["x"]) < 8 for batch in batches[:-1])
    assert sorted(np.concatenate([batch["x"] for batch in batches]).tolist()) == list(range(95))
    assert all(
        text == f"row {x}" for b in batches for x, text in zip(b["x"], b["text"], strict=True)
    )
    steps = pipeline()
    for batch in batches:
        assert same([steps.step()["x"]], [batch["x"]])
    with prefetch_to_device(pipeline(), 2) as ahead:
        for batch, other in zip(batches, ahead, strict=True):
            assert same([batch["x"]], [other["x"]])
    full = list(pipeline(drop_remainder=True))
    assert [len(batch["x"]) for batch in full] == [8] * len(full)
    assert len(full) == sum(len(batch["x"]) == 8 for batch in batches)


def test_stacked_batches_are_those_that_get_batch_gives():
    fields = {"shuffle": True, "shuffle_buffer_size": 100}
    block = source(**fields).read_batches(5, 32)
    one = source(**fields)
    for batch in range(5):
        expected = one.get_batch(32)
        assert np.array_equal(block.columns["x"][batch], expected["x"])
        assert list(block.columns["text"][batch]) == list(expected["text"])
    assert block.valid.all()


def test_a_for_goes_on_as_over_an_eager_source():
    reader = source(stream(2, 5))

    def loop(stop=None):
        found = []
        for record in reader:
            found.append(int(record["x"]))
            if len(found) == stop:
                break
        return found, int(reader.epoch.get_value())

    assert loop() == ([0, 1, 2, 3, 4], 1)
    assert loop(2) == ([0, 1], 1)
    state = through_json(reader.get_state())
    assert loop() == ([0, 1, 2, 3, 4], 3)
    reader.set_state(state)
    assert loop() == ([2, 3, 4], 2)
    reader.set_state(state)
    assert loop(3) == ([2, 3, 4], 1)
    reader.set_state(through_json(reader.get_state()))  # of the very end of the epoch
    assert loop() == ([0, 1, 2, 3, 4], 3)


def test_get_batch_is_short_at_the_end_and_never_empty():
    reader = source(stream(2, 5))
    sizes = [len(reader.get_batch(2)["x"]) for _ in range(6)]
    assert sizes == [2, 2, 1, 2, 2, 1]
    assert int(reader.epoch.get_value()) == 1
    assert isinstance(reader.get_batch(2)["x"], jax.Array)
    assert reader.get_operation_stats()["applied_count"] == 12


def test_records_resume_within_an_epoch_of_several_streams():
    reader = source(shuffle=True, shuffle_buffer_size=20).split(3)
    records = [int(record["x"]) for record in reader]
    assert sorted(records) == list(range(N))
    reader.reset()
    before = [int(record["x"]) for record, _ in zip(reader, range(100), strict=False)]
    state = through_json(reader.get_state())
    again = source(shuffle=True, shuffle_buffer_size=20).split(3)
    again.set_state(state)
    assert before + [int(record["x"]) for record in again] == records[:100] + records[101:]


def test_a_clone_moves_on_its_own():
    reader = source(shuffle=True)
    reader.get_batch(10)
    clone = reader.clone()
    assert np.array_equal(clone.get_batch(50)["x"], reader.get_batch(50)["x"])
    clone.get_batch(50)
    assert clone.get_state() != reader.get_state()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.map(lambda row: {"y": row["x"] + 1}),
        lambda data: data.filter(lambda row: row["x"] % 2 == 0),
        lambda data: data.take(500),
        lambda data: data.skip(500),
        lambda data: data.shuffle(seed=1, buffer_size=64),
        lambda data: data.with_format("arrow").map(lambda table: table, batched=True),
        lambda data: datasets.interleave_datasets([data, data.take(100)]),
        lambda data: datasets.concatenate_datasets([data, data.skip(900)]),
        lambda data: data.select_columns(["x", "text"]).batch(3).map(
            lambda rows: {"x": rows["x"][0], "text": rows["text"][0]}, batched=False
        ),
    ],
)  # fmt: skip
def test_whatever_datasets_makes_of_a_stream_resumes_exactly(change):
    data = change(stream())
    expected = [row["x"] for row in data.with_format(None)]
    full = np.concatenate([b["x"] for b in source(data).epoch_batches(64)])
    assert full.tolist() == expected
    for shuffle in (False, True):
        fields = {"shuffle": shuffle, "shuffle_buffer_size": 100}
        full = [np.asarray(b["x"]) for b in source(data, **fields).epoch_batches(32)]
        for cut in (1, 2, len(full) // 2, len(full) - 1):
            first = source(data, **fields)
            for _ in range(cut):
                first.get_batch(32)
            again = source(data, **fields)
            again.set_state(through_json(first.get_state()))
            tail = [np.asarray(b["x"]) for b in again.epoch_batches(32)]
            assert same(tail, full[cut:]), (shuffle, cut)


def test_a_generator_streams_and_one_that_draws_at_random_says_so():
    def squares(shards):
        for shard in shards:
            for x in range(shard, shard + 100):
                yield {"x": x * x}

    data = datasets.IterableDataset.from_generator(squares, gen_kwargs={"shards": [0, 100, 200]})
    reader = source(data, shuffle=True)
    assert sorted(np.asarray(reader.get_batch(300)["x"])) == [x * x for x in range(300)]

    def drawn():
        for _ in range(100):
            yield {"x": random.random()}

    reader = source(datasets.IterableDataset.from_generator(drawn))
    reader.get_batch(10)
    state = reader.get_state()
    with pytest.raises(ValueError, match="does not give the rows again"):
        reader.set_state(state) or reader.get_batch(10)


def test_a_generator_that_gives_each_row_once_loses_none():
    rows = iter(range(200))

    def once():
        for x in rows:
            yield {"x": x}

    reader = source(datasets.IterableDataset.from_generator(once))
    assert np.asarray(reader.get_batch(500)["x"]).tolist() == list(range(200))


def test_states_that_do_not_fit_are_refused():
    reader = source(shuffle=True)
    state = through_json(reader.get_state())
    refused = {
        "other data": source(stream(6), shuffle=True),
        "'streams': 1": source(shuffle=True).split(2),
    }
    for message, other in refused.items():
        with pytest.raises(ValueError, match=message):
            other.set_state(state)
        assert len(other.get_batch(4)["x"]) == 4
    with pytest.raises(TypeError, match="expected the dict"):
        reader.set_state("state")
    with pytest.raises(ValueError, match="reads"):
        reader.set_state({"epoch": 1})
    parts = deal(2)
    with pytest.raises(ValueError, match="merge_states"):
        parts[1].set_state(parts[0].get_state())
    with pytest.raises(ValueError, match="differ in 'epoch'"):
        merge_states([parts[0].get_state(), {**parts[1].get_state(), "epoch": 3}])
    with pytest.raises(ValueError, match="4 streams cannot be dealt to 3 processes"):
        source().split(4, 0, 3)
    with pytest.raises(ValueError, match="at most as many streams"):
        source().split(8)
    with pytest.raises(ValueError, match="expected a multiple of 2"):
        source().split(2).get_batch(5)


def test_a_source_of_one_s_own_shards():
    class Halves(StreamingSourceBase):
        def __init__(self):
            super().__init__(DataraxModuleConfig(), TableShards(dataset()), shuffle=True, seed=1)

    assert len(Halves()) == N
    assert sorted(np.concatenate(epoch(Halves(), 64)).tolist()) == list(range(N))
    with pytest.raises(NotImplementedError, match="cannot be indexed"):
        Halves().get_batch_at(0, 4)


def test_collecting_takes_what_is_asked_for():
    reader = source(stream(2, 10))
    assert reader.collect_to_array(num_records=4)["x"].tolist() == [0, 1, 2, 3]
    assert reader.collect_to_array(num_records=100)["x"].tolist() == [4, 5, 6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"num_records=\.\.\."):
        reader.collect_to_array()
    assert sorted(source(dataset(10)).collect_to_array()) == ["x"]
    with pytest.raises(TypeError, match="unknown length"):
        len(reader)
