"""Records by number: `source[i]`, so that a source is one of Grain's and torch's as it stands."""

import datasets
import grain
import jax
import numpy as np
import pytest

from datarax import (
    GrainSource,
    HFEagerSource,
    HFIndexedSource,
    MemorySource,
    MemorySourceConfig,
)

N = 10


def memory(shuffle: bool = True) -> MemorySource:
    data = {
        "x": np.arange(N),
        "image": np.arange(4 * N, dtype=np.uint8).reshape(N, 2, 2),
        "t": [f"row {i}" for i in range(N)],
        "nested": {"y": np.arange(N) / 2, "u": [str(i) for i in range(N)]},
    }
    return MemorySource(MemorySourceConfig(shuffle=shuffle), data)


def eager() -> HFEagerSource:
    rows = {"x": range(N), "t": [f"row {i}" for i in range(N)]}
    return HFEagerSource.from_dataset(datasets.Dataset.from_dict(rows), shuffle=True)


@pytest.mark.parametrize("index", [3, np.int64(3), np.uint8(3), np.array(3), -7, np.int32(-7)])
def test_a_number_gives_a_record_of_the_stored_order(index):
    for touched in (False, True):
        source = memory()
        if touched:
            source.get_batch(2)
        record = source[index]
        assert (int(record["x"]), record["t"], record["nested"]["u"]) == (3, "row 3", "3")
        assert record["image"].tolist() == [[12, 13], [14, 15]]
        assert record["image"].dtype == np.uint8
        assert not isinstance(record["x"], jax.Array)
        assert float(record["nested"]["y"]) == 1.5


@pytest.mark.parametrize(
    ("index", "want"),
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -3), [9, 6, 3, 0]),
        (slice(20, 30), []),
        ([5, 0, -1], [5, 0, 9]),
        ((5, 0), [5, 0]),
        (np.array([7, 7], np.uint32), [7, 7]),
        (range(3), [0, 1, 2]),
        ([], []),
        (np.arange(N) % 4 == 1, [1, 5, 9]),
    ],
)
@pytest.mark.parametrize("make", [memory, eager])
def test_slices_numbers_and_masks_give_columns(make, index, want):
    rows = make()[index]
    assert rows["x"].tolist() == want
    assert rows["t"].dtype == object
    assert rows["t"].tolist() == [f"row {i}" for i in want]


@pytest.mark.parametrize("index", [N, -N - 1, [0, N], np.array([-11])])
def test_there_is_no_record_past_the_end(index):
    with pytest.raises(IndexError, match=r"has 10 records, 0 to 9: there is no record (10|-11)\."):
        memory()[index]


@pytest.mark.parametrize("kind", ["memory", "eager", "indexed", "transformed", "grain"])
@pytest.mark.parametrize("row", [N, -N - 1])
def test_whoever_reads_rows_says_which_there_are(kind, row):
    rows = datasets.Dataset.from_dict({"x": range(N), "t": [f"row {i}" for i in range(N)]})
    source = {
        "memory": memory,
        "eager": eager,
        "indexed": lambda: HFIndexedSource.from_dataset(rows),
        "transformed": lambda: HFIndexedSource.from_dataset(rows, transform=dict),
        "grain": lambda: GrainSource(rows),
    }[kind]()
    words = f"has {N} (row|record)s, 0 to {N - 1}: there is no (row|record) {row}"
    for read in (source.__getitem__, lambda r: source.select([0, r]), source.host_rows):
        with pytest.raises(IndexError, match=words):
            read(np.array([row]) if read == source.host_rows else row)
    if kind == "eager":  # a gather of JAX would give the last row
        assert isinstance(source.data["x"], jax.Array)
        with pytest.raises(IndexError, match=words):
            source.host_rows(np.array([row]))
    if kind in ("indexed", "transformed"):
        with pytest.raises(IndexError, match=words):
            source.read_rows(np.array([0, row]))


@pytest.mark.parametrize("index", ["x", 1.0, None, [True, False], [[0, 1]], np.zeros((2, 2), int)])
def test_what_is_no_number_is_refused(index):
    with pytest.raises(TypeError, match="expected a record's number"):
        memory()[index]


def test_it_changes_nothing():
    source = memory()
    state = source.get_state()
    source[0], source[1:3]
    assert source.get_state() == state


def test_grain_reads_a_source_as_it_stands():
    found = grain.MapDataset.source(eager()).seed(0).shuffle().map(lambda record: int(record["x"]))
    assert sorted(found[i] for i in range(len(found))) == list(range(N))
    loader = grain.DataLoader(
        data_source=memory(),
        sampler=grain.samplers.IndexSampler(N, num_epochs=1, shuffle=True, seed=0),
        worker_count=0,
    )
    assert sorted(int(record["x"]) for record in loader) == list(range(N))


def test_a_map_style_dataset_of_torch_ends_where_it_should():
    # torch.utils.data iterates a map-style dataset by numbers, and asks for its length.
    source = memory(shuffle=False)
    assert [int(source[i]["x"]) for i in range(len(source))] == list(range(N))
