"""Streams of packed rows: from any batch they go on with exactly the next one."""

import json
import random

import datasets
import numpy as np
import pytest

from datarax import HFStreamingSource
from datarax.tokens import Packer


def source(seed, *, shuffle):
    rng = np.random.default_rng(seed)
    docs = [rng.integers(1, 100, n).tolist() for n in rng.integers(0, 40, 300)]
    packer = Packer(32, random.Random(seed).choice(["best_fit", "split"]), end_id=0)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    documents = datasets.Dataset.from_dict({"input_ids": docs}, features=features)
    rows = documents.to_iterable_dataset(num_shards=5).map(
        packer, batched=True, batch_size=40, features=packer.features
    )
    fields = {"shuffle": shuffle, "seed": 1, "shuffle_buffer_size": 50}
    return HFStreamingSource.from_dataset(rows, **fields), sum(map(len, docs)) + len(docs)


def batches(of, count):
    return [{name: np.asarray(c) for name, c in of.get_batch(8).items()} for _ in range(count)]


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_stream_of_packed_rows_resumes_exactly_from_any_batch(count):
    draw = random.Random(0)
    for seed in range(count):
        shuffle = seed % 2 == 0
        stream, tokens = source(seed, shuffle=shuffle)
        rows = list(stream.epoch_batches(8))
        assert sum(int((row["segment_ids"] > 0).sum()) for row in rows) == tokens
        stream, _ = source(seed, shuffle=shuffle)
        batches(stream, draw.randrange(40))  # into the next epoch, too
        state = json.loads(json.dumps(stream.get_state()))
        want = batches(stream, 10)
        again, _ = source(seed, shuffle=shuffle)
        again.set_state(state)
        for found, batch in zip(batches(again, 10), want, strict=True):
            for name, column in batch.items():
                np.testing.assert_array_equal(found[name], column)
