"""`decoding_seconds`: what decoding and transforming took, apart from reading."""

import io
import itertools
import time

import datasets
import PIL.Image
import pytest

from datarax import HFIndexedSource, HFStreamingSource, MixedSource
from tests.datarax.sources.test_indexed import Rows
from tests.support.models import points

KINDS = pytest.mark.parametrize("kind", [HFIndexedSource, HFStreamingSource])
N = 20
PAUSE = 0.002


def late(record):
    time.sleep(PAUSE)
    return record


def numbers():
    return datasets.Dataset.from_dict(points(N))


def pictures():
    files = [io.BytesIO() for _ in range(N)]
    for row, file in enumerate(files):
        PIL.Image.new("L", (20 + row, 30)).save(file, "PNG")
    stored = [{"bytes": file.getvalue(), "path": None} for file in files]
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": stored}, features=features)


@KINDS
def test_it_counts_the_transform_of_each_record_that_is_read(kind):
    source = kind.from_dataset(numbers(), transform=late, num_threads=1)

    def blocks(size):
        source.read_batches(2, size // 2)

    def records(size):
        list(itertools.islice(source, size))

    for read in (source.get_batch, source.get_host_batch, blocks, records):
        begun, before = time.perf_counter(), source.decoding_seconds
        read(4)
        took, decoding = time.perf_counter() - begun, source.decoding_seconds - before
        assert 4 * PAUSE <= decoding <= took


@KINDS
def test_it_counts_the_decoding_of_pictures_and_nothing_of_numbers_that_are_copied(kind):
    source = kind.from_dataset(pictures())
    source.get_host_batch(N)
    assert source.decoding_seconds > 0
    if kind is HFIndexedSource:
        for copied in (kind.from_dataset(numbers()), Rows(points(N))):
            copied.get_host_batch(N)
            assert copied.decoding_seconds == 0


def test_that_of_a_mixture_is_the_sum():
    parts = [HFIndexedSource.from_dataset(numbers(), transform=late) for _ in range(2)]
    mixture = MixedSource(parts, [1, 1])
    mixture.get_batch(10)
    each = [source.decoding_seconds for source in mixture.sources]
    assert mixture.decoding_seconds == sum(each)
    assert all(each)
