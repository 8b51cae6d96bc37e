"""Eager sources: batches by position, host columns and copies."""

import io
import pickle

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from datarax import HFEagerConfig, HFEagerSource
from tests.support.sources import N, epoch_order, ids, memory, texts


def picture(size):
    buffer = io.BytesIO()
    PIL.Image.new("L", (size, size), size).save(buffer, "PNG")
    return buffer.getvalue()


# --- get_batch_at ------------------------------------------------------------------------------


def test_a_batch_by_position_is_jax_arrays_in_their_own_dtype():
    batch = memory().get_batch_at(3, 4)
    assert batch["id"].tolist() == [3, 4, 5, 6]
    assert batch["id"].dtype == jnp.int32
    assert batch["nested"]["x"].dtype == jnp.float32
    assert batch["nested"]["x"].tolist() == [1.5, 2.0, 2.5, 3.0]


def test_the_epochs_key_names_its_order():
    source = memory(shuffle=True)
    for epoch in range(3):
        batch = source.get_batch_at(0, N, jax.random.key(3 + epoch))
        assert batch["id"].tolist() == epoch_order(epoch)


def test_it_wraps_in_the_same_permutation():
    source = memory(shuffle=True)
    order = epoch_order(0)
    batch = source.get_batch_at(8, 5, jax.random.key(3))
    assert batch["id"].tolist() == [order[i] for i in (8, 9, 0, 1, 2)]


@pytest.mark.parametrize("make", [pytest.param(memory, marks=pytest.mark.slow), texts])
def test_it_traces_everywhere_with_a_traced_start_and_key(make):
    source = make(shuffle=True)
    want = np.asarray([epoch_order(0)[i : i + 2] for i in range(0, N, 2)])
    starts = jnp.arange(0, N, 2)
    key = jax.random.key(3)

    def ids_at(start, key):
        return source.get_batch_at(start, 2, key)["id"]

    np.testing.assert_array_equal(jax.vmap(ids_at, (0, None))(starts, key), want)
    np.testing.assert_array_equal(jax.lax.map(lambda s: ids_at(s, key), starts), want)
    np.testing.assert_array_equal(jax.jit(ids_at)(4, key), want[2])

    def body(i, total):
        return total + ids_at(2 * i, key).sum()

    assert int(jax.lax.fori_loop(0, 5, body, 0)) == sum(range(N))
    looped = jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, body(*c)), (0, 0))
    assert int(looped[1]) == sum(range(N))


def test_the_source_may_be_an_argument_of_a_compiled_function():
    source = texts(shuffle=True)
    got = jax.jit(lambda source, key: source.get_batch_at(0, N, key)["id"])(
        source, jax.random.key(3)
    )
    assert got.tolist() == epoch_order(0)
    assert isinstance(source.data["id"], jax.Array)  # and no tracer was left behind


def test_closing_over_an_untouched_source_leaves_no_tracer_behind():
    source = memory()
    jax.jit(lambda start: source.get_batch_at(start, 2))(0)
    assert source.get_batch_at(1, 2)["id"].tolist() == [1, 2]


def test_a_compiled_function_is_told_to_ask_by_position():
    with pytest.raises(TypeError, match=r"get_batch_at\(start, size, key\)"):
        nnx.jit(lambda source: source.get_batch(2)["id"])(memory())
    with pytest.raises(TypeError, match="expected an integer, found float32"):
        memory().get_batch_at(1.5, 2)


def test_in_random_order_it_needs_a_key():
    with pytest.raises(ValueError, match=r"key=jax\.random\.key\(seed \+ epoch\)"):
        memory(shuffle=True).get_batch_at(0, 2)


def test_in_stored_order_the_key_is_ignored():
    assert memory().get_batch_at(0, 2, jax.random.key(9))["id"].tolist() == [0, 1]


def test_it_changes_nothing():
    source = memory(shuffle=True)
    before = source.get_state()
    source.get_batch_at(5, 3, jax.random.key(0))
    source.get_batch(3, key=jax.random.key(0))
    assert source.get_state() == before


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_size_that_is_none_is_said(size):
    with pytest.raises(ValueError, match="size="):
        memory().get_batch_at(0, size)


# --- host columns ------------------------------------------------------------------------------


