"""Divergence: the step, the records and the state before what is not finite."""

import json

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarax import HFStreamingSource
from tests.support.models import CNN, MLP, assert_close, assert_same, images, memory, points
from trainers import Checkpoints, Trainer, every
from trainers.loop import cadence

pytestmark = pytest.mark.usefixtures("compiled_once")

BAD = 33


def spoilt(kind, column="x"):
    """Returns a loss that is not finite for one record, or whose gradient is not."""

    def loss(model, batch):
        bad = batch["id"] == BAD
        x = jnp.float32(batch[column]) / 8
        losses = (model(x if column == "x" else x[..., None]) ** 2).sum(-1)
        if kind == "loss":
            return jnp.where(bad, jnp.nan, losses)
        return losses + jnp.sqrt(jnp.where(bad, 0.0 * losses, 1.0))  # the root's slope at 0

    return loss


def data(kind=MLP):
    if kind is MLP:
        return memory(points(50), shuffle=True)
    return memory(images(50) | {"id": np.arange(50, dtype=np.int32)}, shuffle=True)


def trainer(source, model, **arguments):
    arguments = {"loss": spoilt("loss"), "optimizer": optax.adam(1e-2), **arguments}
    return Trainer(model, source, **{"batch_size": 8, "epochs": 3, "log_every": 2, **arguments})


def batch_of(trainer, record=BAD):
    """Returns the first batch with a record, and the record's row."""
    for t in range(trainer.steps_per_epoch):
        rows = np.flatnonzero(trainer.batch_at(t)["id"] == record)
        if len(rows):
            return t, int(rows[0])
    raise AssertionError("the record is in no batch")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "accumulate", "kind"),
    [
        (MLP, 1, "gradient"),
        pytest.param(CNN, 2, "loss", marks=SLOW),
        pytest.param(MLP, 1, "loss", marks=SLOW),
        pytest.param(MLP, 2, "loss", marks=SLOW),
        pytest.param(MLP, 2, "gradient", marks=SLOW),
        pytest.param(CNN, 2, "gradient", marks=SLOW),
    ],
)
def test_one_bad_record_is_found_and_the_state_before_it_kept(caplog, kind, model, accumulate):
    source, column = data(model), "x" if model is MLP else "image"
    arguments = {"loss": spoilt(kind, column), "accumulate": accumulate}
    one = trainer(source, model(), **arguments)
    t, row = batch_of(one)
    assert t >= 2
    result = one.fit()
    assert (result.status, result.step) == ("diverged", t)
    assert all(row["step"] <= t for row in result.history)
    text = caplog.records[-1].getMessage()
    assert all(part in text for part in (f"step {t + 1}.", f"batch_at({t})", "is kept"))
    assert f"row {row} (record {BAD})." in text
    assert {"loss": "The loss of", "gradient": "gradient is not"}[kind] in text
    assert_close(
        trainer(source, model(), steps=t, **arguments | {"epochs": None}).fit().model, result.model
    )


def test_a_loop_that_goes_on_after_a_bad_batch_changes_nothing_that_is_said(caplog, monkeypatch):
    source, results = data(), []
    for _ in range(2):
        results.append((trainer(source, MLP(), log_every=3).fit(), caplog.records[-1].getMessage()))
        # As on a GPU from the first step on, where inner loops do not ask whether to go on.
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(cadence, "_MANY", 1)
    (expected, said), (result, text) = results
    assert (result.status, result.step, text) == ("diverged", expected.step, said)
    assert result.history == expected.history
    assert_same(result.model, expected.model)


def test_a_resumed_run_diverges_once_and_says_so_at_each_start(tmp_path, caplog):
    source = data()
    t, _ = batch_of(trainer(source, MLP()))
    arguments = {
        "workdir": tmp_path,
        "loss": spoilt("gradient"),
        "checkpoint": Checkpoints(every=1),
    }
    stop = every(t - 1, lambda run: True)
    assert trainer(source, MLP(), callbacks=[stop], **arguments).fit().step == t - 1
    first = trainer(source, MLP(), **arguments).fit()
    assert (first.status, first.step) == ("diverged", t)
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(steps) == t  # the poisoned ones were not saved

    caplog.clear()
    again = trainer(source, MLP(), **arguments).fit()
    assert (again.status, again.step) == ("diverged", t)
    assert_same(again.model, first.model)
    assert "diverged.json" in caplog.records[-1].getMessage()
    assert json.loads((tmp_path / "diverged.json").read_text())["records"] == [BAD]

    (tmp_path / "diverged.json").unlink()
    mended = trainer(source, MLP(), **arguments | {"loss": whole})
    assert mended.fit().status == "finished"
    assert not (tmp_path / "diverged.json").exists()


