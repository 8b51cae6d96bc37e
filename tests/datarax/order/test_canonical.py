"""Canonical shards: each record once an epoch, in an order that no number of devices changes."""

import functools
import itertools
import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import HFEagerSource, MemorySource, MemorySourceConfig, Pipeline
from datarax.order.canonical import Deal
from trainers.data.held import deal_out

SEEDS = st.integers(0, 2**32 - 1)


# A deal of its own length is compiled anew, which takes seconds: few, at the edges, of many seeds.
DEALS = [Deal(*sizes) for sizes in ((1, 1), (12, 12), (50, 4), (300, 7))]
DEALS += [Deal(50, 4, shuffle=False), Deal(300, 12, shuffle=False)]


@functools.cache
def compiled(deal):
    """The deal's records and places, compiled once for all tests."""
    return jax.jit(deal.record), jax.jit(deal.index_in_shard)


def source(n=50, shuffle=True):
    data = {"id": np.arange(n), "x": np.arange(n, dtype=np.float32)}
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=3), data)


def pipeline(shards=4, batch_size=8, stages=(), *, n=50, shuffle=True, **options):
    return Pipeline(
        source=source(n, shuffle),
        stages=list(stages),
        batch_size=batch_size,
        shards=shards,
        **options,
    )


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches]).tolist()


def noise(batch, key):
    return {**batch, "noise": jax.vmap(jax.random.normal)(key)}


# --- the deal ----------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_whatever_is_dealt_an_epoch_holds_each_record_once(data):
    shards = data.draw(st.integers(1, 12))
    length = data.draw(st.integers(shards, 300))
    deal = Deal(length, shards, shuffle=data.draw(st.booleans()))
    position, record = np.arange(length), jax.jit(deal.record)
    for seed in data.draw(st.lists(SEEDS, min_size=2, max_size=4)):
        np.testing.assert_array_equal(np.sort(record(position, np.uint32(seed))), position)


@pytest.mark.parametrize("deal", DEALS, ids=str)
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS)
def test_an_epoch_holds_each_record_once(deal, seed):
    position = np.arange(deal.num_records)
    records = np.asarray(compiled(deal)[0](position, np.uint32(seed)))
    assert records.dtype == np.int32
    np.testing.assert_array_equal(np.sort(records), position)


@pytest.mark.parametrize("deal", DEALS, ids=str)
def test_shards_are_even_and_a_position_is_a_slot_of_one(deal):
    shards = [deal.rows(shard) for shard in range(deal.shards)]
    sizes = np.array([len(rows) for rows in shards])
    assert sizes.max() == deal.slots
    assert sizes.max() - sizes.min() <= 1
    position = np.arange(deal.num_records)
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), position)

    shard, slot = position % deal.shards, position // deal.shards
    record, place = compiled(deal)
    for seed in (None, *np.random.default_rng(0).integers(0, 2**32, 5, dtype=np.uint32)):
        places = np.asarray(place(shard, slot, seed))
        assert (places < sizes[shard]).all()
        expected = [shards[s][p] for s, p in zip(shard, places, strict=True)]
        np.testing.assert_array_equal(np.asarray(record(position, seed)), expected)
        again = place(shard, slot + sizes[shard], seed)  # past its end a shard begins again
        np.testing.assert_array_equal(again, places)


@settings(deadline=None, max_examples=30)
@given(shards=st.integers(1, 12), more=st.integers(0, 10**6))
def test_the_stored_order_is_the_records_one_after_the_other(shards, more):
    stored = Deal(shards + more, shards, shuffle=False)
    position = np.arange(1000) % stored.num_records
    np.testing.assert_array_equal(stored.record(position), position)


@pytest.mark.parametrize(("num_records", "shards"), [(2**31, 8), (2**31 - 1, 7), (10**6 + 3, 64)])
def test_long_orders_do_not_overflow(num_records, shards):
    deal = Deal(num_records, shards)
    position = num_records - 1 - np.arange(1000, dtype=np.uint32)
    records = np.asarray(deal.record(position, np.uint32(5)))
    assert records.min() >= 0
    assert len(np.unique(records)) == 1000
    stored = Deal(num_records, shards, shuffle=False).record(position)
    np.testing.assert_array_equal(stored, position.astype(np.int32))


def test_the_deal_is_no_part_of_an_epoch_nor_of_a_seed():
    """Else the rows of a device would have to move."""
    deal = DEALS[2]
    rows = [sorted(deal.rows(shard)) for shard in range(4)]
    for seed in (0, 1, 2**32 - 1):
        records = np.asarray(compiled(deal)[0](np.arange(50), np.uint32(seed)))
        assert [sorted(records[shard::4]) for shard in range(4)] == rows


