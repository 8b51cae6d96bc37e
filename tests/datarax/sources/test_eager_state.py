"""The order of eager sources: iteration, position and state."""

import json

import numpy as np
import pytest

from tests.support.sources import N, epoch_order, ids, memory

# --- get_batch and iteration ------------------------------------------------------------------


def test_get_batch_runs_on_into_the_next_epochs():
    source = memory(shuffle=True)
    got = np.concatenate([source.get_batch(4)["id"] for _ in range(10)])
    want = [i for epoch in range(4) for i in epoch_order(epoch)]
    assert got.tolist() == want
    assert (source.epoch.get_value(), source.index.get_value()) == (4, 0)


def test_a_batch_may_be_longer_than_the_data():
    batch = memory(shuffle=True).get_batch(25)
    want = [i for epoch in range(3) for i in epoch_order(epoch)][:25]
    assert batch["id"].tolist() == want


def test_each_for_is_the_next_epoch():
    source = memory(shuffle=True)
    for epoch in range(3):
        assert ids(source) == epoch_order(epoch)


def test_after_a_break_a_for_begins_the_next_epoch():
    source = memory(shuffle=True)
    for _ in source:
        break
    assert ids(source) == epoch_order(1)


def test_the_position_moves_with_the_loop():
    source = memory()
    for i, _ in enumerate(source):
        position = (source.epoch.get_value(), source.index.get_value())
        assert position == ((0, i + 1) if i < N - 1 else (1, 0))


def test_iterating_a_long_source_visits_every_record_once():
    source = memory(shuffle=True, n=1000)
    assert sorted(ids(source)) == list(range(1000))


# --- state -------------------------------------------------------------------------------------


def test_a_state_is_small_and_goes_through_json():
    state = memory(shuffle=True, n=5000).get_state()
    assert len(json.dumps(state)) < 400
    assert set(state) == {"version", "epoch", "index", "order", "fingerprint"}


@pytest.mark.parametrize("cut", [0, 1, 7, 9, 10, 13, 20])
def test_a_for_goes_on_where_the_state_says(cut):
    source = memory(shuffle=True)
    source.get_batch(cut) if cut else None
    state = json.loads(json.dumps(source.get_state()))
    other = memory(shuffle=True)
    other.set_state(state)
    assert ids(other) == epoch_order(cut // N)[cut % N :]
    assert ids(other) == epoch_order(cut // N + 1)


def test_a_state_brings_its_order_along():
    source = memory(shuffle=True)
    source.reset(seed=8)
    source.get_batch(3)
    other = memory(shuffle=False)
    other.set_state(source.get_state())
    np.testing.assert_array_equal(other.get_batch(5)["id"], source.get_batch(5)["id"])


def test_the_state_of_other_data_is_refused_with_both_fingerprints():
    source, other = memory(), memory(n=11)
    with pytest.raises(ValueError, match=source.fingerprint) as error:
        source.set_state(other.get_state())
    assert other.fingerprint in str(error.value)


@pytest.mark.parametrize("state", [None, 3, [("epoch", 0)]])
def test_a_state_that_is_no_dict_is_refused(state):
    with pytest.raises(TypeError, match="get_state"):
        memory().set_state(state)


@pytest.mark.parametrize(
    "change",
    [{"version": 99}, {"epoch": -1}, {"index": 11}, {"index": "1"}, {"order": {}}, {"more": 1}],
)
def test_a_state_of_another_structure_is_refused(change):
    source = memory()
    with pytest.raises(ValueError, match="state"):
        source.set_state({**source.get_state(), **change})


def test_reset_goes_back_and_reseeds():
    source = memory(shuffle=True)
    source.get_batch(13)
    source.reset()
    assert ids(source) == epoch_order(0)
    source.reset(seed=5)
    assert ids(source) == epoch_order(0, seed=5)


def test_random_order_can_be_turned_off():
    source = memory(shuffle=True)
    source.set_random_order(False)
    assert not source.is_random_order
    assert ids(source) == list(range(N))
