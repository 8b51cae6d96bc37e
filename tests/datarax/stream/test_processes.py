"""A stream on several real processes: the global batches of one, whatever their number."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from datarax.stream.state import merge_states
from tests.support.hubprocess import HubProcess

STREAMS = 4
BLOCK = 3  # batches in a block

_READER = """
import json
import numpy as np
from datarax import HFStreamingConfig, HFStreamingSource

def begin(folder, fields, streams, index, count, state):
    global part
    config = HFStreamingConfig(name=folder, split="train", streaming=True, **fields)
    part = HFStreamingSource(config).split(streams, index, count)
    if state is not None:
        part.set_state(json.loads(state))

def read(batches, size):
    global block
    block = part.read_batches(batches, size)
    x, text = block.columns["x"], block.columns["text"]
    assert all(t == f"row {n}" for n, t in zip(x[block.valid], text[block.valid]))
    return [block.filled, np.where(block.valid, x, -1).tolist()]

def keep(batches):
    part.go_to(block.positions[batches])
"""


@pytest.fixture(scope="module")
def processes():
    """Four Python processes that can read streams."""
    own = [HubProcess("http://127.0.0.1:9", HF_HUB_OFFLINE="1") for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda process: process(_READER), own))
        yield own
    finally:
        for process in own:
            process.close()


class Group:
    """Processes that read one stream together, as those of a data-parallel run do.

    Args:
        processes: The processes.
        data: Folder and fields of the source.
        batch_size: Records in a global batch.
        state: Where to go on, as JSON.
    """

    def __init__(self, processes, data, batch_size, state=None):
        self.processes, self.size = processes, batch_size // len(processes)
        count = len(processes)
        self._each(lambda i: f"begin(*{data!r}, {STREAMS}, {i}, {count}, {state!r})")

    def batches(self, blocks=None):
        """Returns the next global batches: of some blocks, or to the end of the epoch."""
        found = []
        while blocks is None or blocks:
            read = self._each(lambda _: f"result = read({BLOCK}, {self.size})")
            filled = max(own for own, _ in read)  # what the processes of a run agree on
            found += [sum((x[batch] for _, x in read), []) for batch in range(filled)]
            self._each(lambda _, used=filled: f"keep({used})")
            if filled < BLOCK:
                break
            blocks = blocks and blocks - 1
        return found

    def next_epoch(self):
        self._each(lambda _: "part.next_epoch()")

    def state(self) -> str:
        """Returns the state of all, as JSON."""
        own = self._each(lambda _: "result = json.dumps(part.get_state())")
        state = json.dumps(merge_states([json.loads(text) for text in own]))
        assert len(state) < 16384
        assert "row " not in state
        return state

    def _each(self, code):
        with ThreadPoolExecutor(len(self.processes)) as pool:
            own = range(len(self.processes))
            return list(pool.map(lambda i: self.processes[i](code(i)), own))


def write(folder: Path, lengths: list[int]) -> int:
    """Writes a Parquet file of each length and returns the number of rows."""
    folder.mkdir()
    start = 0
    for number, length in enumerate(lengths):
        x = range(start, start + length)
        rows = datasets.Dataset.from_dict({"x": list(x), "text": [f"row {n}" for n in x]})
        rows.to_parquet(folder / f"train-{number:02}.parquet")
        start += length
    return start


def records(batches: list[list[int]]) -> list[int]:
    return sorted(x for batch in batches for x in batch if x >= 0)


def two_epochs(group: Group) -> list[list[int]]:
    first = group.batches()
    group.next_epoch()
    return [*first, *group.batches()]


def check_elastic(processes, folder: Path, rng: random.Random, lengths: list[int]) -> None:
    """Reads two epochs on 1, 2 and 4 processes, and on 4, then 2, then 4 that take over."""
    rows = write(folder, lengths)
    fields = {
        "shuffle": rng.random() < 0.8,
        "shuffle_buffer_size": rng.choice([1, 10, 100]),
        "seed": rng.randint(0, 2**32 - 1),
    }
    data, size = (str(folder), fields), STREAMS * rng.randint(1, 8)
    alone = Group(processes[:1], data, size)
    first = alone.batches()
    alone.next_epoch()
    second = alone.batches()
    for epoch in (first, second):
        assert records(epoch) == list(range(rows))  # every record once
    for count in (2, 4):
        assert two_epochs(Group(processes[:count], data, size)) == first + second, count
    found, state, members = [], None, list(processes)
    for count in (4, 2, 4):
        group = Group(members[:count], data, size, state)
        left = len(first) - len(found)
        found += group.batches(rng.randint(0, left // (2 * BLOCK)))
        state = group.state()
        members = members[1:] + members[:1]  # none goes on with its own streams
    # The last takes over: a state of an epoch's middle, and then of its very end.
    group = Group(members, data, size, state)
    found += group.batches()
    assert found == first
    group = Group(members[:2], data, size, group.state())
    assert group.batches() == []
    group.next_epoch()
    assert group.batches() == second


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_any_number_of_processes_reads_the_same_and_takes_over_from_any_other(
    processes, tmp_path, seed
):
    # Streams that end at very different times, one of them after a single record.
    lengths = [[97, 1, 60, 33], [40, 40, 1, 2, 90], [30] * 8][seed]
    check_elastic(processes, tmp_path / "files", random.Random(seed), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_many_streams_on_several_processes(processes, tmp_path, seed):
    rng = random.Random(seed)
    lengths = [rng.choice([1, 5, 50, 200]) for _ in range(rng.randint(STREAMS, 12))]
    check_elastic(processes, tmp_path / "files", rng, lengths)
