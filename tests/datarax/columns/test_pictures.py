"""A fixed number of pictures a row: one array, or a host column that says why it is none."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest

from datarax import HFEagerSource, HFStreamingSource
from datarax.columns.host import HostColumn
from datarax.columns.load import load_columns

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 5, 3)).astype(np.uint8)
FEATURE = datasets.List(datasets.Image(), length=2)


def encoded(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def dataset(rows):
    features = datasets.Features({"x": FEATURE})
    return datasets.Dataset.from_dict({"x": rows}, features=features)


@pytest.fixture(scope="module")
def rows():
    return [[encoded(picture) for picture in row] for row in PIXELS]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [4, 0, 0, 3], [2, 3, 4]])
def test_they_are_one_array(rows, order):
    ds = datasets.concatenate_datasets([dataset(rows[:2]), dataset(rows[2:])]).select(order)
    np.testing.assert_array_equal(load_columns(ds).data["x"], PIXELS[order])
    some = load_columns(ds, rows=np.array([2, 1])).data["x"]
    np.testing.assert_array_equal(some, PIXELS[order][[2, 1]])
    for source in (HFEagerSource, HFStreamingSource):
        batch = source.from_dataset(ds).get_batch(len(order))["x"]
        np.testing.assert_array_equal(batch, PIXELS[order])


def test_a_row_that_is_none_or_of_another_size_is_named(rows):
    gone = load_columns(dataset([*rows[:2], None])).data["x"]
    assert isinstance(gone, HostColumn)
    assert gone.reason == "row 2 is None"
    other = [encoded(np.zeros((3, 3, 3), np.uint8))] * 2
    mixed = load_columns(dataset([rows[0], other])).data["x"]
    assert mixed.reason == "row 1 is 3x3 pixels where row 0 is 5x4 pixels"
    np.testing.assert_array_equal(mixed[0][1], PIXELS[0, 1])
    stream = HFStreamingSource.from_dataset(dataset([rows[0], other]))
    assert stream.get_batch(2)["x"][1][0].shape == (3, 3, 3)


def test_a_damaged_picture_is_named_by_its_row(rows):
    broken = [rows[0], [rows[1][0], {"bytes": b"no image", "path": None}], rows[2]]
    with pytest.raises(ValueError, match="column 'x', row 1: the image cannot be decoded"):
        load_columns(dataset(broken))
    columns = load_columns(dataset(broken), on_bad_rows="skip")
    np.testing.assert_array_equal(columns.data["x"], PIXELS[[0, 2]])


def test_a_later_row_of_a_stream_that_does_not_fit_is_an_error(rows):
    many = [rows[n % 6] for n in range(1100)]
    many[1050] = None
    stream = HFStreamingSource.from_dataset(dataset(many))
    with pytest.raises(ValueError, match=r"column 'x', row \d+ of .*None"):
        for _ in stream.epoch_batches(100):
            pass
