"""A Pipeline that leaves out a short last batch: the trainer's epochs are as short."""

import itertools

import datasets
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import (
    HFEagerSource,
    HFStreamingSource,
    MemorySource,
    MemorySourceConfig,
    MixedSource,
    Pipeline,
)
from trainers import Checkpoints, Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")

N, SIZE = 50, 8  # six batches, and two records


class Linear(nnx.Module):
    def __init__(self, seed=0):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.layer(x)


def dataset():
    x = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    return datasets.Dataset.from_dict({"x": x, "target": x.sum(axis=1)})


def eager(shuffle=True):
    return HFEagerSource.from_dataset(dataset(), shuffle=shuffle)


def stream(shuffle=True):
    rows = dataset().to_iterable_dataset(num_shards=2)
    return HFStreamingSource.from_dataset(rows, shuffle=shuffle, shuffle_buffer_size=16)


def table(shuffle=True):
    return HFStreamingSource.from_dataset(dataset(), shuffle=shuffle, shuffle_buffer_size=16)


def pipeline(source, **options):
    return Pipeline(source=source, stages=[], batch_size=SIZE, drop_remainder=True, **options)


def trainer(pipeline, seed=0, **options):
    return Trainer(Linear(seed), pipeline, optimizer=optax.sgd(0.05), **options)


@pytest.mark.parametrize("make", [eager, table])
def test_an_epoch_has_as_many_steps_as_the_pipeline_has_batches(make):
    ours = trainer(pipeline(make()), epochs=2)
    result = ours.fit()
    assert result.step == 2 * len(pipeline(make())) == 12
    assert result.history[-1]["epoch"] == 2


@pytest.mark.parametrize("make", [eager, stream, table])
def test_the_batches_are_those_of_the_pipeline(make):
    ours, plain = trainer(pipeline(make()), steps=14), pipeline(make())
    expected = [batch["x"] for _ in range(3) for batch in plain]
    for t in range(14):
        np.testing.assert_array_equal(ours.batch_at(t)["x"], expected[t])


OFTEN = [(eager, 6), (stream, 7), (table, 13)]


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        pytest.param(*one, marks=[] if one in OFTEN else pytest.mark.slow)
        for one in itertools.product((eager, stream, table), (3, 6, 7, 13))
    ],
)
def test_a_stopped_run_goes_on_exactly(tmp_path, make, cut):
    options = {"steps": 20, "checkpoint": Checkpoints(every=5), "log_every": 4}
    whole = trainer(pipeline(make()), **options).fit()
    first = trainer(
        pipeline(make()), workdir=tmp_path, callbacks=[lambda run: run.step >= cut], **options
    ).fit()
    assert first.status == "stopped"
    resumed = trainer(pipeline(make()), seed=9, workdir=tmp_path, **options).fit()
    assert resumed.step == 20
    np.testing.assert_array_equal(resumed.model.layer.kernel[...], whole.model.layer.kernel[...])


def test_canonical_shards_leave_the_remainder_out_too():
    ours, plain = pipeline(eager(), shards=2), pipeline(eager(), shards=2)
    one = trainer(ours, epochs=1, shards=2)
    assert one.fit().step == len(plain) == 6


@pytest.mark.parametrize("make", [eager, stream])
def test_evaluating_and_predicting_go_through_all_records(make):
    ours = trainer(pipeline(eager()), steps=3)
    assert len(ours.predict(pipeline(make()))) == N
    assert ours.evaluate(pipeline(make())) == ours.evaluate(make())


@pytest.mark.parametrize("make", [eager, stream])
def test_data_without_a_full_batch_is_refused(make):
    few = Pipeline(source=make(), stages=[], batch_size=64, drop_remainder=True)
    with pytest.raises(ValueError, match=r"leaves no batch|no full batch"):
        Trainer(Linear(), few, steps=1).fit()


# --- other promises of the batches --------------------------------------------------------------


class Reversed(MemorySource):
    def get_batch_at(self, start, size, key=None):
        return jax.tree.map(lambda x: x[::-1], super().get_batch_at(start, size, key))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_source_that_forms_batches_in_its_own_way_is_refused(shards):
    data = {"x": np.ones((8, 2), np.float32), "target": np.ones(8, np.float32)}
    source = Reversed(MemorySourceConfig(), data)
    with pytest.raises(TypeError, match=r"Reversed has a get_batch_at of its own.*stages"):
        Trainer(Linear(), source, steps=1, batch_size=4, shards=shards)


def test_the_order_of_a_mixtures_sources_may_not_change_between_runs(tmp_path):
    def mixture(seed):
        one = HFEagerSource.from_dataset(dataset(), shuffle=True, seed=seed)
        return MixedSource([one, stream()], [1, 1])

    options = {"batch_size": SIZE, "workdir": tmp_path}
    Trainer(Linear(), mixture(1), steps=4, **options).fit()
    with pytest.raises(ValueError, match="the seed and shuffle it had"):
        Trainer(Linear(), mixture(2), steps=8, **options).fit()
    assert Trainer(Linear(), mixture(1), steps=8, **options).fit().step == 8
