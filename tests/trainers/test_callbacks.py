"""Callbacks: when they are called, what they see, and how they stop a run."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import MemorySource, MemorySourceConfig
from trainers import Checkpoints, Trainer, every
from trainers.callbacks import best_so_far, early_stopping, log_learning_rate, stops
from trainers.run import Run

pytestmark = pytest.mark.usefixtures("compiled_once")


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def source(n=40):
    x = np.linspace(0, 1, n)[:, None]
    return MemorySource(MemorySourceConfig(shuffle=True), {"x": x, "target": 2 * x[:, 0]})


def fit(*callbacks, model=None, **options):
    options = {"steps": 12, "batch_size": 10, "log_every": 5, **options}
    return Trainer(model or Linear(), source(), callbacks=callbacks, **options).fit()


def test_a_callback_is_called_at_each_log():
    steps = []
    fit(lambda run: steps.append(run.step))
    assert steps == [5, 10, 12]


def test_an_evaluation_is_a_log_too():
    steps = []
    fit(lambda run: steps.append(run.step), eval_source=source(), eval_every=4)
    assert steps == [4, 5, 8, 10, 12]


def test_every_n_steps_is_exact_whatever_the_cadences():
    steps, logs = [], []
    result = fit(every(3, lambda run: steps.append(run.step)), lambda run: logs.append(run.step))
    assert steps == [3, 6, 9, 12]
    assert logs == [5, 10, 12]
    assert result.status == "finished"


def test_true_stops_at_exactly_that_step_and_the_last_step_is_logged_and_evaluated():
    result = fit(every(7, lambda run: True), eval_source=source(), eval_every=12)
    assert (result.status, result.step) == ("stopped", 7)
    last = result.history[-1]
    assert last["step"] == 7
    assert {"train/loss", "eval/loss"} <= set(last)
    assert [row["step"] for row in result.history] == [5, 7]


def test_stopping_at_a_log_does_not_log_twice():
    result = fit(lambda run: run.step >= 5, eval_source=source(), eval_every=12)
    assert [row["step"] for row in result.history] == [5]
    assert {"train/loss", "eval/loss"} <= set(result.history[0])


@pytest.mark.parametrize("true", [True, np.True_, jnp.array(True), np.array([True])])
def test_whatever_is_true_stops(true):
    assert stops(lambda run: true, None) is True
    assert stops(every(2, lambda run: true), None) is True


@pytest.mark.parametrize("false", [None, False, np.False_, jnp.array(False), 0.0, ""])
def test_what_is_false_goes_on(false):
    assert stops(lambda run: false, None) is False


@pytest.mark.parametrize("other", [1, "stop", np.ones(3), jnp.float32(0)])
def test_another_answer_is_refused(other):
    name = f"a {type(other).__name__}"
    with pytest.raises(TypeError, match=f"<lambda> returned {name}: return True to stop the run"):
        stops(lambda run: other, None)


def test_a_model_that_a_callback_returns_does_not_stop_the_run():
    with pytest.raises(TypeError, match="returned a Linear: return True to stop the run, None to"):
        fit(lambda run: run.model())


def test_a_callback_sees_the_model_as_it_is_without_touching_the_run():
    weights = []

    def look(run):
        model = run.model()
        weights.append(float(model.layer.kernel[0, 0]))
        model.layer.kernel[...] = 0.0

    watched = fit(look)
    plain = fit()
    np.testing.assert_array_equal(watched.model.layer.kernel[...], plain.model.layer.kernel[...])
    assert weights[-1] == float(plain.model.layer.kernel[0, 0])
    assert len(set(weights)) == 3


def test_a_callback_that_raises_leaves_the_model_usable():
    def fail(run):
        raise RuntimeError("no")

    model = Linear()
    before = float(model.layer.kernel[0, 0])
    with pytest.raises(RuntimeError, match="no"):
        fit(fail, model=model)
    assert float(model.layer.kernel[0, 0]) != before
    assert model(np.ones((1, 1), np.float32)).shape == (1, 1)


def test_early_stopping_waits_for_patience():
    result = fit(
        early_stopping("eval/loss", patience=2, least=10.0),
        eval_source=source(),
        eval_every=2,
        steps=40,
    )
    # Nothing improves by 10 after the first evaluation, at step 2: two more, and it is over.
    assert (result.status, result.step) == ("stopped", 6)


def test_early_stopping_goes_on_while_it_improves():
    result = fit(
        early_stopping("eval/loss", patience=1),
        eval_source=source(),
        eval_every=4,
        optimizer=optax.sgd(0.1),
        steps=40,
    )
    assert result.status == "finished"


def test_best_so_far_and_the_learning_rate_are_in_the_history():
    schedule = optax.linear_schedule(1e-2, 0.0, 12)
    result = fit(
        best_so_far("eval/loss", mode="min"),
        log_learning_rate(schedule),
        eval_source=source(),
        eval_every=6,
        optimizer=optax.sgd(schedule),
    )
    evaluated = [row for row in result.history if "eval/loss" in row]
    assert [row["best/eval/loss"] for row in evaluated] == sorted(
        (row["eval/loss"] for row in evaluated), reverse=True
    )
    rates = {row["step"]: row["train/learning_rate"] for row in result.history}
    assert rates[5] == pytest.approx(float(schedule(4)))


@pytest.mark.parametrize("mode", ["best", None])
def test_a_mode_that_is_none_is_said(mode):
    with pytest.raises(ValueError, match="mode="):
        early_stopping(mode=mode)
    with pytest.raises(ValueError, match="steps=0"):
        every(0, print)


def test_a_callback_logs_at_steps_without_a_log():
    schedule = optax.linear_schedule(1e-2, 0.0, 12)
    result = fit(every(3, log_learning_rate(schedule)), every(4, best_so_far("train/loss")))
    rates = {
        row["step"]: row["train/learning_rate"]
        for row in result.history
        if row["step"] in (3, 6, 9, 12)
    }
    assert rates == {step: pytest.approx(float(schedule(step - 1))) for step in (3, 6, 9, 12)}
    assert [row["step"] for row in result.history] == [3, 5, 6, 9, 10, 12]


def test_nan_is_never_the_best_and_no_improvement():
    run = Run(9, None, None)
    values = [float("nan"), 2.0, float("nan"), 1.0]
    run.history[:] = [{"step": n, "epoch": 0, "eval/loss": v} for n, v in enumerate(values)]
    assert run.best(("eval/loss", "min")) == (3, 1.0)
    assert run.best(("eval/loss", "max")) == (1, 2.0)
    stop = early_stopping(patience=0)
    assert not stop(run)
    run.history.append({"step": 4, "epoch": 0, "eval/loss": float("nan")})
    assert stop(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"best": ("train/los", "min")}, r"best=.* there are 'train/learning_rate', 'train/loss'"),
        ({"callbacks": [early_stopping("train/accuracy")]}, r"early_stopping\('train/accuracy'\)"),
        ({"callbacks": [early_stopping()]}, "Give eval_source= as well"),
    ],
)
def test_a_metric_that_no_log_will_have_is_refused_before_the_first_step(given, message):
    if "best" in given:
        given = {"checkpoint": Checkpoints(best=given["best"])}
    with pytest.raises(ValueError, match=message):
        fit(*given.pop("callbacks", []), **given)
