"""Padding and packing of token lists."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFEagerSource
from datarax.tokens import pack, pad

rows_of_tokens = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=7), min_size=1, max_size=12)


def tokens(rows):
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int64"))})
    return datasets.Dataset.from_dict({"input_ids": rows}, features=features)


@settings(deadline=None, max_examples=30)
@given(rows_of_tokens, st.integers(1, 9), st.randoms())
def test_padding_equals_a_plain_loop_whatever_the_selection(rows, length, random):
    chosen = [random.randrange(len(rows)) for _ in range(6)]
    padded = pad(tokens(rows).select(chosen), length, pad_id=9)
    for row, i in zip(padded, chosen, strict=True):
        kept = rows[i][:length]
        assert row["input_ids"] == kept + [9] * (length - len(kept))
        assert row["attention_mask"] == [1] * len(kept) + [0] * (length - len(kept))


@settings(deadline=None, max_examples=30)
@given(rows_of_tokens, st.integers(1, 4), st.sampled_from([None, 1]))
def test_packing_equals_a_plain_loop(rows, length, end_id):
    flat = [t for row in rows for t in [*row, *([] if end_id is None else [end_id])]]
    if len(flat) < length:
        with pytest.raises(ValueError, match="fewer than one row"):
            pack(tokens(rows), length, end_id=end_id)
        return
    packed = pack(tokens(rows), length, end_id=end_id)
    assert np.ravel(packed["input_ids"][:]).tolist() == flat[: len(packed) * length]
    assert len(packed) == len(flat) // length


def test_padded_tokens_are_arrays_and_other_columns_stay():
    dataset = tokens([[1, 2, 3], [4]]).add_column("label", [1, 0])
    source = HFEagerSource.from_dataset(pad(dataset, 2))
    assert source.data["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert source.data["attention_mask"].dtype == np.int8
    assert source.data["label"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"text": ["a"]}, r"ds\.map"),
        ({"input_ids": [1, 2]}, "lists of integers"),
        ({"input_ids": [[1.5]]}, "lists of integers"),
        ({"input_ids": [[1], None]}, "nulls"),
        ({"input_ids": [[1, 2**40]]}, "1099511627776, which does not fit into int32"),
    ],
)
def test_what_is_no_token_list_is_said(dataset, words):
    with pytest.raises(ValueError, match=words):
        pad(datasets.Dataset.from_dict(dataset), 4)
