"""A stream's state: it brings its order along, and what no stream can be at is refused."""

import copy
import json

import datasets
import numpy as np
import PIL.Image
import pytest

from datarax import HFStreamingSource

N = 3000


def source(**fields) -> HFStreamingSource:
    return HFStreamingSource.from_dataset(datasets.Dataset.from_dict({"x": range(N)}), **fields)


def read(of: HFStreamingSource, count: int) -> list[int]:
    return np.asarray(of.get_batch(count)["x"]).tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_state_brings_its_order_along(shuffle):
    first = source(shuffle=shuffle, seed=5, shuffle_buffer_size=50)
    first.get_batch(777)
    state = json.loads(json.dumps(first.get_state()))
    other = source(shuffle=not shuffle, seed=6, shuffle_buffer_size=9)
    other.get_batch(10)
    other.set_state(state)
    assert (other.seed, other.is_random_order) == (5, shuffle)
    assert other.get_state() == state
    assert read(other, 1000) == read(first, 1000)
    first.next_epoch(), other.next_epoch()
    assert read(other, 100) == read(first, 100)


def used() -> dict:
    stream = source(shuffle=True, shuffle_buffer_size=50)
    stream.get_batch(130)
    return json.loads(json.dumps(stream.get_state()))


USED = used()
AT = USED["streams"]["0"]

IMPOSSIBLE = {
    "epoch": {"epoch": -1},
    "epoch of text": {"epoch": "1"},
    "turn": {"turn": 1},
    "index": {"index": 131},
    "index below 0": {"index": -3},
    "shuffle": {"order": USED["order"] | {"shuffle": "yes"}},
    "seed": {"order": USED["order"] | {"seed": 2**32}},
    "buffer": {"order": USED["order"] | {"shuffle_buffer_size": 0}},
    "field of the order": {"order": USED["order"] | {"more": 1}},
    "order": {"order": 3},
    "streams": {"streams": []},
    "number of a stream": {"streams": {"0": AT, "1": AT}},
    "stream": {"streams": {"0": 3}},
    "position": {"streams": {"0": AT | {"position": 101}}},
    "position below 0": {"streams": {"0": AT | {"position": -1}}},
    "taken": {"streams": {"0": AT | {"taken": 1.5}}, "index": 1.5},
    "window": {"streams": {"0": AT | {"window": None}}},
    "check": {"streams": {"0": AT | {"check": 7}}},
    "nothing read": {"streams": {"0": AT | {"check": None}}},
    "anchor": {"streams": {"0": AT | {"anchor": 3}}},
    "anchor without turn": {"streams": {"0": AT | {"anchor": {"open": []}}}},
    "shard": {"streams": {"0": AT | {"anchor": AT["anchor"] | {"open": [[99, None, 0, 0]]}}}},
    "row": {"streams": {"0": AT | {"anchor": AT["anchor"] | {"open": [[0, None, -1, 0]]}}}},
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_no_stream_can_be_at_is_refused(change):
    stream = source(shuffle=True, shuffle_buffer_size=50)
    before = read(stream, 40)
    with pytest.raises(ValueError, match=r"[Ss]tate"):
        stream.set_state(copy.deepcopy(USED) | change)
    again = source(shuffle=True, shuffle_buffer_size=50)
    assert before == read(again, 40)
    assert read(stream, 40) == read(again, 40)


def test_an_old_state_of_mapped_pictures_says_why_it_is_of_other_data():
    def stream(pictures):
        x = [PIL.Image.new("L", (4, 4), n) for n in range(4)] if pictures else list(range(4))
        table = datasets.Dataset.from_dict({"x": x}).to_iterable_dataset()
        return table, table.map(lambda row: {"y": 1})

    for pictures in (True, False):
        for data, mapped in zip(stream(pictures), (False, True), strict=True):
            source = HFStreamingSource.from_dataset(data)
            with pytest.raises(ValueError, match="The state is of other data") as info:
                source.set_state(source.get_state() | {"fingerprint": "that of 0.1.0"})
            assert ("that version encoded the pictures" in str(info.value)) == (pictures and mapped)
