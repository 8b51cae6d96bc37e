"""A cursor: an iterable of records, and where it stands."""

import copy
import json
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from datarax.sources.memory import columns_of
from datarax.sources.module import register_host_state


class IterablePosition(NamedTuple):
    """Where an iterable stands: its epoch, the records it gave, its iterator's state or None."""

    epoch: int
    index: int
    state: Any


class Cursor:
    """An iterable and where it stands; a copy goes on from there by itself."""

    def __init__(self, iterable: Iterable[Any], label: str):
        self._iterable, self._label = iterable, label
        self.epoch = self.index = 0
        self._iterator: Any = None
        start = iter(iterable)
        self.has_state = hasattr(start, "get_state") and hasattr(start, "set_state")
        record = next(start, None)
        if record is None:
            raise ValueError(f"{label} gives no record: a source needs one at least.")
        self.record, self.first = record, record_columns([record], label, 0)

    def begin(self, epoch: int) -> None:
        self.epoch, self.index, self._iterator = epoch, 0, None

    def position(self) -> IterablePosition:
        if not self.has_state or self.index == 0:
            return IterablePosition(self.epoch, self.index, None)
        # The iterator may hand out a dict that it changes afterwards.
        state = json.loads(json.dumps(self._iterator.get_state()))
        return IterablePosition(self.epoch, self.index, state)

    def go_to(self, position: IterablePosition) -> None:
        self.begin(position.epoch)
        if position.index:
            self._iterator = iter(self._iterable)
            self._iterator.set_state(copy.deepcopy(position.state))
            self.index = position.index

    def take(self, count: int) -> list[Any]:
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        records = []
        for record in self._iterator:
            records.append(record)
            self.index += 1
            if len(records) == count:
                break
        return records

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self), _iterator=None)
        if self.has_state:
            other.go_to(self.position())
        else:
            other.begin(self.epoch)
        return other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cursor)  # nothing compiled depends on it

    def __hash__(self) -> int:
        return 0


register_host_state(Cursor)


def record_columns(records: list[Any], label: str, first: int) -> dict[str, Any]:
    """Returns records as columns."""
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise TypeError(
                f"{label} gives a {type(record).__name__} as record {first + number}: expected a "
                'dict, as of dataset.map(lambda record: {"x": record}).'
            )
        if record.keys() != records[0].keys():
            raise ValueError(
                f"{label} gives {sorted(record)} as record {first + number}, and "
                f"{sorted(records[0])} as record {first}: expected the same columns in all."
            )
    return columns_of(
        {
            name: record_columns([record[name] for record in records], label, first)
            if isinstance(value, dict)
            else [record[name] for record in records]
            for name, value in records[0].items()
        }
    )
