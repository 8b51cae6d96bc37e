"""Rows by number on any number of threads, from any state: the same bytes."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest

from datarax import HFIndexedSource
from datarax.transforms import random_resized_crop

N = 37


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of many sizes in mapped files."""
    random, files = np.random.default_rng(0), []
    for _ in range(N):
        size = random.integers(20, 60, 2)
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG")
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
    data = {"image": files, "label": list(range(N))}
    folder = tmp_path_factory.mktemp("pictures") / "rows"
    datasets.Dataset.from_dict(data, features=features).save_to_disk(folder, num_shards=3)
    return datasets.load_from_disk(folder)


@pytest.mark.parametrize("cases", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_batches_are_the_same_on_any_number_of_threads_and_from_any_state(pictures, cases):
    one, two, many = (
        HFIndexedSource.from_dataset(
            pictures, transform=random_resized_crop(16), shuffle=True, seed=3, num_threads=threads
        )
        for threads in (1, 2, 16)
    )
    random = np.random.default_rng(1)
    for _ in range(cases):
        epoch, index, size = random.integers((0, 0, 1), (5, N, 2 * N))
        state = one.get_state() | {"epoch": int(epoch), "index": int(index)}
        batches = []
        for source in (one, two, many):
            source.set_state(state)
            batches.append(source.get_batch(int(size)))
        for name, column in batches[0].items():
            assert len(column) == size
            for other in batches[1:]:
                assert np.asarray(other[name]).tobytes() == np.asarray(column).tobytes()
        assert one.get_state() == two.get_state() == many.get_state()
