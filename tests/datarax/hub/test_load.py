"""Splits from a Hub (a real client, a loopback server), from its caches and from local files."""

import json
import re
import shutil
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarax.hub.load import load_split, resolve_name
from tests.support.hubprocess import Failure
from tests.support.hubserver import HubServer

TOKEN = "hf_sesame"
GLUE = """---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train.parquet}
  - {split: test, path: sst2/test.parquet}
- config_name: mrpc
  data_files: mrpc/*.parquet
---
"""


def rows(*values: int) -> str:
    return "".join(json.dumps({"x": value}) + "\n" for value in values)


def parquet(*values: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": pa.array(values, pa.int32())}), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def server():
    with HubServer() as hub:
        hub.first = hub.add("ylecun/mnist", {"train.jsonl": rows(0)}, alias="mnist", tag="v1")
        files = {"train.jsonl": rows(1, 2, 3), "test.jsonl": rows(4), "extra/x.jsonl": rows(9)}
        hub.second = hub.add("ylecun/mnist", files, alias="mnist")
        glue = {
            "README.md": GLUE,
            "sst2/train.parquet": parquet(1, 2),
            "sst2/test.parquet": parquet(3),
            "mrpc/0.parquet": parquet(4, 5, 6),
        }
        hub.glue = hub.add("nyu-mll/glue", glue, alias="glue")
        hub.add("me/secret", {"train.jsonl": rows(7)}, token=TOKEN)
        hub.add("me/gated", {"train.jsonl": rows(8)}, token=TOKEN, gated=True)
        hub.add("me/script", {"script.py": "", "train.jsonl": rows(1)})
        hub.add("me/torn", {"train.jsonl": '{"x": 1}\n{"x": '})
        yield hub


@pytest.fixture(scope="module")
def shared(server):
    with server.process() as process:
        process("import datarax.hub.load")  # tests that measure time do not measure this
        yield process


class Client:
    """Calls `load_split` in a process whose Hub is the server."""

    def __init__(self, server, process):
        self.server, self.process = server, process

    def load(self, *args, **kwargs):
        """The rows, the name and the commit; or the `Failure`."""
        del self.server.requests[:]
        call = ", ".join([*map(repr, args), *(f"{k}={v!r}" for k, v in kwargs.items())])
        return self.process.run(
            "from datarax.hub.load import load_split, resolve_name\n"
            f"s = load_split({call})\n"
            "result = [[row['x'] for row in s.dataset], s.name, s.revision]"
        )

    def fails(self, expected: str, *args, **kwargs) -> str:
        """The message of the error that `load` raises, which is an `expected`."""
        failure = self.load(*args, **kwargs)
        assert isinstance(failure, Failure), failure
        assert expected in failure.types, failure.traceback
        assert TOKEN not in failure.traceback + self.process.output
        return failure.message


@pytest.fixture
def client(server, shared):
    server.fault = None
    yield Client(server, shared)
    server.fault = None


@pytest.fixture
def alone(server):
    """A client with caches of its own."""
    server.fault = None
    with server.process() as process:
        yield Client(server, process)
    server.fault = None


def test_a_short_name_is_asked_of_the_hub(client, server):
    found, name, commit = client.load("mnist", "train")
    assert (found, name, commit) == ([1, 2, 3], "ylecun/mnist", server.second)
    assert client.process.output == ""
    assert client.process("result = resolve_name('mnist')") == "ylecun/mnist"
    assert client.load("hf://datasets/ylecun/mnist", "test") == [[4], name, commit]


def test_a_revision_is_resolved_once(client, server):
    assert client.load("mnist", "train", revision="v1") == [[0], "ylecun/mnist", server.first]
    kept = {"download_kwargs": {"revision": server.first}}
    assert client.load("mnist", "train", **kept) == [[0], "ylecun/mnist", server.first]
    server.requests.clear()
    assert client.load("mnist", "test", streaming=True)[2] == server.second
    after = [request.path for request in server.requests if "/datasets/mnist" not in request.path]
    assert after[0] == "/api/datasets/ylecun/mnist"
    assert all(server.second in path for path in after[1:])
    assert "no such branch" in client.fails("FileNotFoundError", "mnist", "train", revision="v9")


def test_parquet_whose_first_row_group_is_empty(client, server):
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema({"x": pa.int64()})) as writer:
        writer.write_table(pa.table({"x": pa.array([], pa.int64())}))
        writer.write_table(pa.table({"x": [1, 2, 3]}))
    whole = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    assert [whole.row_group(group).num_rows for group in range(2)] == [0, 3]
    server.add("me/begins-empty", {"train.parquet": sink.getvalue().to_pybytes()})
    assert client.load("me/begins-empty", "train")[0] == [1, 2, 3]
    for shuffle in (False, True):
        assert client.process(
            "from datarax import HFStreamingConfig, HFStreamingSource\n"
            "fields = {'name': 'me/begins-empty', 'split': 'train', 'streaming': True}\n"
            f"source = HFStreamingSource(HFStreamingConfig(**fields, shuffle={shuffle}))\n"
            "result = sorted(source.get_batch(3)['x'].tolist())"
        ) == [1, 2, 3]


