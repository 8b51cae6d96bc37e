"""The private names of `datasets`' iterable datasets: still there, and still what they mean."""

import logging

import datasets
import pytest
from datasets import iterable_dataset
from datasets.distributed import split_dataset_by_node

from datarax import HFStreamingSource
from datarax.stream import copies, steps
from datarax.stream.iterable import IterableShards


def stream(shards: int = 4) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"x": range(100)}).to_iterable_dataset(shards)


ACROSS = {
    "shuffle": lambda data: data.shuffle(seed=0, buffer_size=10),
    "interleave_datasets": lambda data: datasets.interleave_datasets([data, data]),
    "concatenate_datasets": lambda data: datasets.concatenate_datasets([data, data]),
    "repeat": lambda data: data.repeat(2),
    "skip": lambda data: data.skip(3),
    "take": lambda data: data.take(3),
    "split_dataset_by_node": lambda data: data._step(2, 0),
    "batched map": lambda data: data.map(lambda rows: rows, batched=True),
}
BY_FILE = {
    "map": lambda data: data.map(lambda row: row),
    "filter": lambda data: data.filter(lambda row: True),
    "select_columns": lambda data: data.select_columns(["x"]),
    "rename_column": lambda data: data.rename_column("x", "y"),
    "cast": lambda data: data.cast(datasets.Features({"x": datasets.Value("int32")})),
    "with_format": lambda data: data.with_format("numpy").map(lambda row: row),
    "node": lambda data: split_dataset_by_node(data, rank=0, world_size=2),
}


@pytest.mark.parametrize("name", ACROSS)
def test_a_step_across_files_leaves_one_shard_and_says_so(name, caplog):
    with caplog.at_level(logging.INFO, "datarax.stream.iterable"):
        shards = IterableShards(ACROSS[name](stream()))
    assert shards.num_shards == 1
    assert f"`{name}`" in shards.hint
    assert "files are one shard" in caplog.text


@pytest.mark.parametrize("name", BY_FILE)
def test_a_step_by_file_keeps_the_shards(name):
    data = BY_FILE[name](stream())
    shards = IterableShards(data)
    assert (shards.num_shards, shards.hint) == (data.num_shards, "")
    opened = [shards.open(number, None) for number in range(shards.num_shards)]
    assert sum(len(table) for tables in opened for table, _ in tables) == sum(1 for _ in data)


def test_a_step_that_is_not_known_is_said_aloud(caplog):
    class Twice(iterable_dataset.SelectColumnsIterable):
        """A step of a later version."""

    data = stream()
    data._ex_iterable = Twice(data._ex_iterable, ["x"])
    shards = IterableShards(data)
    assert shards.num_shards == 1
    assert "Twice" in shards.hint
    assert caplog.records[-1].levelno == logging.WARNING


def test_too_few_shards_say_what_to_write_instead():
    with pytest.raises(ValueError, match=r"4 streams, but .* 1 shards: .*shuffle=True"):
        HFStreamingSource.from_dataset(stream().shuffle(seed=1)).split(4)


def test_every_step_that_datasets_has_is_known():
    there = {
        name
        for name, kind in vars(iterable_dataset).items()
        if isinstance(kind, type) and issubclass(kind, iterable_dataset._BaseExamplesIterable)
    }
    known = {kind.__name__ for kind in steps._BY_FILE} | steps._ACROSS.keys()
    assert there - known == {"_BaseExamplesIterable"}


def test_rows_and_states_of_python_rows():
    data = stream(1).map(lambda row: {"y": 2 * row["x"]})
    copied = copies.copied(data, 0, as_tables=False, features=None)
    examples = copies.Examples(copied, None)
    assert [next(examples)["y"] for _ in range(3)] == [0, 2, 4]
    again = copies.Examples(
        copies.copied(data, 0, as_tables=False, features=None), examples.state()
    )
    assert [row["y"] for row in again] == [2 * x for x in range(3, 100)]
    assert [row["y"] for row in data] == [2 * x for x in range(100)]  # it has moved nowhere
    filtered = stream().filter(lambda row: row["x"] > 90)
    list(IterableShards(filtered).open(0, None))
    assert filtered.features == stream().features
    assert filtered.epoch == 0


def test_a_shuffled_dataset_has_an_order_for_each_epoch():
    def epoch(of):
        return [x for batch in of.epoch_batches(7) for x in batch["x"].tolist()]

    data = stream().shuffle(seed=1, buffer_size=20)
    reader = HFStreamingSource.from_dataset(data)
    first, second = epoch(reader), epoch(reader)
    assert first == [row["x"] for row in data]
    data.set_epoch(1)
    assert second == [row["x"] for row in data]
    assert first != second
    data.set_epoch(0)
    reader.get_batch(7)
    state = reader.get_state()
    expected = reader.get_batch(50)["x"].tolist()
    again = HFStreamingSource.from_dataset(data)
    again.set_state(state)
    assert again.get_batch(50)["x"].tolist() == expected


def test_threads_that_decode_are_known_in_each_shard():
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": [None]}, features=features)
    decoded = data.to_iterable_dataset().decode(num_threads=2)
    assert copies._is_decode(decoded._ex_iterable)
    assert copies._is_decode(decoded.shard(1, 0)._ex_iterable)
    assert not copies._is_decode(stream().map(lambda row: row)._ex_iterable)


def test_names_of_columns():
    assert copies.column_names(stream()) == ["x"]
    assert copies.column_names(stream().map(lambda row: {"y": row["x"]})) == ["x", "y"]
    assert steps.known_features(steps.chain(stream().map(lambda row: row))) == stream().features


def test_version_0_1_saved_states_of_rows_that_python_makes():
    data = stream(1).map(lambda row: {"y": row["x"]})
    arrow = data.with_format("arrow")
    tables = arrow.iter(64)
    next(tables)
    saved = arrow.state_dict()  # as version 0.1 took it after a table
    rest = [y for table, _ in IterableShards(data).open(0, saved) for y in table["y"].to_pylist()]
    assert rest == list(range(64, 100))
