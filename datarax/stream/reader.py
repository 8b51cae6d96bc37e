"""Several shards open at once, a few rows of each in turn."""

from collections.abc import Sequence
from typing import Any

import datasets

from datarax.stream.open_shard import OpenShard, ReadPolicy
from datarax.stream.schema import FirstRows
from datarax.stream.shards import DatasetShards, Shards
from datarax.stream.window import Slice


class Reader:
    """Some shards in a given order, several open at once, a few rows of each in turn.

    Args:
        shards: The shards.
        ids: The numbers of those to read, in order.
        policy: When a failure to read is an error.
        width: Shards that are open at once; 1: one after the other.
        turn: Rows that are read from one shard before the next one's turn.
        opened: Shards that are open already, at their start.
    """

    def __init__(
        self,
        shards: Shards,
        ids: Sequence[int],
        policy: ReadPolicy,
        *,
        width: int,
        turn: int,
        opened: dict[int, OpenShard] | None = None,
    ):
        self._shards, self._ids, self._policy = shards, ids, policy
        self._width, self._turn_rows = width, turn
        self._opened = {} if opened is None else opened
        self._open: list[OpenShard] = []
        self._next, self._turn = 0, 0
        self.bad = 0  # shards that could not be read to their end

    def read(self) -> Slice | None:
        """Returns the rows of the next turn, None where all shards are at their end."""
        while True:
            while len(self._open) < self._width and self._next < len(self._ids):
                shard = self._ids[self._next]
                at_start = self._opened.pop(shard, None)
                self._open.append(at_start or OpenShard(self._shards, shard, self._policy))
                self._next += 1
            if not self._open:
                return None
            self._turn %= len(self._open)
            part = self._open[self._turn].read(self._turn_rows)
            if part is not None:
                self._turn += 1
                return part
            ended = self._open.pop(self._turn)
            self.bad += ended.bad
            ended.close()

    def state(self) -> dict[str, Any]:
        """Returns where all shards are: JSON-able, without rows, never changed once given."""
        opened = [[shard.shard, *shard.state] for shard in self._open]
        return {"open": opened, "next": self._next, "turn": self._turn, "bad": self.bad}

    def load(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was returned."""
        self.close()
        self._open = [OpenShard(self._shards, n, self._policy, at) for n, *at in state["open"]]
        self._next, self._turn, self.bad = state["next"], state["turn"], state["bad"]

    def close(self) -> None:
        """Closes the files."""
        for shard in self._open:
            shard.close()
        self._open = []


def first_rows(
    shards: Shards, policy: ReadPolicy, *, keep: bool
) -> tuple[FirstRows, dict[int, OpenShard]]:
    """Returns the first rows, and the shards opened for them: reading begins with these again."""
    opened = {}
    for number in range(shards.num_shards):
        shard = OpenShard(shards, number, policy)
        table = shard.peek()
        if keep:
            opened[number] = shard
        else:
            shard.close()
        if table is not None:
            known = shards.inferred if isinstance(shards, DatasetShards) else shards.features
            features = known or datasets.Features.from_arrow_schema(table.schema)
            return FirstRows(table, features, shards.label(number)), opened
    raise ValueError("The stream is empty: there is no row in any of its shards.")