def test_fewer_records_than_shards_are_refused():
    with pytest.raises(ValueError, match=r"shards=8, but there are 7 records.*Use fewer shards"):
        Deal(7, 8)
    assert Deal(8, 8).slots == 1


# --- how random it is --------------------------------------------------------------------------


def _correlation(one, other):
    return abs(np.corrcoef(one, other)[0, 1])


def test_epochs_and_shards_differ_and_neighbours_do_not_stay_together():
    deal = Deal(40_000, 8)
    epochs = [np.asarray(deal.record(np.arange(40_000), np.uint32(seed))) for seed in range(3)]
    for one, other in itertools.pairwise(epochs):
        assert (one == other).mean() < 0.001
        assert _correlation(one, other) < 0.02
    for lag in (1, 2, 8, 16):  # 8: the next one of the same shard
        assert _correlation(epochs[0][:-lag], epochs[0][lag:]) < 0.02
    slot = np.arange(5000)
    places = [
        np.asarray(deal.index_in_shard(shard, slot, np.uint32(0)), float) for shard in range(8)
    ]
    for one, other in itertools.pairwise(places):
        assert _correlation(one, other) < 0.05
    # Nor are the records of a shard neighbours.
    assert _correlation(deal.rows(0)[:-1], deal.rows(0)[1:]) < 0.05


@pytest.mark.parametrize(
    "size", [3, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8))]
)
def test_every_place_of_a_short_shard_comes_first_as_often(size):
    deal = Deal(4 * size, 4)
    seeds = np.arange(8000, dtype=np.uint32)
    for shard in range(4):
        first = np.asarray(deal.index_in_shard(np.uint32(shard), np.uint32(0), seeds))
        counts = np.bincount(first, minlength=size)
        spread = (((counts - 8000 / size) ** 2) / (8000 / size)).sum()
        assert spread < size - 1 + 6 * np.sqrt(2 * size)  # chi-squared, six deviations up


# --- in a program ------------------------------------------------------------------------------


def test_traces_without_a_sort_or_anything_as_long_as_the_data():
    def records(start, seed):
        return Deal(1_000_003, 8).record(start + jnp.arange(128), seed)

    jaxpr = str(jax.make_jaxpr(records)(jnp.int32(5), jnp.uint32(1)))
    assert "sort" not in jaxpr
    for length in (1_000_003, Deal(1_000_003, 8).slots):
        assert f"{length}]" not in jaxpr


def test_the_seed_may_differ_by_position():
    record = jax.jit(Deal(100, 4).record)
    seeds = jnp.arange(10, dtype=jnp.uint32)
    got = record(jnp.full(10, 7), seeds)
    want = [int(record(7, np.uint32(seed))) for seed in range(10)]
    np.testing.assert_array_equal(np.asarray(got), want)


# --- columns on devices ------------------------------------------------------------------------


def test_the_columns_lie_dealt_and_a_short_shard_is_filled_up():
    deal = Deal(50, 4)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    columns = deal_out(source(50), deal, here)
    assert columns["id"].shape == (4, 13)
    for shard in range(4):
        rows, held = deal.rows(shard), np.asarray(columns["id"][shard])
        assert held[: len(rows)].tolist() == rows.tolist()
        assert held[len(rows) :].tolist() == rows[: 13 - len(rows)].tolist()


# --- a pipeline --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shards", "batch_size", "n", "shuffle"),
    [
        (6, 24, 50, True),
        (6, 6, 6, True),
        (4, 8, 50, False),
        pytest.param(1, 3, 7, True, marks=pytest.mark.slow),
    ],
)
def test_each_epoch_of_a_pipeline_holds_each_record_once(shards, batch_size, n, shuffle):
    batches = pipeline(shards, batch_size, n=n, shuffle=shuffle)
    for _ in range(2):
        assert sorted(got := ids(batches)) == list(range(n))
        assert shuffle or got == list(range(n))


@pytest.mark.parametrize(
    ("n", "others"),
    [(50, (8,)), *(pytest.param(*of, marks=pytest.mark.slow) for of in ((48, (24,)), (50, (64,))))],
)
def test_the_order_does_not_depend_on_the_batch_size(n, others):
    def epochs(batch_size):
        batches = pipeline(4, batch_size, n=n)
        return [ids(batches) for _ in range(2)]

    whole = epochs(4)
    assert whole[0] != whole[1]
    assert all(epochs(batch_size) == whole for batch_size in others)


