"""Batches of a stream, stacked in host memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from datarax.stream.decoder import Decoder, Path, length_of, nested
from datarax.stream.streams import Streams


@dataclass(frozen=True, eq=False)
class Block:
    """The next batches of one epoch, stacked.

    Args:
        columns: Nested dict of arrays of shape `(batches, batch_size, ...)`; host columns as
            object arrays.
        valid: Which records count, bool of shape `(batches, batch_size)`. The others repeat some.
        ranks: Rank of each record in the epoch, `uint32` of shape `(batches, batch_size)`: the
            `k`-th of stream `s` of `n` has rank `k * n + s`, on whatever process it is read.
        epoch: The epoch.
        filled: How many of the batches have a record that counts; the rest lie past the end of the
            epoch.
        positions: Where the streams are before the first batch and after each.
        skipped: How many damaged rows were left out, or do not count.
        full: How many of the batches are full; an epoch's last may not be.
    """

    columns: dict[str, Any]
    valid: np.ndarray
    ranks: np.ndarray
    epoch: int
    filled: int
    positions: list[Any]
    skipped: int
    full: int


def read_block(streams: Streams, batches: int, size: int) -> Block:
    """Reads batches of the present epoch; after its end all of them are masked.

    Args:
        streams: The streams; they move.
        batches: How many batches.
        size: Records in a batch, a multiple of the number of streams.
    """
    share = size // len(streams.numbers)
    valid = np.zeros((batches, size), bool)
    first = np.repeat(np.array(streams.numbers, np.uint32), share)
    each = np.tile(np.arange(share, dtype=np.uint32), len(streams.numbers))
    ranks = np.zeros((batches, size), np.uint32)
    positions, skipped, filled = [streams.position()], 0, 0
    out = streams.decoder.buffers(batches * size)
    try:
        for batch in range(batches):
            before = np.repeat(np.array([m.taken for m in positions[-1].marks], np.uint32), share)
            ranks[batch] = (before + each) * np.uint32(streams.order.streams) + first
            taken, damaged = streams.take(size)
            skipped += damaged
            for number, parts in enumerate(taken):
                at = batch * size + number * share
                for part in parts:
                    count = length_of(part)
                    for path, column in part.items():
                        out[path][at : at + count] = column
                    valid.reshape(-1)[at : at + count] = True
                    at += count
            positions.append(streams.position())
            if not any(taken):
                positions += [positions[-1]] * (batches - batch - 1)
                break
            filled = batch + 1
    except BaseException:
        streams.restore(positions[0])
        raise
    _fill_up(out, valid, streams.decoder)
    columns = nested((p, c.reshape(batches, size, *c.shape[1:])) for p, c in out.items())
    full = int(valid.all(axis=1).sum())  # they come first: a stream ends once
    return Block(columns, valid, ranks, streams.epoch, filled, positions, skipped, full)


def _fill_up(columns: dict[Path, np.ndarray], valid: np.ndarray, decoder: Decoder) -> None:
    """Puts real records where none count: zeros would bend the statistics of a batch.

    Which ones depends on the batch alone, not on the block: those of the batch, or the stream's
    first record, where other processes have all of the batch's.
    """
    if valid.all():
        return
    for batch, counts in zip(np.arange(valid.size).reshape(valid.shape), valid, strict=True):
        gaps = batch[~counts]
        for path, column in columns.items():
            found = column[batch[counts]] if counts.any() else decoder.first_record[path]
            column[gaps] = found[np.arange(len(gaps)) % len(found)]
