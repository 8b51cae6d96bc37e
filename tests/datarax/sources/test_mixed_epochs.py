"""Mixtures that end, and mixtures whose weights change: epochs, states, and what is refused."""

import json

import datasets
import numpy as np
import pytest

from datarax import (
    GrainSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    Pipeline,
)

A, B = 70, 40
STAGES = [(0, [3, 1]), (60, [1, 1]), (130, [0, 1])]


def memory(first, rows):
    return MemorySource(
        MemorySourceConfig(shuffle=True, seed=first), {"x": np.arange(first, first + rows)}
    )


def streamed(first, rows):
    rows = datasets.Dataset.from_dict({"x": list(range(first, first + rows))})
    return HFStreamingSource.from_dataset(rows.to_iterable_dataset(4), shuffle=True)


def indexed(first, rows):
    class Rows:
        def __len__(self):
            return rows

        def __getitem__(self, index):
            return {"x": np.int32(first + index)}

    return GrainSource(Rows(), shuffle=True, seed=first)


def view(first, rows):
    return memory(first, 2 * rows).select(slice(0, rows))


def nested(first, rows):
    return MixedSource([memory(first, rows), view(first + rows, rows)], [2, 1], stop="first")


KINDS = {"memory": memory, "stream": streamed, "indexed": indexed, "view": view, "nested": nested}


def mixture(kind="indexed", weights=(3, 1), stop="first"):
    first = indexed if kind == "indexed" else memory
    return MixedSource([first(0, A), KINDS[kind](1000, B)], list(weights), stop=stop)


def read(mixed, size):
    """Returns the records of the next `size` draws."""
    return np.asarray(mixed.get_batch(size)["x"]).tolist()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[SLOW] * (k in ("memory", "nested"))) for k in KINDS]
)
def test_epochs_go_on_where_a_state_puts_them_and_after_a_break(kind):
    length = len(mixture(kind))
    whole = read(mixture(kind), 3 * length)
    pipeline = Pipeline(source=mixture(kind), stages=[], batch_size=32)
    batches = [np.asarray(batch["x"]).tolist() for batch in pipeline]
    assert sum(batches, []) == whole[:length]
    assert [len(b) for b in batches[:-1]] == [32] * (len(batches) - 1)

    mixed = mixture(kind)
    pipeline = Pipeline(source=mixed, stages=[], batch_size=32)
    for number, _ in enumerate(pipeline):
        if number == 1:
            break
    state = json.loads(json.dumps(pipeline.get_state()))
    rest = [int(x) for batch in pipeline for x in batch["x"]]
    assert rest == whole[length : 2 * length]

    again = mixture(kind)
    again.set_state(state)
    assert read(again.clone(), 50) == whole[64:114]
    assert [int(record["x"]) for record in again] == whole[64:length]
    assert again.get_state()["epoch"] == 1
    assert read(again, length) == whole[length : 2 * length]


def test_an_epoch_has_every_record_of_the_first_or_of_all_sources():
    first, every = mixture(stop="first"), mixture(stop="all")
    for _ in range(3):  # epochs: a source's own goes on where it is
        x = np.array(read(first, len(first)))
        assert sorted(x[x < 1000]) == list(range(A))
    x = np.array(read(every, len(every)))
    assert set(x) >= set(range(A)) | set(range(1000, 1000 + B))
    assert (x >= 1000).sum() == B
    assert len(every) > len(first) > A


def test_stages_change_what_follows_and_nothing_before():
    plain, staged = mixture(stop="never"), mixture(weights=STAGES, stop="never")
    a, b = read(plain, 200), read(staged, 200)
    assert a[:60] == b[:60]
    assert abs(sum(x < 1000 for x in b[60:130]) - 35) <= 1
    assert min(b[130:]) >= 1000


def test_a_state_goes_on_with_stages_that_are_still_to_come():
    plain, staged = mixture(stop="never"), mixture(weights=STAGES, stop="never")
    expected = read(staged, 100)[40:]
    read(plain, 40)
    staged.set_state(json.loads(json.dumps(plain.get_state())))
    assert read(staged, 60) == expected
    with pytest.raises(
        ValueError, match=r"weights=\[\[0, \[0\.75, 0\.25\]\], \[60, .* has \[0\.75"
    ):
        plain.set_state(staged.get_state())
    assert plain.get_state()["index"] == 40
    changed = mixture(weights=[*STAGES[:2], (200, [1, 0])], stop="never")
    changed.set_state(staged.get_state())


def test_states_of_other_ends_are_refused():
    with pytest.raises(ValueError, match=r"stop='first', .* has 'all'"):
        mixture(stop="all").set_state(mixture(stop="first").get_state())
    with pytest.raises(ValueError, match="not that of a mixture like"):
        mixture(stop="never").set_state(mixture(stop="first").get_state())
    state = mixture().get_state()
    with pytest.raises(ValueError, match="index=1000: expected an integer from 0"):
        mixture().set_state(state | {"index": 1000})


def test_ends_that_make_no_sense_are_refused():
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"x": 1}] * 9))
    unknown = HFStreamingSource.from_dataset(rows)
    with pytest.raises(
        ValueError, match=r"stop='all': source 1 is never read to its end.*no length"
    ):
        MixedSource([memory(0, A), unknown], [1, 1], stop="all")
    with pytest.raises(ValueError, match=r'stop=.last.: expected "never", "first" or "all"'):
        mixture(stop="last")
