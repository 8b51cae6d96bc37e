"""Tokens, headers and signed URLs are nowhere in what is printed, logged, raised or kept."""

import logging
import traceback

import datasets
import pyarrow as pa
import pytest

from datarax import HFEagerConfig, HFEagerSource, HFStreamingConfig, HFStreamingSource
from datarax.hub import cache
from datarax.hub.explained import explained
from datarax.hub.load import load_split
from datarax.hub.secrets import hidden, redacted

SECRET = "sesame"
URL = f"https://me:{SECRET}@host/rows.parquet?X-Amz-Signature={SECRET}"
GIVEN = {
    "token": SECRET,
    "storage_options": {"key": SECRET, "headers": {"Authorization": SECRET}},
    "data_files": {"train": [URL]},
    "download_config": datasets.DownloadConfig(token=SECRET),
    "revision": "main",
}


@pytest.mark.parametrize("kind", [HFEagerConfig, HFStreamingConfig])
def test_a_configuration_shows_no_secret(kind):
    shown = repr(kind(name="me/rows", split="train", include_keys={"x"}, download_kwargs=GIVEN))
    assert SECRET not in shown
    assert "'revision': 'main'" in shown
    assert "include_keys={'x'}" in shown
    assert "'train': ['https://host/rows.parquet']" in shown


def test_a_configuration_without_secrets_shows_what_it_is():
    config = HFEagerConfig(name="mnist", split="train", shuffle=True)
    assert eval(repr(config)) == config


def test_sources_show_no_secret(tmp_path):
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(tmp_path / "train.parquet")
    fields = {"name": str(tmp_path), "split": "train", "download_kwargs": {"token": SECRET}}
    stream = HFStreamingSource(HFStreamingConfig(**fields, streaming=True))
    for source in (HFEagerSource(HFEagerConfig(**fields)), stream):
        assert SECRET not in repr(source) + str(source) + repr(source.get_state())


@pytest.mark.parametrize(
    "text",
    [
        URL,
        f"s3://me:{SECRET}@bucket/rows",
        f"Authorization: Bearer {SECRET}",
        f"hf_{SECRET}",
        f"GET http://127.0.0.1/x?token={SECRET} failed",
    ],
)
def test_messages_lose_secrets(text):
    assert SECRET not in redacted(text)
    with pytest.raises(RuntimeError) as info, explained("rows"):
        raise OSError(text) from ValueError(text)
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__
    assert SECRET not in str(info.value)


def everything(error) -> str:
    """Returns the texts of an error and of all errors behind it, with their notes."""
    behind = [] if error is None else [error.__cause__, error.__context__]
    texts = [str(error), repr(error), *getattr(error, "__notes__", ())]
    return " ".join(texts + [everything(one) for one in behind])


def test_no_error_behind_one_tells_a_secret():
    noted = ValueError("damaged")
    noted.add_note(f"read from {URL}")
    for inner in (ValueError(URL), OSError(2, "No such file", URL), noted):
        with pytest.raises(RuntimeError) as info, explained("rows"):
            raise KeyError("x") from inner
        assert SECRET not in everything(info.value)
        assert SECRET not in "".join(traceback.format_exception(info.value))


def test_an_error_without_secrets_keeps_those_behind_it():
    with pytest.raises(KeyError) as info, explained("rows"):
        raise KeyError("x") from ValueError("why")
    assert str(info.value.__cause__) == "why"


@pytest.mark.parametrize("error", [ValueError(URL), ConnectionError(URL), ImportError(URL)])
def test_no_error_of_a_stream_tells_a_secret(error, monkeypatch):
    monkeypatch.setattr("datarax.hub.network.pauses", lambda *_: iter([0.0]))

    def rows():
        yield {"x": 1}
        raise error

    stream = datasets.IterableDataset.from_generator(rows)
    source = HFStreamingSource.from_dataset(stream)
    with pytest.raises(type(error), match=r"host/rows\.parquet") as info:
        list(source)
    assert SECRET not in everything(info.value)


@pytest.mark.parametrize("feature", [datasets.Image(), datasets.Audio()])
def test_no_error_of_a_file_tells_a_secret(feature):
    features = datasets.Features(x=feature)
    where = f"/nowhere/https://host/x.png?X-Amz-Signature={SECRET}"
    stored = pa.array([{"bytes": None, "path": where}], features.arrow_schema.field("x").type)
    ds = datasets.Dataset(pa.table({"x": stored}, features.arrow_schema))
    with pytest.raises(ValueError, match=r"host/x\.png") as info:
        HFEagerSource.from_dataset(ds).get_batch(1)
    assert SECRET not in everything(info.value)


@pytest.mark.parametrize("name", ["httpx", "huggingface_hub.utils._http", "datasets.load"])
def test_libraries_log_no_secret(name, caplog, tmp_path):
    datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(tmp_path / "train.parquet")
    logger = logging.getLogger(name)
    load_split(str(tmp_path), "train")
    load_split(str(tmp_path), "train")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.INFO, name):
        logger.info('HTTP Request: GET %s "%s"', URL, 200)
        try:
            raise OSError(URL)
        except OSError:
            logger.warning("retrying", exc_info=True)
    assert 'GET https://host/rows.parquet "200"' in caplog.text
    assert SECRET not in caplog.text


def test_values_that_are_no_secret_stay():
    assert hidden({"num_proc": 2, "sep": ";", "columns": ["x"]}) == {
        "num_proc": 2,
        "sep": ";",
        "columns": ["x"],
    }


def test_a_note_of_the_cache_holds_no_signature(tmp_path):
    options = {"data_files": {"train": URL}, "name": None}
    cache.note(tmp_path, options)
    (note,) = tmp_path.iterdir()
    assert SECRET not in note.read_text()