def test_text_rides_along_where_nothing_is_traced():
    source = texts(shuffle=True)
    batch = source.get_batch(4)
    assert batch["text"].shape == (4,)
    assert batch["text"].tolist() == [f"row {i}" for i in batch["id"]]
    at = source.get_batch_at(2, 3, jax.random.key(0))
    assert at["text"].tolist() == [f"row {i}" for i in at["id"]]
    assert [record["text"] for record in source] == [f"row {i}" for i in epoch_order(1)]


def test_text_in_a_traced_batch_is_an_error_that_says_what_to_do():
    source = texts()
    with pytest.raises(TypeError, match=r"'text'.*exclude_keys"):
        jax.jit(lambda start: source.get_batch_at(start, 2)["text"])(0)


def test_text_is_no_part_of_the_pytree_and_of_the_spec_an_object():
    source = texts()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(source.data))
    spec = source.element_spec()
    assert spec["text"].dtype == np.dtype(object)
    assert spec["text"].shape == ()
    assert spec["id"] == jax.ShapeDtypeStruct((), jnp.int32)


# --- copies --------------------------------------------------------------------------------------


def test_a_clone_shares_the_arrays_and_moves_on_its_own():
    source = memory(shuffle=True)
    clone = source.clone()
    clone.get_batch(4)
    assert source.index.get_value() == 0
    assert clone.data["id"] is source.data["id"]


def test_a_copy_loads_again_only_for_other_data(tmp_path):
    dataset = datasets.Dataset.from_dict({"x": range(5), "y": range(5)})
    dataset.to_parquet(tmp_path / "train.parquet")
    source = HFEagerSource(HFEagerConfig(name=str(tmp_path), split="train"))
    shuffled = source.copy(
        config=HFEagerConfig(name=str(tmp_path), split="train", shuffle=True), name="again"
    )
    assert shuffled.data["x"] is source.data["x"]
    assert shuffled.is_random_order
    assert shuffled.name == "again"
    less = source.copy(config=HFEagerConfig(name=str(tmp_path), split="train", include_keys={"x"}))
    assert set(less.data) == {"x"}


@pytest.mark.parametrize("make", [memory, texts])
def test_a_copy_keeps_what_was_set(make):
    source = make()
    source.set_random_order(True)
    source.reset(8)
    source.set_statistics({"mean": 0.5})
    copy = source.copy(name="other")
    assert ids(copy) == epoch_order(0, seed=8)
    assert copy.get_statistics() == {"mean": 0.5}
    again = source.copy(config=source.config)  # the configuration decides where one is given
    assert not again.is_random_order
    assert again.get_statistics() is None


def test_nothing_is_placed_until_it_is_touched_and_then_once():
    source = memory()
    clone, copy = source.clone(), source.copy(name="copy")
    assert isinstance(source._columns["id"], np.ndarray)
    arrays = [s.data["id"] for s in (source, clone, copy)]
    assert all(array is arrays[0] for array in arrays)


_FILES = [{"path": None, "bytes": picture(size)} for size in (2, 3, 4)]


@pytest.mark.parametrize(
    ("column", "feature"),
    [
        ([1, 2, 3], None),
        (["a", "bb", None], None),
        ([[1], [2, 3], []], None),
        ([{"a": "x"}, None, {"a": "y"}], None),
        (_FILES, datasets.Image()),
        ([_FILES[:1], _FILES[1:2], []], datasets.List(datasets.Image())),
    ],
    ids=["numbers", "text", "ragged", "dicts", "images", "lists of images"],
)
def test_a_pickled_source_gives_the_same_batches(column, feature):
    features = feature and datasets.Features({"x": feature})
    dataset = datasets.Dataset.from_dict({"x": column}, features)
    source = HFEagerSource.from_dataset(dataset, shuffle=True)
    source.get_batch(2)
    copy = pickle.loads(pickle.dumps(source))
    for one, other in zip(source.get_batch(5)["x"], copy.get_batch(5)["x"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert copy.get_state() == source.get_state()


def test_collect_to_array_places_as_asked():
    device = jax.devices()[0]
    arrays = texts().collect_to_array(jax.sharding.SingleDeviceSharding(device))
    assert set(arrays) == {"id"}
    assert arrays["id"].devices() == {device}
