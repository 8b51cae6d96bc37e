"""Mixtures: proportions that hold in every thousand draws, and an exact place to go on from."""

import json

import datasets
import numpy as np
import pytest

from datarax import (
    HFEagerSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    prefetch_to_device,
)


def memory(first: int, rows: int = 70) -> MemorySource:
    return MemorySource(MemorySourceConfig(), {"x": np.arange(first, first + rows)})


def streamed(first: int, rows: int = 50) -> HFStreamingSource:
    data = datasets.Dataset.from_dict({"x": list(range(first, first + rows))})
    return HFStreamingSource.from_dataset(data.to_iterable_dataset(4), shuffle=True)


def mixture() -> MixedSource:
    return MixedSource([memory(0), streamed(1000)], weights=[0.7, 0.3])


def test_every_source_gives_its_records_in_its_own_order():
    mixed, a, b = mixture(), memory(0), streamed(1000)
    x = np.concatenate([mixed.get_batch(64)["x"] for _ in range(10)])
    low, high = x[x < 1000], x[x >= 1000]
    assert np.array_equal(low, a.get_batch(len(low))["x"])
    assert np.array_equal(high[:50], b.get_batch(50)["x"])
    assert np.array_equal(np.sort(high[50:100]), np.arange(1000, 1050))


def test_a_mixture_resumes_exactly():
    mixed = mixture()
    mixed.get_batch(777)
    state = json.loads(json.dumps(mixed.get_state()))
    expected = [np.asarray(mixed.get_batch(100)["x"]) for _ in range(20)]
    again = mixture()
    again.set_state(state)
    with prefetch_to_device(again, 3, batch_size=100) as batches:
        for wanted, batch in zip(expected[:7], batches, strict=False):
            assert np.array_equal(batch["x"], wanted)
        state = json.loads(json.dumps(batches.get_state()))
    assert np.array_equal(again.get_batch(100)["x"], expected[7])
    clone = mixture()
    clone.set_state(state)
    block = clone.clone().read_batches(3, 100)
    assert np.array_equal(block.columns["x"], expected[7:10])
    assert int(next(iter(clone))["x"]) == expected[7][0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one positive weight a source"):
        MixedSource([memory(0)], weights=[1, 2])
    with pytest.raises(ValueError, match="one positive weight a source"):
        MixedSource([memory(0), memory(1)], weights=[1, 0])
    with pytest.raises(TypeError, match="is no source"):
        MixedSource([[1, 2]], weights=[1])
    other = MemorySource(MemorySourceConfig(), {"y": np.arange(3.0)})
    with pytest.raises(ValueError, match="the same columns"):
        MixedSource([memory(0), other], weights=[1, 1])
    state = mixture().get_state()
    with pytest.raises(ValueError, match="weights"):
        MixedSource([memory(0), streamed(1000)], weights=[1, 1]).set_state(state)
    changed = MixedSource([memory(0), streamed(2000)], weights=[0.7, 0.3])
    with pytest.raises(ValueError, match="other data"):
        changed.set_state(state)
    assert changed.get_state()["index"] == 0
    with pytest.raises(TypeError, match="no length"):
        len(mixture())


def labelled(names: list[str], nested: bool = False) -> HFEagerSource:
    feature = datasets.ClassLabel(names=names)
    feature, rows = ({"label": feature}, [{"label": 0}]) if nested else (feature, [0])
    features = datasets.Features({"of": feature})
    return HFEagerSource.from_dataset(datasets.Dataset.from_dict({"of": rows}, features=features))


@pytest.mark.parametrize("nested", [False, True])
def test_classes_of_other_names_are_refused(nested):
    ours, same = labelled(["cat", "dog"], nested), labelled(["cat", "dog"], nested)
    assert MixedSource([ours, same], [1, 1]).features == ours.features
    column = "of.label" if nested else "of"
    with pytest.raises(ValueError, match=rf"column '{column}' are \['cat', 'dog'\] in source 0"):
        MixedSource([ours, labelled(["dog", "cat"], nested)], [1, 1])
    stream = HFStreamingSource.from_dataset(
        datasets.Dataset.from_dict(
            {"of": [0]}, features=datasets.Features({"of": datasets.ClassLabel(names=["dog"])})
        )
    )
    if not nested:
        with pytest.raises(ValueError, match="one number would mean two classes"):
            MixedSource([ours, stream], [1, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"index": -1},
        {"index": "7"},
        {"epoch": 1},
        {"ups": [0]},
        {"stop": "first"},
        {"sources": 3},
        {"sources": [{}, {}]},
        {"weights": 1.0},
    ],
)
def test_a_state_that_no_mixture_has_is_refused(change):
    mixed = mixture()
    mixed.get_batch(30)
    state = json.loads(json.dumps(mixed.get_state()))
    with pytest.raises(ValueError, match=r"[Ss]tate|epoch|index"):
        mixed.set_state(state | change)
    assert mixed.get_state() == state


def test_a_state_brings_the_order_of_the_sources_along():
    def make(seed):
        source = MemorySource(MemorySourceConfig(shuffle=True, seed=seed), {"x": np.arange(70)})
        return MixedSource([source, memory(100)], [1, 1])

    first, other = make(1), make(2)
    first.get_batch(33)
    other.set_state(first.get_state())
    assert other.get_batch(50)["x"].tolist() == first.get_batch(50)["x"].tolist()


def test_a_mixture_is_a_source_of_another():
    inner = MixedSource([memory(0), memory(100)], weights=[1, 1])
    outer = MixedSource([inner, streamed(1000)], weights=[1, 1])
    x = np.asarray(outer.get_batch(400)["x"])
    assert [int(np.sum(x // 100 == hundred)) for hundred in (0, 1)] == [100, 100]
    state = json.loads(json.dumps(outer.get_state()))
    expected = outer.get_batch(60)["x"].tolist()
    again = MixedSource(
        [MixedSource([memory(0), memory(100)], weights=[1, 1]), streamed(1000)], weights=[1, 1]
    )
    again.set_state(state)
    assert again.get_batch(60)["x"].tolist() == expected
