"""Small eager sources for tests."""

import datasets
import numpy as np

from datarax import HFEagerSource, HFIndexedSource, MemorySource, MemorySourceConfig, index_shuffle

N = 10


def memory(shuffle=False, seed=3, n=N):
    data = {"id": np.arange(n), "nested": {"x": np.arange(n, dtype=np.float64) / 2}}
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=seed), data)


def texts(shuffle=False, seed=3, n=N):
    dataset = datasets.Dataset.from_dict({"id": range(n), "text": [f"row {i}" for i in range(n)]})
    return HFEagerSource.from_dataset(dataset, shuffle=shuffle, seed=seed)


def kinds_of(data, folder, **fields):
    """Returns a function that makes a source of some rows: `eager`, or by number.

    Those by number read a dataset in `memory`, or from three files on `disk`.
    """
    rows = datasets.Dataset.from_dict(data)
    rows.save_to_disk(folder, num_shards=3)
    disk = datasets.load_from_disk(folder)
    made = {
        "eager": (HFEagerSource, disk),
        "memory": (HFIndexedSource, rows),
        "disk": (HFIndexedSource, disk),
    }

    def source(kind):
        of, dataset = made[kind]
        return of.from_dataset(dataset, **fields)

    return source


def epoch_order(epoch, seed=3, n=N):
    return np.asarray(index_shuffle(np.arange(n), num_records=n, seed=seed + epoch)).tolist()


def ids(records):
    return [int(record["id"]) for record in records]
