"""The order of records: Grain's bit for bit, a permutation everywhere, cheap inside a program."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grain.experimental import index_shuffle as grain_index_shuffle

from datarax.order import epoch_seed, key_seed, run_on, window
from datarax.order.permutation import index_shuffle

SEEDS = [0, 1, 42, 2**31, 2**32 - 1]


def positions(num_records):
    """All positions of a short permutation; the ends and a sample of a long one."""
    if num_records <= 300:
        return np.arange(num_records)
    sample = np.random.default_rng(0).integers(0, num_records, 200)
    return np.unique(np.concatenate([np.arange(50), num_records - 1 - np.arange(50), sample]))


LENGTHS = [1, 2, 10, 257, 1797, 60_000, 65_536, 65_538, 131_073, 10**6, 2**31]
SELDOM = [
    pytest.param(num_records, 8, marks=pytest.mark.slow) for num_records in (3, 65_535, 2**31 - 1)
]


@pytest.mark.parametrize(
    ("num_records", "rounds"),
    [(n, 8) for n in LENGTHS] + SELDOM + [(257, 4), (60_000, 4), (60_000, 6), (60_000, 16)],
)
def test_equals_grain_bit_for_bit(num_records, rounds):
    index = positions(num_records)
    shuffle = jax.jit(lambda i, s: index_shuffle(i, num_records=num_records, seed=s, rounds=rounds))
    for seed in SEEDS:
        want = [
            grain_index_shuffle(int(i), max_index=num_records - 1, seed=seed, rounds=rounds)
            for i in index
        ]
        got = shuffle(index.astype(np.uint32), np.uint32(seed))
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize(
    "num_records", [1000, *(pytest.param(n, marks=pytest.mark.slow) for n in (10, 60_000))]
)
def test_x64_changes_nothing(num_records):
    index = np.arange(200)
    want = index_shuffle(index, num_records=num_records, seed=3)
    with jax.enable_x64(True):
        got = index_shuffle(index, num_records=num_records, seed=3)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "num_records", [2**16 + 1, pytest.param(2**18 + 1, marks=pytest.mark.slow)]
)
def test_a_permutation_where_grains_is_none(num_records):
    index = np.arange(num_records)
    ours = index_shuffle(index, num_records=num_records, seed=42)
    np.testing.assert_array_equal(np.sort(np.asarray(ours)), index)
    last = num_records - 1
    grain = [grain_index_shuffle(i, max_index=last, seed=42, rounds=8) for i in range(num_records)]
    assert last not in grain  # the reason for the difference: Grain never visits the last record


@pytest.mark.parametrize(
    "num_records", [7, 4999, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 100, 257))]
)
def test_a_permutation_of_any_length(num_records):
    index = np.arange(num_records)
    for seed in [0, 2**32 - 1, *np.random.default_rng(num_records).integers(0, 2**32, 20)]:
        shuffled = index_shuffle(index, num_records=num_records, seed=seed)
        np.testing.assert_array_equal(np.sort(np.asarray(shuffled)), index)


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (1, (100,)),
        (5, (3,)),
        (128, (129,)),
        (1024, (128,)),
        *(
            pytest.param(
                size,
                (2, 3, 10, 17, 100, 127, 128, 129, 143, 145, 200, 500),
                marks=pytest.mark.slow,
            )
            for size in (1, 5, 128, 1024)
        ),
    ],
)
def test_few_records_have_the_same_order_however_it_is_found(size, lengths):
    for num_records in lengths:
        want = [
            grain_index_shuffle(i, max_index=num_records - 1, seed=7, rounds=8)
            for i in range(num_records)
        ]
        got = window(3, size, num_records=num_records, seed=np.uint32(7))
        np.testing.assert_array_equal(got, np.take(want, np.arange(3, 3 + size), mode="wrap"))


@pytest.mark.parametrize(
    "num_records", [10, 5000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 300))]
)
def test_vectorised_over_seeds_and_starts(num_records):
    def shuffled(start, seed):
        return window(start, 64, num_records=num_records, seed=seed)

    starts, seeds = np.arange(5) * 7, np.arange(5, dtype=np.uint32) + 3
    want = [shuffled(start, seed) for start, seed in zip(starts, seeds, strict=True)]
    np.testing.assert_array_equal(jax.jit(jax.vmap(shuffled))(starts, seeds), want)


SHARDED = """
import functools, jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from datarax import order

mesh = jax.make_mesh((4,), ("data",))

