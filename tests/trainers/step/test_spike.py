"""Spikes: the trend of the losses, and the steps that a run names because theirs stand out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarax import MixedSource
from tests.support.models import MLP, memory, points
from trainers import Checkpoints, Trainer
from trainers.step.spike import STEPS, Spike, Trend

N, SIZE, BAD = 480, 8, 45  # sixty batches; the labels of one are other ones


def test_the_trend_is_mean_and_variance_of_the_losses_and_forgets_old_ones():
    losses = np.random.default_rng(0).normal(3, 0.5, 3 * STEPS).astype(np.float32)
    losses[STEPS:] += 2

    def step(trend, loss):
        return trend.moved(loss), (trend.mean, trend.variance, trend.deviations(loss))

    _, (mean, variance, deviations) = jax.lax.scan(step, Trend.begun(), jnp.asarray(losses))
    for n in (1, 40, STEPS):
        np.testing.assert_allclose(mean[n], losses[:n].mean(), rtol=1e-4)
        np.testing.assert_allclose(variance[n], losses[:n].var(), rtol=1e-3, atol=1e-6)
    off = (losses[900] - losses[:900].mean()) / losses[:900].std()
    np.testing.assert_allclose(deviations[900], off, rtol=1e-2)
    assert not deviations[:32].any()  # too few to tell
    np.testing.assert_allclose(mean[-1], 5, atol=0.3)


def test_the_highest_of_a_window_is_kept():
    spike = Spike.none()
    for t, deviations in enumerate([1.0, 7.0, 6.5, -3.0]):
        spike = spike.or_later(jnp.float32(deviations), jnp.int32(t))
    assert (float(spike.deviations), int(spike.step)) == (7.0, 1)


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def trainer(*, spoilt=True, mixed=False, **arguments):
    data = points(N)
    data["label"] = data["x"][:, :3].argmax(axis=1).astype(np.int32)
    if spoilt:
        rows = slice(BAD * SIZE, BAD * SIZE + SIZE)
        data["x"][rows] *= -9
    arguments = {"loss": loss, "batch_size": SIZE, "steps": 60, "log_every": 10, **arguments}
    source = MixedSource([memory(data)], [1], stop="all") if mixed else memory(data)
    return Trainer(MLP(), source, optimizer=optax.adam(1e-2), **arguments)


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("mixed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_names_the_records_of_a_loss_that_stands_out(mixed, tmp_path, capsys):
    trainer(spoilt=False, mixed=mixed).fit()
    assert "stands out" not in capsys.readouterr().out
    options = {"workdir": tmp_path, "checkpoint": Checkpoints(every=7), "mixed": mixed}
    trainer(**options).fit(steps=53)
    said = capsys.readouterr().out
    assert f"The loss of batch {BAD} stands out" in said
    of = " of source 0" if mixed else ""
    named = ", ".join(f"{record}{of}" for record in range(360, 368))
    assert f"its records are {named}." in said
    assert f"skip=trainer.records_at({BAD})" in said
    trainer(**options).fit()  # which remembers it, and does not say it again
    assert "stands out" not in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "Losses that stand out" in page
    assert named in page