def test_shards_make_another_order_and_one_shard_makes_none():
    assert ids(pipeline(4)) != ids(pipeline(8))
    assert ids(pipeline(1)) == ids(Pipeline(source=source(), stages=[], batch_size=8))


@pytest.mark.parametrize("n", [pytest.param(48, marks=pytest.mark.slow), 50])
def test_steps_a_scan_and_an_iteration_give_the_same_records(n):
    iterated = pipeline(n=n)
    expected = ids(iterated) + ids(iterated) + ids(iterated)
    stepped = pipeline(n=n)
    assert ids([stepped.step() for _ in range(3 * n // 8)]) == expected[: 3 * n // 8 * 8]
    scanned = pipeline(n=n).scan(lambda batch: batch["id"], length=3 * n // 8)
    assert scanned.reshape(-1).tolist() == expected[: 3 * n // 8 * 8]
    traced = nnx.jit(lambda batches: batches.step()["id"])(pipeline(n=n))
    assert traced.tolist() == expected[:8]


def test_a_records_draw_depends_on_nothing_but_its_place():
    def draws(batch_size):
        batches = pipeline(4, batch_size, [noise], rngs=nnx.Rngs(7))
        return {
            (epoch, int(i)): float(x)
            for epoch in range(2)
            for batch in batches
            for i, x in zip(batch["id"], batch["noise"], strict=True)
        }

    whole = draws(4)
    assert len(set(whole.values())) == 100
    assert draws(12) == whole


def test_text_rides_along():
    rows = datasets.Dataset.from_dict({"id": range(10), "text": [f"row {i}" for i in range(10)]})
    texts = HFEagerSource.from_dataset(rows, shuffle=True, seed=3)
    seen = []
    for batch in Pipeline(source=texts, stages=[], batch_size=4, shards=4):
        assert batch["text"].tolist() == [f"row {i}" for i in batch["id"]]
        seen += batch["id"].tolist()
    assert sorted(seen) == list(range(10))


def test_the_remainder_can_be_left_out():
    batches = pipeline(drop_remainder=True)
    assert len(batches) == 6
    assert ids(batches) == ids(pipeline())[:48]


# --- its state ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut", [0, 3, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 4, 5, 6))]
)
def test_a_for_goes_on_where_the_state_says(cut):
    whole = pipeline()
    expected = ids(whole) + ids(whole)
    batches = pipeline()
    begun = iter(batches)
    seen = [next(begun) for _ in range(cut)]
    state = json.loads(json.dumps(batches.get_state()))
    assert state["order"] == {"shuffle": True, "seed": 3, "shards": 4}
    other = pipeline()
    other.set_state(state)
    assert other.get_state() == state
    rest = ids(other)
    position = len(ids(seen)) if seen else 0
    assert rest == expected[position : position + len(rest)]
    assert position + len(rest) in (50, 100)


def test_a_state_without_shards_is_as_it_was():
    assert pipeline(1).get_state() == source().get_state()


@pytest.mark.parametrize(("given", "own"), [(4, 8), (1, 4), (4, 1)])
def test_the_state_of_another_number_of_shards_is_refused(given, own):
    words = rf"with shards={given}, this one has shards={own}: write shards={given}"
    batches = pipeline(own)
    with pytest.raises(ValueError, match=words):
        batches.set_state(pipeline(given).get_state())
    assert ids(batches) == ids(pipeline(own))  # it has not moved


def test_a_source_refuses_the_state_of_a_pipeline_with_shards():
    with pytest.raises(ValueError, match=r"Restore it with Pipeline\(..., shards=4\)"):
        source().set_state(pipeline(4).get_state())


@pytest.mark.parametrize("state", [3, {"order": 3}, {}])
def test_what_is_no_state_is_refused_as_ever(state):
    with pytest.raises((TypeError, ValueError), match="state"):
        pipeline().set_state(state)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "fitting"), [(3, "8"), (9, "8.*16"), (50, "48.*56")])
def test_a_batch_size_that_is_no_multiple_is_refused(batch_size, fitting):
    words = rf"batch_size={batch_size} is no multiple of shards=8: .*Write batch_size={fitting}, or"
    with pytest.raises(ValueError, match=words):
        pipeline(8, batch_size)


def test_more_shards_than_records_are_refused():
    with pytest.raises(ValueError, match="shards=64, but there are 50 records"):
        pipeline(64, 64)


def test_no_shard_is_refused():
    with pytest.raises(ValueError, match="shards=0"):
        pipeline(0)
