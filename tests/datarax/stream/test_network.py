"""Streams from a Hub on a bad network: a real client, and a server that fails on purpose."""

import io
import json
import re
import time
from email.utils import formatdate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import httpx

from datarax import StreamingSourceBase
from datarax.hub import network
from datarax.sources import SourceConfigBase
from tests.support.hubprocess import Failure
from tests.support.hubserver import HubServer

FILES, ROWS = 6, 500
TOKEN = "hf_sesame"


def parquet(start: int, rows: int = ROWS, **columns) -> bytes:
    x = np.arange(start, start + rows)
    sink = io.BytesIO()
    table = {"x": x, "text": [f"row {value}" for value in x]} | columns
    pq.write_table(pa.table(table), sink, row_group_size=rows // 2)
    return sink.getvalue()


class Faults:
    """Fails one request of a file in five, each time in another way, and then lets it pass."""

    def __init__(self):
        self.count = 0
        self.kinds = ["reset", 503, "truncate", 429, "stall", 500]

    def __call__(self, request):
        if request.route != "resolve":
            return None
        self.count += 1
        return self.kinds[self.count // 5 % len(self.kinds)] if self.count % 5 == 0 else None


@pytest.fixture(scope="module")
def server():
    with HubServer() as hub:
        files = {f"train-{n:05d}.parquet": parquet(n * ROWS) for n in range(FILES)}
        hub.add("me/rows", files)
        torn = {f"train-{n}.parquet": parquet(n * ROWS) for n in range(4)}
        torn["train-1.parquet"] = torn["train-1.parquet"][:-20]
        torn["train-2.parquet"] = _zeroed(torn["train-2.parquet"])
        hub.add("me/torn", torn)
        hub.add("me/secret", files, token=TOKEN)
        wider = {"train-0.parquet": parquet(0), "train-1.parquet": parquet(0, extra=[1] * ROWS)}
        hub.add("me/wider", wider)
        narrow = {"train-0.parquet": parquet(0, extra=[1] * ROWS), "train-1.parquet": parquet(0)}
        hub.add("me/narrow", narrow)
        yield hub


def _zeroed(data: bytes) -> bytes:
    """A file whose second row group is damaged."""
    middle = len(data) // 2
    return data[:middle] + b"\0" * 1000 + data[middle + 1000 :]


@pytest.fixture(scope="module")
def client(server):
    # The library waits 10 s for a silent server; a test cannot.
    with server.process(HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1") as process:
        process(
            "import warnings, json, logging\n"
            "logging.basicConfig(level=logging.INFO)\n"
            "from datarax import HFStreamingConfig, HFStreamingSource, from_hf\n"
            "def source(name, **fields):\n"
            "    fields = {'split': 'train', 'streaming': True} | fields\n"
            "    return HFStreamingSource(HFStreamingConfig(name=name, **fields))\n"
            "def epoch(s):\n"
            "    return [b['x'].tolist() for b in s.epoch_batches(100)]\n"
        )
        yield process


@pytest.fixture(autouse=True)
def healthy(server):
    server.fault = None
    yield
    server.fault = None


@pytest.mark.parametrize("shuffle", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nothing_is_lost_or_repeated(client, server, shuffle):
    code = f"result = epoch(source('me/rows', shuffle={shuffle}, shuffle_buffer_size=600))"
    expected = client(code)
    assert sorted(sum(expected, [])) == list(range(FILES * ROWS))
    server.fault = faults = Faults()
    assert client(code) == expected
    assert faults.count > 10


class Busy:
    """Answers some requests for files' bytes, by number, with 429 and a `Retry-After`."""

    def __init__(self, seconds, *numbers, said=str):
        self.seconds, self.numbers, self.said = seconds, numbers, said
        self.count, self.waits, self._refused = 0, [], {}

    def __call__(self, request):
        if (request.route, request.method) != ("resolve", "GET"):
            return None
        asked = request.path, request.headers.get("range")
        if asked in self._refused:
            self.waits.append(request.at - self._refused.pop(asked))
        self.count += 1
        if self.count not in self.numbers:
            return None
        self._refused[asked] = request.at
        return 429, {"Retry-After": self.said(self.seconds)}


def date(seconds):
    """The time in some seconds, as HTTP writes it."""
    return formatdate(time.time() + seconds, usegmt=True)


def test_a_busy_hub_gets_the_time_that_it_asks_for(client, server):
    expected = client("result = epoch(source('me/rows'))")
    server.fault = busy = Busy(2, 4)
    assert client("result = epoch(source('me/rows'))") == expected
    assert len(busy.waits) == 1
    assert busy.waits[0] >= 2


class Pages:
    """Shards of one's own: files of a server, whose client gives up at the first failure."""

    features, length, num_shards = None, None, 3

    def __init__(self, url):
        self._url = f"{url}/datasets/me/pages/resolve/main"

    def open(self, shard, state):
        for page in range(state or 0, 4):
            answer = httpx.get(f"{self._url}/{shard}-{page}.json?key=sesame", timeout=1.0)
            answer.raise_for_status()
            yield pa.table({"x": answer.json()}), page + 1

    def label(self, shard):
        return f"page {shard}"


def pages(server, **fields):
    files = {f"{n // 4}-{n % 4}.json": json.dumps([2 * n, 2 * n + 1]) for n in range(12)}
    server.add("me/pages", files)
    return StreamingSourceBase(SourceConfigBase(), Pages(server.url), **fields)


def xs(source, size=4):
    return [batch["x"].tolist() for batch in source.epoch_batches(size)]


@pytest.mark.parametrize("shuffle", [pytest.param(False, marks=pytest.mark.slow), True])
def test_whatever_client_reads_nothing_is_lost_or_repeated(server, caplog, shuffle):
    fields = {"shuffle": shuffle, "shuffle_buffer_size": 8}
    expected = xs(pages(server, **fields))
    assert sorted(sum(expected, [])) == list(range(24))
    server.fault = faults = Faults()
    source = pages(server, **fields)
    assert xs(source) == expected
    assert faults.count > 12
    assert "Reading on in" in caplog.text
    assert "sesame" not in caplog.text
    server.fault = busy = Busy(1, 6, 9)
    assert xs(pages(server, **fields)) == expected
    assert len(busy.waits) == 2
    assert min(busy.waits) >= 1
    server.fault = busy = Busy(2, 6, said=date)
    assert xs(pages(server, **fields)) == expected
    assert min(busy.waits) >= 1  # a date has no fractions of a second


def test_a_network_that_stays_bad_is_an_error_that_names_the_place_and_loses_nothing(server):
    source = pages(server, timeout=2.0)
    assert source.get_batch(8)["x"].tolist() == list(range(8))
    server.fault = lambda request: 503
    place = r"page 1, row 0: HTTPStatusError: .*503"
    help = r"It failed \d times. Resume from the last state, or wait longer: timeout=4\.$"
    with pytest.raises(ConnectionError, match=f"{place}.*{help}") as caught:
        source.get_batch(4)
    assert "sesame" not in str(caught.value)
    for said in str, date:
        server.requests.clear()
        server.fault = lambda request, said=said: (429, {"Retry-After": said(60)})
        with pytest.raises(ConnectionError, match=r"server asks to wait (60|61) s.*timeout=6[45]"):
            source.get_batch(4)
        assert len(server.requests) == 1
    server.fault = None
    assert sum(xs(source), []) == list(range(24))
    source.set_state(json.loads(json.dumps(source.get_state())))


def test_pauses_grow_differ_and_are_bounded():
    runs = [list(network.pauses(12)) for _ in range(20)]
    assert len({run[0] for run in runs}) == 20
    for run in runs:
        assert len(run) == 11
        assert 0.25 <= run[0] <= 0.5
        assert all(run[n] >= run[n - 2] for n in range(2, 7))
        assert max(run) <= 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (
            {
                "Date": "Wed, 21 Oct 2015 07:27:30 GMT",
                "Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30,
        ),
    ],
)
def test_the_pause_that_a_server_asks_for(headers, seconds):
    response = httpx.Response(429, headers=headers, request=httpx.Request("GET", "http://host"))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert network.asked_pause(caught.value) == seconds


def test_secrets_are_left_out_of_messages():
    text = "GET https://me:word@host/file?X-Amz-Signature=abc with hf_sesame failed"
    assert network.redacted(text) == "GET https://host/file with hf_... failed"


def test_a_resumed_stream_reads_on_from_the_same_commit(client, server):
    whole = client("s = source('me/rows', shuffle=True); result = epoch(s)")
    state = client(
        "s = source('me/rows', shuffle=True)\n"
        "for _ in range(7): s.get_batch(100)\n"
        "result = json.dumps(s.get_state())"
    )
    assert len(state) < 16384
    code = f"s = source('me/rows', shuffle=True); s.set_state(json.loads({state!r}))\n"
    assert client(code + "result = epoch(s)") == whole[7:]
    assert json.loads(state)["revision"] == server._repositories["me/rows"].refs["main"]
    other = json.dumps(json.loads(state) | {"revision": "0" * 40})
    failure = client.run(code.replace(state, other))
    assert failure.type == "ValueError"
    assert "its revision is 000" in failure.message


def test_a_stall_is_an_error_that_names_file_and_row(client, server):
    client(f"s = source('me/rows', timeout=3.0); s.get_batch({ROWS})")
    server.fault = lambda request: "stall" if request.route == "resolve" else None
    failure = client.run("s.get_batch(100)")
    assert isinstance(failure, Failure)
    assert failure.type == "TimeoutError", failure.traceback
    assert "train-00001.parquet" in failure.message
    assert "row 0" in failure.message
    assert "timeout=6" in failure.message
    server.fault = None
    following = list(range(ROWS, ROWS + 100))
    assert client("result = s.get_batch(100)['x'].tolist()") == following


def test_a_refusal_is_an_error_at_once(client, server):
    client("s = source('me/rows'); s.get_batch(500)")
    refusals = {401: "PermissionError", 403: "PermissionError", 404: "FileNotFoundError"}
    for status, kind in (refusals | {416: "OSError"}).items():
        server.fault = lambda request, s=status: s if request.route == "resolve" else None
        server.requests.clear()
        failure = client.run("s.get_batch(100)")
        assert kind in failure.types, failure.traceback
        assert re.search(r"train-0000[01].parquet, row (0|500): .*Error", failure.message)
        assert len(server.requests) < 5
    server.fault = None
    assert client("result = s.get_batch(100)['x'].tolist()") == list(range(500, 600))
    kwargs = f"download_kwargs={{'token': {TOKEN!r}}}"
    server.fault = Faults()
    assert len(client(f"result = epoch(source('me/secret', {kwargs}))")) == 30
    assert TOKEN not in client.output
    client(f"s = source('me/secret', {kwargs}); s.get_batch(500)")
    server.fault = lambda request: 403 if request.route == "resolve" else None
    failure = client.run("s.get_batch(100)")
    assert "PermissionError" in failure.types
    assert TOKEN not in failure.traceback + client.output
    server.fault = None
    failure = client.run("source('me/secret')")
    assert "FileNotFoundError" in failure.types


def test_a_damaged_shard_is_named_or_left_out(client):
    failure = client.run("result = epoch(source('me/torn'))")
    assert failure.type == "ValueError", failure.traceback
    assert "train-1.parquet, row 0" in failure.message
    assert "on_bad_rows='skip'" in failure.message
    # What came before is not lost: its state goes on with a source that leaves out the rest.
    found = client(
        f"s = source('me/torn'); s.get_batch({ROWS}); state = s.get_state()\n"
        "s = source('me/torn', on_bad_rows='skip'); s.set_state(state)\n"
        "result = s.get_batch(100)['x'].tolist()"
    )
    assert found == list(range(3 * ROWS, 3 * ROWS + 100))
    found, stats = client(
        "s = source('me/torn', on_bad_rows='skip')\n"
        "result = [sum(epoch(s), []), s.get_operation_stats()]"
    )
    assert found[:ROWS] == list(range(ROWS))
    assert stats["skipped_count"] == 2


def test_a_column_of_some_shards_only_is_named(client):
    failure = client.run("result = epoch(source('me/wider'))")
    assert failure.type == "ValueError"
    assert "train-1.parquet" in failure.message
    assert "extra" in failure.message
    failure = client.run("result = epoch(source('me/narrow'))")
    assert failure.type == "ValueError"
    assert "column 'extra'" in failure.message
    assert "None" in failure.message
    assert "train-1.parquet" in failure.message
    assert len(client("result = epoch(source('me/narrow', exclude_keys={'extra'}))")) == 10


def test_from_hf_says_which_and_why(client, tmp_path):
    kind = client("result = type(from_hf('me/rows', 'train')).__name__")
    assert kind == "HFStreamingSource"
    assert "me/rows:train is on demand" in client.output
    assert "unknown" in client.output
    (tmp_path / "train.parquet").write_bytes(parquet(0))
    code = f"s = from_hf({str(tmp_path)!r}, 'train'{{}})\n"
    code += "result = [type(s).__name__, len(s.get_batch(8)['x'])]"
    assert client(code.format("")) == ["HFEagerSource", 8]
    assert "is eager" in client.output
    assert client(code.format(", streaming=True, timeout=9")) == ["HFStreamingSource", 8]
    assert client(code.format(", streaming=False, timeout=9")) == ["HFEagerSource", 8]
