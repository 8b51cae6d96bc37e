"""The same batches on any number of devices, formed on each without a collective."""

import functools
import itertools
import re

import jax
import numpy as np
import pytest

from datarax import MemorySource, MixedSource, Pipeline
from datarax.stages import Map, RandomCrop, RandomFlip
from tests.support.devices import trainer
from tests.support.models import MLP, images, memory, points

COLLECTIVE = re.compile("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")
SLOW = pytest.mark.slow
OFTEN = [(101, True, 1, 4), (101, True, 8, 8)]
LAYOUTS = [
    pytest.param(*layout, marks=[] if layout in OFTEN else SLOW)
    for layout in itertools.product((96, 101), (True, False), (1, 8), (2, 4, 8))
]


def noise(batch, key):
    extra = jax.vmap(lambda key: jax.random.normal(key, (4,)))(key)
    return {**batch, "x": batch["x"] + extra}


def points_of(n, shuffle, shards):
    source = memory(points(n), shuffle=shuffle)
    return Pipeline(source=source, stages=[noise], batch_size=16, shards=shards)


def image_pipeline(shards):
    source = memory(images(64) | {"id": np.arange(64, dtype=np.int32)}, shuffle=True)
    stages = [RandomFlip("image"), RandomCrop("image", 2), Map("image", lambda x: x / 255)]
    return Pipeline(source=source, stages=stages, batch_size=16, shards=shards)


def epochs(trainer, count=2):
    """Returns the batches of some epochs, by column, as bytes, and the ids of each epoch."""
    steps = trainer.steps_per_epoch
    batches = [trainer.batch_at(t) for t in range(count * steps)]
    seen = [
        np.concatenate([batch["id"] for batch in batches[e * steps : (e + 1) * steps]])
        for e in range(count)
    ]
    return [{name: x.tobytes() for name, x in batch.items()} for batch in batches], seen


@pytest.mark.parametrize(("n", "shuffle", "shards", "devices"), LAYOUTS)
def test_batches_are_byte_identical_on_any_number_of_devices(n, shuffle, shards, devices):
    expected, seen = epochs(trainer(MLP(), 1, points_of(n, shuffle, shards)))
    for ids in seen:
        assert sorted(ids) == list(range(n))
    assert (seen[0].tolist() == seen[1].tolist()) == (not shuffle)
    assert epochs(trainer(MLP(), devices, points_of(n, shuffle, shards)))[0] == expected


@pytest.mark.parametrize("devices", [*(pytest.param(n, marks=SLOW) for n in (2, 4)), 8])
@pytest.mark.parametrize(
    "name",
    [
        "balanced of a fold",
        "mixture",
        *(pytest.param(name, marks=SLOW) for name in ("fold", "weighted")),
    ],
)
def test_batches_of_a_view_are_the_same_on_any_number_of_devices(name, devices):
    def made():
        source = memory(points(101), shuffle=True)
        view = {
            "fold": lambda: source.fold(0, of=4, stratify="label")[0],
            "balanced of a fold": lambda: source.fold(0, of=4)[0].balanced("label"),
            "weighted": lambda: source.weighted(np.arange(101)),
            "mixture": lambda: MixedSource(
                [source.balanced("label"), source.select(slice(0, 40))], [(0, [2, 1]), (50, [1, 2])]
            ),
        }[name]()
        shards = 1 if name == "mixture" else 8
        return Pipeline(source=view, stages=[noise], batch_size=16, shards=shards)

    def batches(devices):
        one = trainer(MLP(), devices, made())
        return [{k: x.tobytes() for k, x in one.batch_at(t).items()} for t in range(10)]

    assert batches(devices) == batches(1)


@pytest.mark.parametrize("shards", [pytest.param(1, marks=SLOW), 8])
def test_a_trainers_batches_are_those_that_its_pipeline_iterates(shards):
    pipeline = points_of(101, True, shards)
    one = trainer(MLP(), 8, pipeline)
    iterated = [{k: np.asarray(v) for k, v in batch.items()} for batch in pipeline]
    for t, batch in enumerate(iterated):
        found = one.batch_at(t)
        for name, column in batch.items():
            np.testing.assert_array_equal(found[name], column)


