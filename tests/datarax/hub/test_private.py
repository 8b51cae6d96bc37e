"""Private names of the Hugging Face libraries: each is still there and still means the same."""

import datasets
import numpy as np
import pytest

from datarax.hub import private
from datarax.hub.private import httpx


def test_packaged_builders_and_the_suffixes_they_read():
    assert {"parquet", "arrow", "csv", "json", "text", "imagefolder"} <= private.PACKAGED
    assert private.EXTENSIONS[".parquet"] == ("parquet", {})
    assert private.EXTENSIONS[".tsv"] == ("csv", {"sep": "\t"})


def test_the_configurations_of_builders_have_the_keyword_arguments_as_fields():
    fields = {name for config in private.builder_configs() for name in config.__dataclass_fields__}
    assert {"columns", "sep", "data_files", "features"} <= fields


def test_an_index_mapping_is_what_select_and_shuffle_leave():
    ds = datasets.Dataset.from_dict({"x": [10, 11, 12, 13]})
    assert private.positions_of(ds) is None
    chosen = ds.select([3, 0, 0])
    np.testing.assert_array_equal(private.positions_of(chosen), [3, 0, 0])
    assert private.table_of(chosen)["x"].to_pylist() == [10, 11, 12, 13]


def test_rows_between_two_positions():
    ds = datasets.Dataset.from_dict({"x": [10, 11, 12, 13]})
    assert private.rows_between(ds, 1, 3)["x"].to_pylist() == [11, 12]


@pytest.mark.parametrize(
    ("feature", "decodes"),
    [
        (datasets.Image(), True),
        (datasets.List(datasets.Image()), True),
        ({"a": datasets.Audio()}, True),
        (datasets.Image(decode=False), False),
        (datasets.Value("int32"), False),
    ],
)
def test_which_features_decode_files(feature, decodes):
    assert private.require_decoding(feature) is decodes


def test_paths_and_the_names_of_cache_folders(tmp_path):
    assert private.is_local_path(str(tmp_path / "a"))
    assert not private.is_local_path("hf://datasets/me/rows/a.png")
    (tmp_path / "a").write_bytes(b"abc")
    with private.xopen(str(tmp_path / "a"), "rb") as file:
        assert file.read() == b"abc"
    assert private.camelcase_to_snakecase("MyRows-v2") == "my_rows-v2"


def test_a_cache_builder_reads_a_prepared_folder_by_its_parts(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"x": 1}\n')
    built = datasets.load_dataset_builder(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    built.download_and_prepare()
    *_, config, version, hash = built.cache_dir.split("/")
    again = private.Cache(
        cache_dir=str(tmp_path / "cache"),
        dataset_name=built.dataset_name,
        config_name=config,
        version=version,
        hash=hash,
    )
    again.download_and_prepare()
    assert again.name == "cache"
    assert again.as_dataset("train")["x"][:] == [1]


def test_the_http_library_behind_the_hub_client():
    assert issubclass(httpx.ConnectError, httpx.TransportError)
    assert issubclass(httpx.TransportError, httpx.RequestError)
    request = httpx.Client(timeout=None).build_request("GET", "http://127.0.0.1")
    assert set(request.extensions["timeout"]) == {"connect", "read", "write", "pool"}
