"""Small eager sources for tests."""

import datasets
import numpy as np

from datarax import HFEagerSource, MemorySource, MemorySourceConfig, index_shuffle

N = 10


def memory(shuffle=False, seed=3, n=N):
    data = {"id": np.arange(n), "nested": {"x": np.arange(n, dtype=np.float64) / 2}}
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=seed), data)


def texts(shuffle=False, seed=3, n=N):
    dataset = datasets.Dataset.from_dict({"id": range(n), "text": [f"row {i}" for i in range(n)]})
    return HFEagerSource.from_dataset(dataset, shuffle=shuffle, seed=seed)


def epoch_order(epoch, seed=3, n=N):
    return np.asarray(index_shuffle(np.arange(n), num_records=n, seed=seed + epoch)).tolist()


def ids(records):
    return [int(record["id"]) for record in records]