@pytest.mark.parametrize(
    ("make", "shards"),
    [
        (image_pipeline, 8),
        pytest.param(functools.partial(points_of, 101, True), 1, marks=SLOW),
        pytest.param(functools.partial(points_of, 101, True), 8, marks=SLOW),
        pytest.param(image_pipeline, 1, marks=SLOW),
    ],
)
def test_forming_a_batch_takes_no_collective_and_the_data_is_an_argument(make, shards):
    one = trainer(MLP(), 8, make(shards), loss=lambda model, batch: 0.0 * batch["id"])
    batches = one._batches
    rows = jax.jit(batches.rows)
    arguments = batches.data, batches.stages, np.int32(0)
    assert not COLLECTIVE.search(rows.lower(*arguments).compile().as_text())
    constants = rows.trace(*arguments).jaxpr.consts
    assert sum(np.size(constant) for constant in constants) < 64


# --- where the data is ---------------------------------------------------------------------------


def test_with_shards_a_device_holds_its_share_of_the_rows_and_no_more():
    one = trainer(MLP(), 8, shards=8)
    columns = one._batches.data[0]
    for column in columns.values():
        for part in column.addressable_shards:
            assert part.data.shape[:2] == (1, 13)  # 101 rows in 8 shards
    held = np.concatenate([np.unique(part.data) for part in columns["id"].addressable_shards])
    assert sorted(held) == list(range(101))


def test_without_shards_a_device_holds_each_row_once():
    source = memory(points(101), shuffle=True)
    one = trainer(MLP(), 8, source)
    other = trainer(MLP(), 8, source)  # of the same source: no copy of its own
    first = jax.devices()[0]
    for name in ("x", "label", "id"):
        pointers = [
            {part.device: part.data.unsafe_buffer_pointer() for part in column.addressable_shards}
            for column in (t._batches._held.columns[name] for t in (one, other))
        ]
        assert pointers[0] == pointers[1]
        assert pointers[0].keys() == set(jax.devices())
        assert source.data[name].devices() == {first}
        assert source.data[name].unsafe_buffer_pointer() == pointers[0][first]


@pytest.mark.parametrize("shards", [1, pytest.param(8, marks=SLOW)])
def test_a_source_is_usable_beside_its_trainer_and_after(shards):
    source = memory(points(101), shuffle=True)
    expected = np.asarray(source.get_batch_at(0, 5, jax.random.key(7))["x"])
    trainer(MLP(), 8, source, shards=shards, steps=2).fit()
    np.testing.assert_array_equal(source.get_batch_at(0, 5, jax.random.key(7))["x"], expected)
    assert isinstance(source, MemorySource)
    assert source.get_state() == memory(points(101), shuffle=True).get_state()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shards": 8, "batch_size": 20}, r"batch_size=20 is no multiple of shards=8"),
        ({"batch_size": 20}, r"batch_size=20 .* over 8 devices: use one of 1, 2, 4, 5, 10, 20 dev"),
        ({"shards": 6, "batch_size": 24}, r"shards=6 .* over 8 devices: use one of 1, 2, 3, 6 dev"),
        ({"shards": 4}, r"shards=4 .* use one of 1, 2, 4 devices \(mesh=\), or another shards"),
        ({"accumulate": 4}, r"accumulate=4 slices of batch_size=16 .* use a multiple of 32"),
        ({"shards": 128, "batch_size": 128}, r"shards=128, but there are 101 records"),
    ],
)
def test_what_cannot_be_spread_evenly_is_refused_and_what_can_is_listed(arguments, words):
    with pytest.raises(ValueError, match=words):
        trainer(MLP(), 8, **arguments)


def test_an_evaluation_pipeline_that_cannot_be_spread_is_refused():
    source = Pipeline(source=memory(points(30)), stages=[], batch_size=10)
    with pytest.raises(ValueError, match="batch_size=10 cannot be spread evenly over 8 devices"):
        trainer(MLP(), 8, eval_source=source)
