"""The state of a stream as a dict: checked before it is believed, joined of many processes."""

from collections.abc import Sequence
from typing import Any

from datarax.errors import expect_between, expect_dict, listed
from datarax.order.permutation import MAX_RECORDS
from datarax.order.windows import ShuffleOrder
from datarax.stream.shards import READ_ROWS, DatasetShards, Shards
from datarax.stream.stream import START

STATE_VERSION = 2

_MOST = 2**63 - 1  # rows; a length that a dataset's card names is no bound


def order_of(
    state: Any, own: dict[str, Any], numbers: Sequence[int], shards: Shards, label: str
) -> ShuffleOrder:
    """Checks that a state can be restored, and returns the order that it brings along.

    Args:
        state: What is to be restored.
        own: The state of the source now.
        numbers: The canonical streams that it reads.
        shards: The shards that they read.
        label: What an error calls the source.

    Raises:
        TypeError: If `state` is no dict.
        ValueError: If its structure, data, revision or streams differ, or it has values that no
            source can have.
    """
    expect_dict(state)
    other = (state.keys() ^ own.keys()) - {"transform"}  # of another transform, the source warns
    if other or state.get("version") != STATE_VERSION:
        raise ValueError(
            f"The state has {sorted(state)} of version {state.get('version')}; {label} reads "
            f"{sorted(own)} of version {STATE_VERSION}, as its get_state() returns them."
        )
    anew = "Restore it with what it was saved with, or begin anew with reset()."
    for key in ("fingerprint", "revision"):
        if state[key] != own[key]:
            why = shards.changed if isinstance(shards, DatasetShards) else ""
            raise ValueError(
                f"The state is of other data: its {key} is {state[key]}, that of {label} is "
                f"{own[key]}.{why} {anew}"
            )
    given = _dict(state["order"])
    if given.get("streams") != own["order"]["streams"]:
        raise ValueError(
            f"The state is of another order: it has {{'streams': {given.get('streams')!r}}}, "
            f"{label} has {{'streams': {own['order']['streams']}}}. {anew}"
        )
    streams = _dict(state["streams"])
    missing = [number for number in numbers if str(number) not in streams]
    if missing:
        raise ValueError(
            f"The state has the streams {listed(streams)}, and this process reads {missing} too: "
            "join the states of all processes with merge_states([...]) first."
        )
    try:
        order = _read_order(given)
        expect_between("epoch", state["epoch"], 0, 2**31 - 1)
        expect_between("turn", state["turn"], 0, len(streams) - 1)
        for number, stream in streams.items():
            expect_between("the number of a stream", int(number), 0, order.streams - 1)
            _expect_stream(stream, order, shards)
        taken = sum(stream["taken"] for stream in streams.values())
        expect_between("index", state["index"], taken, taken)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The state is not one that get_state() returned: {error}") from error
    return order


def _read_order(order: dict[str, Any]) -> ShuffleOrder:
    read = ShuffleOrder(**order)
    if not isinstance(read.shuffle, bool):
        raise ValueError(f"shuffle={read.shuffle!r}: expected True or False.")
    expect_between("seed", read.seed, 0, 2**32 - 1)
    expect_between("shuffle_buffer_size", read.shuffle_buffer_size, 1, MAX_RECORDS)
    return read


def _expect_stream(stream: Any, order: ShuffleOrder, shards: Shards) -> None:
    if _dict(stream).keys() != START.keys():
        raise ValueError(f"a stream has {stream!r:.100}, not {listed(START)}.")
    # A window ends with the slice that fills it; slices are a quarter of it, or READ_ROWS rows.
    longest = 2 * order.shuffle_buffer_size if order.shuffle else READ_ROWS
    expect_between("position", stream["position"], 0, longest)
    for name in ("window", "taken"):
        expect_between(name, stream[name], 0, _MOST)
    if stream["check"] is None and stream != START:
        raise ValueError(f"a stream that has read nothing is at {stream!r:.100}.")
    if stream["check"] is not None and not isinstance(stream["check"], str):
        raise ValueError(f"check={stream['check']!r}: expected the hash of a window.")
    if (anchor := stream["anchor"]) is not None:
        expect_between("next", anchor["next"], 0, shards.num_shards)
        expect_between("turn", anchor["turn"], 0, len(anchor["open"]))
        expect_between("bad", anchor["bad"], 0, shards.num_shards)
        for shard, _, row, offset in anchor["open"]:
            expect_between("shard", shard, 0, shards.num_shards - 1)
            expect_between("row", row, 0, _MOST)
            expect_between("offset", offset, 0, _MOST)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one state of the states of all processes, taken after the same batch.

    Args:
        states: What `get_state` returned on each process of a split source.

    Raises:
        ValueError: If they are not of one run, or of different epochs.
    """
    first = states[0]
    for state in states[1:]:
        differ = [
            k for k in first if k not in ("streams", "turn", "index") and state.get(k) != first[k]
        ]
        if differ:
            raise ValueError(f"The states are not of one run: they differ in {listed(differ)}.")
    streams = {n: stream for state in states for n, stream in state["streams"].items()}
    index = sum(state["index"] for state in states)
    streams = dict(sorted(streams.items(), key=lambda x: int(x[0])))
    return {**first, "index": index, "turn": 0, "streams": streams}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value}
