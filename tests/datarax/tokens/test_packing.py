"""Packing: every token once, in order within its document, in rows that are nearly full."""

import datasets
import numpy as np
import pytest
from grain.experimental import BestFitPackIterDataset
from grain.python import MapDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFEagerSource, HFStreamingSource
from datarax.tokens import Packer

documents = st.lists(st.integers(0, 20), min_size=1, max_size=30)
METHODS = ["best_fit", "split"]


def numbered(sizes):
    """Returns documents in which no token comes twice."""
    ends = np.cumsum(sizes)
    return [np.arange(e - s, e).tolist() for s, e in zip(sizes, ends, strict=True)]


def segments(rows):
    """Yields the tokens, weights and positions of each segment, row by row."""
    for r in range(len(rows["input_ids"])):
        ids = rows["segment_ids"][r]
        for number in range(1, ids.max(initial=0) + 1):
            yield tuple(rows[k][r][ids == number] for k in ("input_ids", "weights", "positions"))


@settings(deadline=None, max_examples=60)
@given(documents, st.integers(1, 9), st.sampled_from(METHODS), st.sampled_from([None, 7_777]))
def test_every_token_is_packed_once_in_its_documents_order(sizes, length, method, end_id):
    docs = numbered(sizes)
    rows = Packer(length, method, end_id)({"input_ids": docs})
    found = {}
    for tokens, weights, positions in segments(rows):
        assert positions.tolist() == list(range(len(tokens)))
        assert (weights == 1).all()
        found[tokens[0]] = tokens.tolist()
    ends = [] if end_id is None else [end_id]
    if end_id is None:
        parts = [found[token] for token in sorted(found)]
        assert sum(parts, []) == sum(docs, [])
    whole = sorted(int(t) for tokens, _, _ in segments(rows) for t in tokens)
    assert whole == sorted(t for doc in docs for t in [*doc, *ends])
    padding = rows["segment_ids"] == 0
    for name, fill in {"input_ids": 0, "positions": 0, "weights": 0}.items():
        assert (rows[name][padding] == fill).all()
    assert (np.diff((~padding).astype(int), axis=1) <= 0).all()  # padding is at a row's end


@settings(deadline=None, max_examples=60)
@given(documents, st.integers(1, 9))
def test_a_document_that_fits_into_a_row_is_one_segment(sizes, length):
    docs = numbered(sizes)
    found = [tokens.tolist() for tokens, _, _ in segments(Packer(length)({"input_ids": docs}))]
    pieces = [doc[i : i + length] for doc in docs for i in range(0, len(doc), length)]
    assert sorted(found) == sorted(pieces)


@pytest.mark.parametrize("mean", [4.5, 5.5, 6.5])
def test_rows_of_a_heavy_tailed_corpus_are_full_and_at_least_as_full_as_grains(mean):
    lengths = np.random.default_rng(0).lognormal(mean, 1.0, 1000).astype(int) + 1
    docs = [np.ones(n, np.int32) for n in lengths]
    rows = Packer(1024)({"input_ids": docs})["input_ids"]
    fill = lengths.sum() / rows.size
    assert fill >= 0.98
    # Grain cuts no document: it is given the pieces that fit.
    pieces = [{"input_ids": doc[i : i + 1024]} for doc in docs for i in range(0, len(doc), 1024)]
    packed = BestFitPackIterDataset(
        MapDataset.source(pieces).to_iter_dataset(),
        length_struct={"input_ids": 1024},
        num_packing_bins=len(pieces),
    )
    assert len(rows) <= len(list(packed))


def test_weights_travel_with_their_tokens_and_the_end_counts_as_the_last():
    batch = {"input_ids": [[1, 2], [3], []], "weights": [[0.0, 1.0], [0.0], []]}
    rows = Packer(4, end_id=9)(batch)
    got = {tuple(t.tolist()): w.tolist() for t, w, _ in segments(rows)}
    assert got == {(1, 2, 9): [0, 1, 1], (3, 9): [0, 0], (9,): [1]}


@pytest.mark.parametrize("format", [None, "numpy", "arrow"])
@pytest.mark.parametrize("method", METHODS)
def test_a_dataset_and_a_stream_pack_to_the_same_rows(format, method):
    docs = numbered(np.random.default_rng(1).integers(0, 30, 50))
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})
    dataset = datasets.Dataset.from_dict({"input_ids": docs}, features=features)
    packer = Packer(16, method, end_id=1)
    whole = dataset.with_format(format).map(packer, batched=True, batch_size=20)
    source = HFEagerSource.from_dataset(whole.with_format(None))
    assert {k: (v.shape[1:], v.dtype) for k, v in source.data.items()} == {
        "input_ids": ((16,), np.int32),
        "segment_ids": ((16,), np.int32),
        "positions": ((16,), np.int32),
        "weights": ((16,), np.float32),
    }
    stream = dataset.to_iterable_dataset().map(
        packer, batched=True, batch_size=20, features=packer.features
    )
    rows = HFStreamingSource.from_dataset(stream).collect_to_array(len(whole))
    for name, column in source.data.items():
        np.testing.assert_array_equal(rows[name], column)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"text": ["a"]}, r"There is no column 'input_ids'.*ds\.map"),
        ({"input_ids": [1, 2]}, "lists of integers"),
        ({"input_ids": [[1.5]]}, "float64: expected lists of integers"),
        ({"input_ids": [[1], None]}, "nulls"),
        ({"input_ids": [[1, None]]}, "nulls"),
        ({"input_ids": [[1, 2**40]]}, "1099511627776, which does not fit into int32"),
        ({"input_ids": [[1, 2]], "weights": [[1.0]]}, "Row 0 has 2 tokens and 1 weights"),
    ],
)
def test_documents_that_cannot_be_packed_are_refused(batch, words):
    with pytest.raises(ValueError, match=words):
        Packer(4)(batch)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="length=0"):
        Packer(0)
    with pytest.raises(ValueError, match="method='greedy': expected 'best_fit' or 'split'"):
        Packer(4, "greedy")


def test_no_documents_make_no_rows():
    rows = Packer(4)({"input_ids": [[], []]})
    assert all(column.shape == (0, 4) for column in rows.values())