for num_records in (10, 100, 300, 5000):
    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P("data"))
    def spread(t):
        start = t * 64 + jax.lax.axis_index("data") * 16
        return order.window(start, 16, num_records=num_records, seed=np.uint32(3))

    t = jnp.int32(2)
    want = order.window(128, 64, num_records=num_records, seed=np.uint32(3))
    np.testing.assert_array_equal(spread(t), want)
    program = spread.lower(t).compile().as_text()
    assert not any(word in program for word in ("all-gather", "all-reduce", "all-to-all"))
"""


@pytest.mark.slow
def test_each_device_finds_its_own_part_of_a_batch():
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "error", "-c", SHARDED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_neighbours_do_not_stay_together():
    shuffled = np.asarray(index_shuffle(np.arange(60_000), num_records=60_000, seed=0), float)
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.02


def test_traces_without_a_sort_or_anything_as_long_as_the_data():
    def shuffled(start, seed):
        return window(start, 128, num_records=1_000_003, seed=seed)

    jaxpr = str(jax.make_jaxpr(shuffled)(jnp.int32(5), jnp.uint32(1)))
    assert "sort[" not in jaxpr
    assert "1000003]" not in jaxpr


@pytest.mark.parametrize("num_records", [300, 1797, 10_000, 65_535])
def test_a_batch_of_a_short_permutation_holds_nothing_longer_than_itself(num_records):
    def shuffled(start, seed):
        return window(start, 128, num_records=num_records, seed=seed)

    jaxpr = str(jax.make_jaxpr(shuffled)(jnp.int32(5), jnp.uint32(1)))
    assert "sort[" not in jaxpr
    assert max(int(size) for size in re.findall(r"[iub]\d*\w*\[(\d+)\]", jaxpr)) <= 128


def test_the_seed_may_be_an_array():
    seeds = jnp.arange(4, dtype=jnp.uint32)
    got = index_shuffle(jnp.full(4, 7), num_records=100, seed=seeds)
    want = [int(index_shuffle(7, num_records=100, seed=s)) for s in range(4)]
    np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_records": 0, "seed": 0}, "num_records=0"),
        ({"num_records": 2**31 + 1, "seed": 0}, "from 1 to 2147483648"),
        ({"num_records": 5, "seed": -1}, "seed=-1"),
        ({"num_records": 5, "seed": 2**32}, "from 0 to 4294967295"),
        ({"num_records": 5, "seed": 0, "rounds": 5}, "even number from 4 to 1024"),
    ],
)
def test_what_is_out_of_range_is_said(arguments, words):
    with pytest.raises(ValueError, match=words):
        index_shuffle(0, **arguments)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
def test_the_key_of_a_seed_is_that_seed(seed, impl):
    key = jax.random.key(np.uint32(seed), impl=impl)
    assert int(key_seed(key)) == seed
    assert int(key_seed(jax.random.key_data(key))) == seed


def test_other_keys_give_other_seeds():
    keys = jax.random.split(jax.random.key(0), 1000)
    seeds = np.asarray(jax.vmap(key_seed)(keys))
    assert len(np.unique(seeds)) == 1000


def test_a_key_that_is_none_is_said():
    with pytest.raises(TypeError, match=r"jax\.random\.key\(0\)"):
        key_seed(jnp.arange(3))


def test_epochs_wrap_at_the_largest_seed():
    assert int(epoch_seed(2**32 - 1, 1)) == 0
    assert int(epoch_seed(42, 3)) == 45


def test_a_window_wraps_in_its_own_permutation():
    whole = np.asarray(window(0, 10, num_records=10, seed=3))
    np.testing.assert_array_equal(window(7, 6, num_records=10, seed=3), whole[[7, 8, 9, 0, 1, 2]])
    np.testing.assert_array_equal(window(27, 6, num_records=10, seed=3), whole[[7, 8, 9, 0, 1, 2]])
    np.testing.assert_array_equal(window(8, 4, num_records=10), [8, 9, 0, 1])


def test_running_on_enters_the_next_epochs():
    orders = [np.asarray(window(0, 10, num_records=10, seed=3 + e)) for e in range(4)]
    want = np.concatenate(orders)[17:37]
    got = run_on(1, 7, 20, num_records=10, seed=3)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(run_on(0, 8, 4, num_records=10), [8, 9, 0, 1])


def test_positions_near_the_largest_length_do_not_overflow():
    n = 2**31
    got = np.asarray(window(jnp.int32(n - 2), 4, num_records=n))
    np.testing.assert_array_equal(got, [n - 2, n - 1, 0, 1])
