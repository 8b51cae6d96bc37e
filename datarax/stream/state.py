"""The state of a stream as a dict: checked before it is believed, joined of many processes."""

from collections.abc import Sequence
from typing import Any

from datarax.errors import expect_between, listed
from datarax.module import expect_dict
from datarax.stream.stream import START

STATE_VERSION = 2


def expect_fitting(state: Any, own: dict[str, Any], numbers: Sequence[int], label: str) -> None:
    """Checks that a state can be restored.

    Args:
        state: What is to be restored.
        own: The state of the source now.
        numbers: The canonical streams that it reads.
        label: What an error calls the source.

    Raises:
        TypeError: If `state` is no dict.
        ValueError: If its structure, data, revision, order or streams differ.
    """
    expect_dict(state)
    if state.keys() != own.keys() or state.get("version") != STATE_VERSION:
        raise ValueError(
            f"The state has {sorted(state)} of version {state.get('version')}; {label} reads "
            f"{sorted(own)} of version {STATE_VERSION}, as its get_state() returns them."
        )
    anew = "Restore it with what it was saved with, or begin anew with reset()."
    for key in ("fingerprint", "revision"):
        if state[key] != own[key]:
            raise ValueError(
                f"The state is of other data: its {key} is {state[key]}, that of {label} is "
                f"{own[key]}. {anew}"
            )
    if state["order"] != own["order"]:
        given = {k: v for k, v in _dict(state["order"]).items() if v != own["order"].get(k)}
        here = {key: own["order"].get(key) for key in given}
        raise ValueError(
            f"The state is of another order: it has {given}, {label} has {here}. {anew}"
        )
    expect_between("epoch", state["epoch"], 0, 2**31 - 1)
    streams = _dict(state["streams"])
    missing = [number for number in numbers if str(number) not in streams]
    if missing:
        raise ValueError(
            f"The state has the streams {listed(streams)}, and this process reads {missing} too: "
            "join the states of all processes with merge_states([...]) first."
        )
    for number in numbers:
        if _dict(streams[str(number)]).keys() != START.keys():
            raise ValueError(f"The state is not one that get_state() returned: stream {number}.")


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
