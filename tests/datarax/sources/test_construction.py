"""Making sources: from folders, datasets and arrays, and what is refused."""

import dataclasses
import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
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
)
from tests.support.sources import N, epoch_order, ids


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


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1, 2], ">i4"), "int32"),
        (np.array([[1.5], [2.5]], ">f8"), "float32"),
        (np.array([1.5, 2.5], np.longdouble), "float32"),
        (np.array([1, 2j], np.clongdouble), "complex64"),
        (np.array([1, 2], "m8[s]"), "object"),
    ],
)
def test_numbers_in_memory_that_jax_has_in_another_layout(array, dtype):
    batch = MemorySource(MemorySourceConfig(), {"x": array}).get_batch(2)["x"]
    assert batch.dtype == dtype
    assert batch.tolist() == array.tolist() or batch.tolist() == list(array)


@pytest.mark.parametrize("rows", [list, np.ma.array])
def test_a_mask_is_refused_and_not_dropped(rows):
    hidden = np.ma.array([[1.0, -999.0], [2.0, 3.0]], mask=[[0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"Column 'a' is a masked array.*filled\(0\)"):
        MemorySource(MemorySourceConfig(), {"a": rows(hidden)})
    whole = np.ma.array([1.0, 2.0], mask=[0, 0])
    assert MemorySource(MemorySourceConfig(), {"a": whole}).get_batch(2)["a"].tolist() == [1, 2]


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


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("train[:0]", r"'train\[:0\]' of .* is empty: 'train' has 5 rows"),
        ("train[9:]", "'train' has 5 rows"),
        ("train[2", "'train' has 5 rows"),
    ],
)
def test_a_slice_without_rows_is_said_with_those_there_are(tmp_path, split, words):
    datasets.Dataset.from_dict({"x": range(5)}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=words):
        HFEagerSource(HFEagerConfig(name=str(tmp_path), split=split))


@pytest.mark.parametrize("kind", [HFEagerSource, HFStreamingSource])
def test_a_copy_of_a_source_of_a_dataset_at_hand(kind):
    source = kind.from_dataset(datasets.Dataset.from_dict({"x": range(5), "y": range(5)}))
    source.set_statistics({"mean": 0.5})
    source.set_random_order(True)
    copy = source.copy()
    assert copy.is_random_order
    assert copy.get_statistics() == {"mean": 0.5}
    shuffled = source.copy(config=dataclasses.replace(source.config, shuffle=True, seed=1))
    again = kind.from_dataset(datasets.Dataset.from_dict({"x": range(5)}), shuffle=True, seed=1)
    assert shuffled.get_batch(5)["x"].tolist() == again.get_batch(5)["x"].tolist()
    with pytest.raises(TypeError, match=f"expected a {kind.__name__[:-6]}Config"):
        source.copy(config=datarax.DataraxModuleConfig(cacheable=True))
    other = dataclasses.replace(source.config, include_keys={"x"})
    if kind is HFStreamingSource:
        assert set(source.copy(config=other).get_batch(5)) == {"x"}
        return
    with pytest.raises(ValueError, match=r"dataset at hand.*from_dataset\(ds, include_keys="):
        source.copy(config=other)


def test_a_state_of_numpys_numbers_is_json():
    source = MemorySource(
        MemorySourceConfig(shuffle=np.bool_(True), seed=np.int64(5)), {"x": np.arange(3)}
    )
    assert json.loads(json.dumps(source.get_state()))["order"] == {"shuffle": True, "seed": 5}


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
    assert hf_source.from_hf is datarax.from_hf
    assert hf_source.StreamingSourceBase is datarax.StreamingSourceBase
    with pytest.raises(AttributeError, match="no attribute 'from_hub'"):
        _ = hf_source.from_hub
