"""Tokens, headers and signed URLs are nowhere in what is printed, logged, raised or kept."""

import datasets
import pytest

from datarax import HFEagerConfig, HFEagerSource, HFStreamingConfig, HFStreamingSource
from datarax.hub import cache
from datarax.hub.explained import explained
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
