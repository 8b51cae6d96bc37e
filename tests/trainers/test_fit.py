"""The fit loop: logs that are done while the next steps run already."""

import itertools
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import MLP, assert_same, memory, points
from tests.support.runs import checkpoint, rows, trainer
from trainers import Checkpoints, Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")


class Strikes:
    """A writer that sends its own process a signal when it is given a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def write_scalars(self, step, scalars):
        if step == self.step:
            os.kill(os.getpid(), self.number)

    def write_hparams(self, hparams):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def logged(workdir, **arguments):
    """Returns a trainer to which, most of the time, nothing but a log is due."""
    often = {"log_every": 2, "eval_every": 17, "checkpoint": Checkpoints(every=13), "steps": 40}
    return trainer(workdir, **often | arguments)


@pytest.mark.parametrize(
    "log_every", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_a_log_that_is_done_late_says_the_same(tmp_path, log_every):
    late = logged(tmp_path / "late", log_every=log_every)
    at_once = logged(tmp_path / "at_once", log_every=log_every, callbacks=[lambda run: None])
    result, expected = late.fit(), at_once.fit()
    assert result.history == expected.history
    assert len([row for row in result.history if "train/loss" in row]) >= 40 // log_every
    assert rows(tmp_path / "late") == result.history
    assert_same(result.model, expected.model)
    for step in (26, 39, 40):
        first, second = (checkpoint(tmp_path / name, step) for name in ("late", "at_once"))
        assert first == second


@pytest.mark.parametrize(
    ("step", "number"),
    [
        (12, signal.SIGTERM),
        *(pytest.param(n, signal.SIGTERM, marks=pytest.mark.slow) for n in (2, 8, 16, 24)),
        *(pytest.param(n, signal.SIGINT, marks=pytest.mark.slow) for n in (2, 8, 12, 16, 24)),
    ],
)
def test_a_signal_during_a_late_log_loses_no_row(tmp_path, step, number):
    result = logged(tmp_path, writers=[Strikes(step, number)]).fit()
    assert result.status == {signal.SIGTERM: "preempted", signal.SIGINT: "stopped"}[number]
    assert step <= result.step <= step + 2 * 2
    assert rows(tmp_path) == result.history
    assert result.history[-1]["step"] == result.step - result.step % 2
    again, expected = logged(tmp_path).fit(), logged(None).fit()
    assert again.history == rows(tmp_path) == expected.history
    assert_same(again.model, expected.model)


OFTEN = [(21, 3)]


@pytest.mark.parametrize(
    ("bad", "log_every"),
    [
        pytest.param(*one, marks=[] if one in OFTEN else pytest.mark.slow)
        for one in itertools.product((0, 7, 21, 33, 48), (1, 2, 3))
    ],
)
def test_what_is_not_finite_is_found_however_late_the_log(bad, log_every):
    def loss(model, batch):
        losses = (model(batch["x"] / 8) ** 2).sum(-1)
        return jnp.where(batch["id"] == bad, jnp.nan, losses)

    source = memory(points(50), shuffle=True)
    one = Trainer(MLP(), source, loss=loss, batch_size=4, epochs=2, log_every=log_every)
    t = next(t for t in range(13) if bad in np.asarray(one.batch_at(t)["id"]))
    result = one.fit()
    assert (result.status, result.step) == ("diverged", t)
    assert [row["step"] for row in result.history] == list(range(log_every, t + 1, log_every))
    assert all(np.isfinite(row["train/loss"]) for row in result.history)
