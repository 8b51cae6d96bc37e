"""Eager sources: batches, iteration, position and state."""

import io
import json
import pickle

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import nnx

import datarax
from datarax import (
    EagerSourceBase,
    HFEagerConfig,
    HFEagerSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    SourceConfigBase,
    index_shuffle,
)

N = 10


def memory(shuffle=False, seed=3, n=N):
    data = {"id": np.arange(n), "nested": {"x": np.arange(n, dtype=np.float64) / 2}}
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=seed), data)


def texts(shuffle=False, seed=3, n=N):
    dataset = datasets.Dataset.from_dict({"id": range(n), "text": [f"row {i}" for i in range(n)]})
    return HFEagerSource.from_dataset(dataset, shuffle=shuffle, seed=seed)


def epoch_order(epoch, seed=3, n=N):
    return np.asarray(index_shuffle(np.arange(n), num_records=n, seed=seed + epoch)).tolist()


def picture(size):
    buffer = io.BytesIO()
    PIL.Image.new("L", (size, size), size).save(buffer, "PNG")
    return buffer.getvalue()


def ids(records):
    return [int(record["id"]) for record in records]


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


@pytest.mark.parametrize("make", [memory, texts])
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


# --- construction ----------------------------------------------------------------------------


def test_a_local_folder_loads_with_its_names(tmp_path):
    datasets.Dataset.from_dict({"x": range(5)}).to_parquet(tmp_path / "train.parquet")
    source = HFEagerSource(HFEagerConfig(name=str(tmp_path), split="train"))
    assert len(source) == source.length == 5
    assert source.name == f"HFEagerSource({tmp_path}:train)"
    assert (source.dataset_name, source.split_name) == (str(tmp_path), "train")
    assert source.get_dataset_info().features == source.features


def test_rngs_are_kept_and_decide_nothing():
    dataset = datasets.Dataset.from_dict({"id": range(N)})
    rngs = nnx.Rngs(7)
    source = HFEagerSource.from_dataset(dataset, shuffle=True, seed=3, rngs=rngs)
    assert source.rngs is rngs
    assert ids(source) == epoch_order(0)


def test_users_may_write_sources_of_their_own():
    class Squares(EagerSourceBase):
        def __init__(self, n):
            super().__init__(SourceConfigBase(), {"y": np.arange(n) ** 2})

    assert Squares(4).get_batch(4)["y"].tolist() == [0, 1, 4, 9]
    with pytest.raises(NotImplementedError):
        Squares(4).process({})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"split": "train"}, "name="),
        ({"name": "mnist"}, "split="),
        ({"name": "a", "split": "b", "include_keys": {"x"}, "exclude_keys": {"y"}}, "exclude each"),
        ({"name": "a", "split": "b", "include_keys": "label"}, "include_keys={'label'}"),
        ({"name": "a", "split": "b", "exclude_keys": "label"}, "exclude_keys={'label'}"),
        ({"name": "a", "split": "b", "seed": -1}, "seed=-1"),
        ({"name": "a", "split": "b", "seed": 2**32}, "seed=4294967296"),
        ({"name": "a", "split": "b", "on_bad_rows": "drop"}, "on_bad_rows"),
        ({"name": "a", "split": "b", "stochastic": True}, "stream_name"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        HFEagerConfig(**fields)


def test_configurations_are_frozen_and_hashable():
    config = HFEagerConfig(name="a", split="b", include_keys={"x"}, download_kwargs={"token": "t"})
    assert hash(config) == hash(config)
    with pytest.raises(AttributeError):
        config.seed = 1


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({}, ValueError, "no records"),
        ({"x": []}, ValueError, "no records"),
        ({"x": [1, 2], "y": [1]}, ValueError, "differ in length"),
        ({"x": 3}, ValueError, "shape"),
        ({"x": [2**40]}, ValueError, r"'x'.*int32"),
        ([1, 2], TypeError, "dict of arrays"),
        ({3: [1, 2]}, TypeError, "expected a string, '3'"),
        ({"k": jax.random.split(jax.random.key(0), 3)}, TypeError, "'k'.*key_data"),
    ],
)
def test_memory_that_cannot_be_is_refused(data, error, words):
    with pytest.raises(error, match=words):
        MemorySource(MemorySourceConfig(), data)


def test_memory_keeps_narrow_floats_and_ragged_rows():
    for array in (np.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16), np.ones(3, np.float16)):
        source = MemorySource(MemorySourceConfig(), {"x": array})
        assert source.get_batch(2)["x"].dtype == array.dtype
    source = MemorySource(MemorySourceConfig(), {"x": [[1], [2, 3]], "id": [0, 1]})
    assert [row.tolist() for row in source.get_batch(2)["x"]] == [[1], [2, 3]]
    assert source.element_spec()["x"].dtype == object


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HFEagerSource(MemorySourceConfig()), r"HFEagerSource\(HFEagerConfig\("),
        (lambda: HFEagerSource({"name": "mnist"}), r"HFEagerSource\(HFEagerConfig\("),
        (
            lambda: HFStreamingSource(HFEagerConfig(name="a", split="b")),
            r"HFStreamingSource\(HFStreamingConfig\(",
        ),
        (lambda: MemorySource({"shuffle": True}, {"x": [1]}), "expected a MemorySourceConfig"),
    ],
)
def test_another_configuration_is_refused(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_a_dataset_dict_wants_a_split():
    data = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1]})})
    with pytest.raises(TypeError, match="pick a split"):
        HFEagerSource.from_dataset(data)


def test_an_empty_split_is_said():
    with pytest.raises(ValueError, match="empty"):
        HFEagerSource.from_dataset(datasets.Dataset.from_dict({"x": []}))


def test_an_unknown_column_is_said_with_those_there_are():
    dataset = datasets.Dataset.from_dict({"label": [1], "text": ["a"]})
    with pytest.raises(ValueError, match="labels") as error:
        HFEagerSource.from_dataset(dataset, include_keys={"labels"})
    assert "'label'" in str(error.value)
    assert "'text'" in str(error.value)
    assert set(HFEagerSource.from_dataset(dataset, exclude_keys={"no"}).data) == {"label", "text"}


def test_the_public_names_are_where_the_page_has_them():
    from datarax.sources import hf_source

    assert hf_source.logger.name == "datarax.sources.hf_source"
    assert datarax.sources.HFEagerSource is hf_source.HFEagerSource is datarax.HFEagerSource