def whole(model, batch):
    return (model(batch["x"] / 8) ** 2).sum(-1)


def test_a_run_that_is_mended_ends_where_one_that_was_whole_does(tmp_path):
    source = data()
    expected = trainer(source, MLP(), loss=whole, log_every=5).fit()
    assert trainer(source, MLP(), workdir=tmp_path, log_every=5).fit().status == "diverged"
    (tmp_path / "diverged.json").unlink()
    mended = trainer(source, MLP(), loss=whole, workdir=tmp_path, log_every=5).fit()
    assert_close(mended.model, expected.model)
    np.testing.assert_allclose(  # the sums since the last log were kept as well
        [row["train/loss"] for row in mended.history],
        [row["train/loss"] for row in expected.history],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_a_stream_is_read_again_and_saved_where_it_stood(tmp_path):
    rows = datasets.Dataset.from_dict({k: v.tolist() for k, v in points(50).items()})
    rows = rows.cast_column("x", datasets.List(datasets.Value("float32"), length=4))

    def source():
        stream = rows.to_iterable_dataset(num_shards=2)
        return HFStreamingSource.from_dataset(stream, shuffle=True, shuffle_buffer_size=16)

    arguments = {"epochs": None, "steps": 20, "checkpoint": Checkpoints(every=1)}
    expected = trainer(source(), MLP(), loss=whole, **arguments).fit()
    arguments["workdir"] = tmp_path
    first = trainer(source(), MLP(), loss=spoilt("gradient"), **arguments)
    result = first.fit()
    assert result.status == "diverged"
    assert BAD in first.batch_at(result.step)["id"]
    assert result.history[-1]["epoch"] < 1
    (tmp_path / "diverged.json").unlink()
    mended = trainer(source(), MLP(), loss=whole, **arguments).fit()
    assert mended.status == "finished"
    np.testing.assert_allclose(  # the steps after it have the batches they would have had
        mended.history[-1]["train/loss"], expected.history[-1]["train/loss"], rtol=0.2
    )


def test_the_last_step_counts_as_well(caplog):
    source = data()
    t, _ = batch_of(trainer(source, MLP()))
    result = trainer(source, MLP(), loss=spoilt("gradient"), epochs=None, steps=t + 1).fit()
    assert (result.status, result.step) == ("diverged", t)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.metrics))


def test_parameters_that_grow_too_large_are_told_from_bad_data(caplog):
    result = trainer(data(), MLP(), loss=whole, optimizer=optax.sgd(1e30)).fit()
    assert result.status == "diverged"
    assert "lower the learning rate" in caplog.records[-1].getMessage()


def test_an_optimizer_that_skips_a_bad_gradient_goes_on():
    adam = optax.apply_if_finite(optax.adam(1e-2), 5)
    result = trainer(data(), MLP(), loss=spoilt("gradient"), optimizer=adam).fit()
    assert result.status == "finished"


@pytest.mark.slow
def test_a_gradient_that_reaches_the_parameters_later_is_found_where_it_came_from():
    source = data()
    t, _ = batch_of(trainer(source, MLP()))
    several = optax.MultiSteps(optax.adam(1e-2), 4).gradient_transformation()
    result = trainer(source, MLP(), loss=spoilt("gradient"), optimizer=several).fit()
    assert (result.status, result.step) == ("diverged", t)


def test_infinities_that_were_there_from_the_start_do_not_count():
    model = MLP()
    model.mask = type(model.out.bias)(jnp.full(3, -jnp.inf))  # a parameter without a gradient
    assert trainer(data(), model, loss=whole).fit().status == "finished"


def test_a_loss_whose_weight_is_zero_does_not_count():
    def loss(model, batch):
        losses = jnp.where(batch["id"] == BAD, jnp.nan, whole(model, batch))
        return losses, {"weight": batch["id"] != BAD}

    assert trainer(data(), MLP(), loss=loss).fit().status == "finished"
