"""A run goes on with the same batches on any number of devices, and diverges as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarax import Pipeline
from tests.support.devices import losses, trainer
from tests.support.models import MLP, Diary, assert_close, assert_same, memory, noted_loss, points
from tests.support.runs import at, rows, ruin, said
from trainers import Checkpoints, load

STEPS, SIZE, BAD = 24, 16, 33


def noise(batch, key):
    extra = jax.vmap(lambda key: jax.random.normal(key, (4,)))(key)
    return {**batch, "x": batch["x"] + 0.1 * extra}


def diary(devices, workdir=None, *, shards=8, **arguments):
    """Returns a trainer of a model that writes down the records of its batches."""
    source = memory(points(101), shuffle=True)
    arguments = {
        "loss": noted_loss,
        "steps": STEPS,
        "optimizer": optax.adam(1e-2),
        "ema": 0.9,
        "checkpoint": Checkpoints(every=5, keep=9),
        "workdir": workdir,
        **arguments,
    }
    pipeline = Pipeline(source=source, stages=[noise], batch_size=SIZE, shards=shards)
    return trainer(Diary(MLP(), STEPS, SIZE), devices, pipeline, batch_size=None, **arguments)


def seen(model):
    """Returns the records of each step, those of a batch in order."""
    return np.sort(np.asarray(model.records[...]), axis=1)


@pytest.mark.parametrize(
    ("shards", "sharding", "devices"),
    [
        (8, "fsdp", [8, 1, 4]),
        pytest.param(1, "replicate", [2, 8], marks=pytest.mark.slow),
        pytest.param(8, "replicate", [8, 2, 4, 1], marks=pytest.mark.slow),
        pytest.param(8, "fsdp", [2, 8, 1, 4], marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_the_same_records_on_other_devices(tmp_path, shards, sharding, devices):
    expected = diary(1, shards=shards).fit()
    *cut, last = devices
    for step, count in zip((6, 11, 17), cut, strict=False):
        one = diary(count, tmp_path, shards=shards, sharding=sharding, callbacks=[at(step)])
        result = one.fit()
        assert (result.status, result.step) == ("preempted", step)
    result = diary(last, tmp_path, shards=shards, sharding=sharding).fit()
    assert result.status == "finished"
    np.testing.assert_array_equal(seen(result.model), seen(expected.model))
    np.testing.assert_allclose(losses(result), losses(expected), rtol=1e-6)
    assert_close(result.model, expected.model, rtol=1e-3, atol=1e-4)
    assert_close(result.ema, expected.ema, rtol=1e-3, atol=1e-4)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, STEPS + 1))
    found = load(tmp_path, Diary(MLP(), STEPS, SIZE), average=False)
    assert_same(found, jax.tree.map(np.asarray, result.model))
    found = load(tmp_path, Diary(MLP(), STEPS, SIZE))
    assert_same(found, jax.tree.map(np.asarray, result.ema))


@pytest.mark.parametrize("sharding", [pytest.param("replicate", marks=pytest.mark.slow), "fsdp"])
def test_resuming_on_the_same_devices_is_exact(tmp_path, sharding):
    expected = diary(8, sharding=sharding).fit()
    diary(8, tmp_path, sharding=sharding, callbacks=[at(7)]).fit()
    result = diary(8, tmp_path, sharding=sharding).fit()
    assert result.history == expected.history
    assert_same(result.model, expected.model)
    assert_same(result.ema, expected.ema)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_many_devices_is_set_aside(tmp_path, caplog):
    expected = diary(8, sharding="fsdp").fit()
    diary(8, tmp_path, sharding="fsdp", callbacks=[at(12)]).fit()
    ruin(tmp_path / "checkpoints" / "12")
    result = diary(2, tmp_path, sharding="fsdp").fit()
    (warning,) = said(caplog, "trainers.workdir.store")
    assert "Step 10 before it is taken" in warning
    np.testing.assert_array_equal(seen(result.model), seen(expected.model))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(8, 4), (1, 8)])
def test_another_number_of_shards_is_other_data(tmp_path, before, after):
    diary(2, tmp_path, shards=before, steps=6).fit()
    words = rf"with shards={before}, this one has shards={after}.*resume_data=\"restart\""
    with pytest.raises(ValueError, match=words):
        diary(2, tmp_path, shards=after).fit()
    result = diary(2, tmp_path, shards=after, resume_data="restart").fit()
    fresh = seen(diary(2, shards=after, steps=STEPS - 6).fit().model)
    np.testing.assert_array_equal(seen(result.model)[6:], fresh[: STEPS - 6])


@pytest.mark.slow
def test_a_fully_sharded_run_begins_with_the_weights_of_another(tmp_path):
    first = diary(8, tmp_path / "first", steps=6).fit()
    one = diary(4, sharding="fsdp", init_from=tmp_path / "first", steps=1)
    one.fit()
    other = diary(4, tmp_path / "other", init_from=tmp_path / "first", steps=1)
    assert_close(one.model.inner, other.fit().model.inner)
    assert int(first.model.step[...]) == 6
    assert int(one.model.step[...]) == 7  # so does what counts


# --- divergence ----------------------------------------------------------------------------------


def _spoilt(kind):
    def loss(model, batch):
        bad = batch["id"] == BAD
        values = (model(batch["x"]) ** 2).sum(-1)
        if kind == "loss":
            return jnp.where(bad, jnp.nan, values)
        return values + jnp.sqrt(jnp.where(bad, 0.0 * values, 1.0))  # the root's slope at 0

    return loss


@pytest.mark.parametrize(
    ("kind", "shards", "sharding"),
    [
        pytest.param("loss", 8, "replicate", marks=pytest.mark.slow),
        pytest.param("gradient", 8, "fsdp", marks=pytest.mark.slow),
        pytest.param("loss", 1, "replicate", marks=pytest.mark.slow),
        pytest.param("gradient", 8, "replicate", marks=pytest.mark.slow),
    ],
)
def test_one_bad_record_is_found_on_many_devices(tmp_path, caplog, kind, shards, sharding):
    arguments = {"loss": _spoilt(kind), "shards": shards, "sharding": sharding}
    one = trainer(MLP(), 8, workdir=tmp_path, **arguments)
    t, row = next(
        (t, int(row))
        for t in range(one.steps_per_epoch)
        for row in np.flatnonzero(one.batch_at(t)["id"] == BAD)
    )
    result = one.fit()
    assert (result.status, result.step) == ("diverged", t)
    text = caplog.records[-1].getMessage()
    assert f"batch_at({t})" in text
    assert f"By itself, so is row {row} (record {BAD})." in text
    assert_close(result.model, trainer(MLP(), 8, **arguments | {"steps": t}).fit().model)
    again = trainer(MLP(), 2, workdir=tmp_path, **arguments).fit()
    assert (again.status, again.step) == ("diverged", t)