def test_a_split_and_its_slices(client):
    assert client.load("ylecun/mnist", "train[1:3]+test", data_dir="")[0][-1] == 4
    assert client.load("ylecun/mnist", "train", data_dir="extra")[0] == [9]
    message = client.fails("ValueError", "mnist", "tset")
    assert "'train', 'test'" in message
    assert "Did you mean 'test'?" in message
    message = client.fails("ValueError", "mnist", "train[:1]", streaming=True)
    assert "split='train'" in message


def test_a_stream_reads_through_the_client(client, server):
    assert client.load("glue", "train", config_name="sst2", streaming=True)[0] == [1, 2]
    assert any(request.route == "resolve" for request in server.requests)
    kind = client.process("result = type(s.dataset).__name__")
    assert kind == "IterableDataset"


def test_configurations(client, server):
    assert client.load("glue", "test", config_name="sst2") == [[3], "nyu-mll/glue", server.glue]
    message = client.fails("ValueError", "glue", "train")
    assert "'sst2', 'mrpc'" in message
    assert "config_name='sst2'" in message
    message = client.fails("ValueError", "nyu-mll/glue", "train", config_name="sst")
    assert "Did you mean 'sst2'?" in message


def test_keyword_arguments_of_the_download(client):
    given = {"data_files": {"mine": "extra/*.jsonl"}, "trust_remote_code": True}
    assert client.load("mnist", "mine", download_kwargs=given)[0] == [9]
    given = {"columns": ["x"], "verification_mode": "no_checks", "keep_in_memory": True}
    assert client.load("glue", "test", config_name="sst2", download_kwargs=given)[0] == [3]
    message = client.fails("ValueError", "mnist", "train", download_kwargs={"revison": "v1"})
    assert "'revison'" in message
    assert "Did you mean 'revision'?" in message
    message = client.fails("ValueError", "mnist", "train", download_kwargs={"sep": ";"})
    assert "takes no 'sep'" in message
    message = client.fails("ValueError", "mnist", "train", download_kwargs={"name": "x"})
    assert "config_name=" in message


@pytest.mark.parametrize("name", ["nothing", "me/nothing", "me/secret", "not a name"])
def test_no_dataset_or_a_private_one(client, name):
    message = client.fails("FileNotFoundError", name, "train")
    assert name in message
    assert '"token"' in message
    assert "hf auth login" in message


def test_tokens(client, server):
    given = {"download_kwargs": {"token": TOKEN}}
    assert client.load("me/secret", "train", **given)[0] == [7]
    assert client.load("me/secret", "train", streaming=True, **given)[0] == [7]
    assert client.load("me/gated", "train", **given)[0] == [8]
    client.process(
        "from datasets import DownloadConfig\n"
        f"config = {{'download_config': DownloadConfig(token={TOKEN!r})}}\n"
        "load_split('me/secret', 'train', download_kwargs=config, streaming=True)"
    )
    # What the cache now holds is no answer to someone else.
    wrong = {"download_kwargs": {"token": TOKEN + "s"}}
    assert "gated" in client.fails("FileNotFoundError", "me/gated", "train")
    assert "gated" in client.fails("FileNotFoundError", "me/gated", "train", **wrong)
    server.fault = lambda request: 401
    assert "refused" in client.fails("FileNotFoundError", "me/secret", "train", **wrong)


@pytest.mark.parametrize("fault", [503, "reset", "truncate", "stall"])
def test_a_hub_that_does_not_answer(client, server, fault):
    server.fault = lambda request: fault
    start = time.monotonic()
    message = client.fails("ConnectionError", "mnist", "train", timeout=0.3)
    assert time.monotonic() - start < 5
    assert server.url in message
    assert "local_files_only=True" in message


def gone_midway(client, server, fault, routes) -> None:
    server.add("me/moving", {"train.jsonl": rows(1, 1)})
    assert client.load("me/moving", "train")[0] == [1, 1]
    server.add("me/moving", {"train.jsonl": rows(2)})
    server.fault = lambda request: fault if request.route in routes else None
    client.fails("ConnectionError", "me/moving", "train", timeout=0.3)


def test_a_hub_that_goes_away_gives_no_other_commit(client, server):
    gone_midway(client, server, 403, ["resolve"])


@pytest.mark.slow  # the library waits 23 seconds between its attempts
@pytest.mark.parametrize("route", ["tree", "resolve"])
@pytest.mark.parametrize("fault", [500, "reset", "stall"])
def test_a_hub_that_stays_away(client, server, fault, route):
    gone_midway(client, server, fault, [route])


def test_files_that_cannot_be_read(client):
    assert "refs/convert/parquet" in client.fails("ValueError", "me/script", "train")
    assert "'me/torn'" in client.fails("DatasetGenerationError", "me/torn", "train")


