"""The average of the parameters: what evaluation, checkpoints and exports mean by the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.support.models import MLP, Normed, assert_close, assert_same, labelled
from trainers import Checkpoints, Trainer, load

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_its_decay_begins_low_and_batchnorm_s_statistics_belong_to_it():
    source, settings = labelled(16, shuffle=False), {"batch_size": 8, "optimizer": optax.sgd(0.1)}
    states = [nnx.state(Normed(), nnx.Any(nnx.Param, nnx.BatchStat))]
    for steps in (1, 2):
        model = Trainer(Normed(), source, steps=steps, **settings).fit().model
        states.append(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    expected = states[0]
    for share, state in zip((0.9, 9 / 11), states[1:], strict=True):
        expected = jax.tree.map(lambda a, x, s=share: a + s * (x - a), expected, state)
    result = Trainer(Normed(), source, steps=2, ema=0.999, **settings).fit()
    assert_close(nnx.state(result.ema, nnx.Any(nnx.Param, nnx.BatchStat)), expected)


def test_it_is_kept_in_float32():
    model = nnx.Linear(4, 3, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    states = []

    def look(run):
        states.append(trainer._fit.state.ema)

    trainer = Trainer(
        model, labelled(16), batch_size=8, steps=2, ema=0.9, log_every=1, callbacks=[look]
    )
    result = trainer.fit()
    assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {jnp.dtype("float32")}
    assert result.ema.kernel.get_value().dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["moving", "of the optimizer"])
def test_evaluation_best_load_and_init_from_mean_the_average(tmp_path, kind):
    source = labelled(20, shuffle=False)
    arguments = {"ema": 0.5, "optimizer": optax.sgd(1.0)}
    if kind == "of the optimizer":
        arguments = {
            "ema": optax.contrib.schedule_free_eval_params,
            "optimizer": optax.contrib.schedule_free_sgd(1.0),
        }
    settings = {"batch_size": 8, "eval_source": source, **arguments}
    best = Checkpoints(best=("eval/loss", "min"))
    trainer = Trainer(MLP(), source, steps=6, workdir=tmp_path, checkpoint=best, **settings)
    result = trainer.fit()
    assert not np.array_equal(result.ema.out.kernel[...], result.model.out.kernel[...])
    assert_same(load(tmp_path, MLP(seed=1)), result.ema)
    assert_same(load(tmp_path, MLP(seed=1), average=False), result.model)
    chosen = load(tmp_path, MLP(seed=1), step="best")
    measured = Trainer(chosen, source, batch_size=8).evaluate(source)["loss"]
    assert measured == pytest.approx(result.best[1], rel=1e-6)
    other = Trainer(MLP(seed=1), source, init_from=tmp_path, batch_size=8)
    assert other.evaluate(source)["loss"] == pytest.approx(result.metrics["eval/loss"], rel=1e-6)
    assert trainer.evaluate()["loss"] == pytest.approx(result.metrics["eval/loss"], rel=1e-6)
    again = Trainer(MLP(), source, steps=9, workdir=tmp_path, checkpoint=best, **settings).fit()
    straight = Trainer(MLP(), source, steps=9, **settings).fit()
    assert_same(again.ema, straight.ema)
