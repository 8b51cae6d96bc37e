"""Batches by step number: every record once an epoch, and what the stages see."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu
from hypothesis import given, settings
from hypothesis import strategies as st

from datarax import Pipeline
from tests.support.models import MLP, Normed, memory, points
from trainers import Trainer
from trainers.data.adapt import as_pipeline
from trainers.data.eager import EagerBatches
from trainers.devices.layout import Layout

pytestmark = pytest.mark.usefixtures("compiled_once")


@settings(deadline=None, max_examples=4)
@given(
    n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 99), on=st.booleans()
)
def test_an_epoch_holds_each_record_once_and_batches_are_the_source_s(n, batch_size, seed, on):
    source = memory({"x": np.zeros(n), "id": np.arange(n), "y": np.ones(n)}, shuffle=on, seed=seed)
    batches = EagerBatches(as_pipeline(source, batch_size), Layout())
    rows = jax.jit(batches.rows)
    for epoch in range(2):
        expected = source.get_batch_at(0, n, jax.random.key(seed + epoch))["id"]
        seen = []
        for t in range(batches.steps_per_epoch):
            batch, valid, _ = rows(
                batches.data, batches.stages, jnp.int32(epoch * batches.steps_per_epoch + t)
            )
            assert len(batch["id"]) == batch_size
            seen.extend(np.asarray(batch["id"])[np.asarray(valid)])
        np.testing.assert_array_equal(seen, expected)


def _noise(batch, key):
    return {**batch, "x": batch["x"] + jax.vmap(lambda k: jax.random.normal(k, (4,)))(key)}


@flax.struct.dataclass
class Visits(clu.Metric):
    """How often each of 50 records counted; 1 where it was once each."""

    counts: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.zeros(50, jnp.int32))

    @classmethod
    def from_model_output(cls, *, id, mask, **_):
        return cls(jnp.zeros(50, jnp.int32).at[id].add(mask))

    def merge(self, other):
        return type(self)(self.counts + other.counts)

    def compute(self):
        return (self.counts == 1).mean()


@pytest.mark.parametrize("shuffle", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_batch_at_is_what_the_steps_saw(shuffle):
    source = memory(points(50), shuffle=shuffle)
    pipeline = Pipeline(source=source, stages=[_noise], batch_size=16)

    def loss(model, batch):
        return batch["x"].sum(-1) + 0 * model(batch["x"])[:, 0], {"id": batch["id"]}

    metrics = clu.Collection.create(visits=Visits)
    trainer = Trainer(MLP(), pipeline, loss=loss, epochs=2, log_every=1)
    history = trainer.fit().history
    batches = [trainer.batch_at(t) for t in range(8)]
    for row, batch in zip(history, batches, strict=True):
        assert row["train/loss"] == pytest.approx(batch["x"].sum(-1).mean(), rel=1e-5)
    ids = [batch["id"].tolist() for batch in batches]
    assert [len(i) for i in ids] == [16, 16, 16, 2] * 2
    assert (ids[:4] == ids[4:]) == (not shuffle)

    trainer = Trainer(MLP(), pipeline, loss=loss, metrics=metrics, epochs=2, log_every=4)
    assert [row["train/visits"] for row in trainer.fit().history] == [1.0, 1.0]


def test_each_epoch_of_a_stochastic_stage_is_another():
    source = memory(points(4))
    pipeline = Pipeline(source=source, stages=[_noise], batch_size=4)
    trainer = Trainer(MLP(), pipeline, loss=lambda model, batch: batch["x"][:, 0])
    first, again, second = (trainer.batch_at(t)["x"] for t in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    with pytest.raises(ValueError, match="t=-1"):
        trainer.batch_at(-1)


def test_the_variables_of_a_stage_are_carried_from_step_to_step():
    source = memory({name: c for name, c in points(8).items() if name != "id"})
    stage = _Counting()
    pipeline = Pipeline(source=source, stages=[stage], batch_size=4)
    trainer = Trainer(MLP(), pipeline, epochs=3)
    assert np.isfinite(trainer.fit().metrics["train/loss"])
    assert trainer.predict(pipeline).shape == (8, 3)


class _Counting(Normed):
    """A stage with BatchNorm, random numbers and a counter."""

    def __call__(self, batch):
        return {**batch, "x": batch["x"] + super().__call__(batch["x"]).mean()}


def test_a_pipeline_s_batch_size_is_given_once():
    pipeline = Pipeline(source=memory(points(8)), stages=[], batch_size=4)
    assert as_pipeline(pipeline, None).batch_size == as_pipeline(pipeline, 4).batch_size == 4
    assert as_pipeline(memory(points(8)), None).batch_size == 128
    with pytest.raises(ValueError, match="batch_size=8, but the Pipeline has batch_size=4"):
        Trainer(MLP(), pipeline, batch_size=8)


@pytest.mark.parametrize(
    ("own", "message"),
    [(1, r"has shards=1: write Pipeline\(..., shards=4\)"), (2, "has shards=2: give it once")],
)
def test_shards_belong_to_a_pipeline(own, message):
    pipeline = Pipeline(source=memory(points(8)), stages=[], batch_size=4, shards=own)
    with pytest.raises(ValueError, match=message):
        Trainer(MLP(), pipeline, shards=4)