def test_the_cache_alone(alone, server):
    message = alone.fails("FileNotFoundError", "mnist", "train", local_files_only=True)
    assert "hf download" in message
    first = alone.load("mnist", "train", revision="v1")
    second = alone.load("mnist", "train")
    extra = alone.load("mnist", "train", data_dir="extra")
    sst2 = alone.load("glue", "train", config_name="sst2")
    server.fault = lambda request: "reset"
    offline = {"local_files_only": True}
    assert alone.load("mnist", "train", **offline) == second
    assert alone.load("ylecun/mnist", "train", streaming=True, **offline) == second
    assert alone.load("mnist", "train", revision=server.first, **offline) == first
    assert alone.load("mnist", "train", data_dir="extra", **offline) == extra
    assert alone.load("glue", "train", **offline) == sst2
    assert alone.process.output == ""
    # Of this folder the files are not known to be all there are.
    alone.fails("FileNotFoundError", "mnist", "train", data_dir="other", **offline)
    alone.fails("FileNotFoundError", "mnist", "train", revision="v1", **offline)
    message = alone.fails("ValueError", "glue", "train", config_name="mrpc", **offline)
    assert "The cache has 'sst2'" in message
    message = alone.fails("ValueError", "mnist", "tran", **offline)
    assert "Did you mean 'train'?" in message
    url = {"download_kwargs": {"data_files": f"{server.url}/x.jsonl"}}
    assert "data_files" in alone.fails("ValueError", "json", "train", **url, **offline)
    assert server.requests == []


def test_a_downloaded_repository(alone, server):
    alone.process(
        "import huggingface_hub\n"
        "huggingface_hub.snapshot_download('nyu-mll/glue', repo_type='dataset')"
    )
    with server.process(alone.process.home, HF_HUB_OFFLINE="1") as process:
        cached = Client(server, process)
        assert cached.load("glue", "train", config_name="mrpc") == [
            [4, 5, 6],
            "nyu-mll/glue",
            server.glue,
        ]
        assert cached.load("glue", "test", config_name="sst2", revision="main")[0] == [3]
        assert "'sst2', 'mrpc'" in cached.fails("ValueError", "glue", "train")
        assert server.requests == []
        shutil.rmtree(process.home / "datasets")
        next(process.home.rglob("mrpc/0.parquet")).unlink()
        cached.fails("FileNotFoundError", "glue", "train", config_name="mrpc")


def test_two_cached_repositories_of_one_name(alone, server):
    server.add("you/mnist", {"train.jsonl": rows(5)})
    alone.load("mnist", "train")
    alone.load("you/mnist", "train")
    message = alone.fails("ValueError", "mnist", "train", local_files_only=True)
    assert "'ylecun/mnist', 'you/mnist'" in message
    assert alone.load("you/mnist", "train", local_files_only=True)[0] == [5]


def test_a_folder(tmp_path):
    (tmp_path / "train.jsonl").write_text(rows(1, 2))
    (tmp_path / "test.jsonl").write_text(rows(3))
    loaded = load_split(str(tmp_path), "train")
    assert (loaded.dataset["x"][:], loaded.name, loaded.revision) == ([1, 2], str(tmp_path), None)
    assert [row["x"] for row in load_split(tmp_path, "test", streaming=True).dataset] == [3]
    with pytest.raises(ValueError, match=r"no split 'valid'. There are 'train', 'test'"):
        load_split(str(tmp_path), "valid")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "other"))):
        load_split(str(tmp_path / "other"), "train")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "arrow"])
def test_a_file(tmp_path, suffix):
    path = str(tmp_path / f"data.{suffix}")
    made = datasets.Dataset.from_dict({"x": [1, 2]})
    if suffix == "arrow":
        made.save_to_disk(tmp_path)
        path = str(tmp_path / "data-00000-of-00001.arrow")
    else:
        {"parquet": made.to_parquet, "jsonl": made.to_json, "csv": made.to_csv}[suffix](path)
    assert load_split(path, "train").dataset["x"][:] == [1, 2]


def test_a_builder(tmp_path):
    (tmp_path / "a.csv").write_text("x;y\n1;2\n")
    given = {"data_files": {"train": str(tmp_path / "a.csv")}, "sep": ";"}
    loaded = load_split("csv", "train", download_kwargs=given)
    assert (loaded.dataset[0], loaded.name) == ({"x": 1, "y": 2}, "csv")
    assert resolve_name("csv") == "csv"
    with pytest.raises(ValueError, match="data_files"):
        load_split("csv", "train")
    with pytest.raises(ValueError, match="a folder or a file of"):
        load_split(__file__, "train")


def test_a_saved_dataset(tmp_path):
    train = datasets.Dataset.from_dict({"x": list(range(10))})
    test = datasets.Dataset.from_dict({"x": [10, 11]})
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    both = str(tmp_path / "both")
    assert load_split(both, "train").dataset["x"][:] == list(range(10))
    assert load_split(both, "train[-2:]+test").dataset["x"][:] == [8, 9, 10, 11]
    assert load_split(both, "train[:20%]").dataset["x"][:] == [0, 1]
    assert len(load_split(both, "all").dataset) == 12
    assert [row["x"] for row in load_split(both, "test", streaming=True).dataset] == [10, 11]
    assert len(load_split(str(tmp_path / "one"), "train").dataset) == 10
    with pytest.raises(ValueError, match="'train', 'test'"):
        load_split(both, "tests")
