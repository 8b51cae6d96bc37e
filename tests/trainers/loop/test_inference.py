"""Evaluation and prediction by the trainer: which model they see, and programs that are kept."""

import gc
import weakref

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.support.models import MLP, assert_same, labelled
from trainers import Trainer, load
from trainers.loop.evaluation import Kept


@pytest.fixture
def compiled():
    """Returns a function that returns how many programs a call compiles."""
    count = 0

    def heard(name, *_, **__):
        nonlocal count
        count += "backend_compile" in name

    jax.monitoring.register_event_duration_secs_listener(heard)

    def of(call):
        before = count
        call()
        return count - before

    yield of
    jax.monitoring.unregister_event_duration_listener(heard)


def test_a_second_evaluation_or_prediction_compiles_nothing(compiled):
    source = labelled(20)
    trainer = Trainer(MLP(), source, batch_size=8)
    trainer.fit()
    assert compiled(lambda: trainer.evaluate(source)) >= 1
    assert compiled(lambda: trainer.predict(source)) >= 1
    assert compiled(lambda: (trainer.evaluate(source), trainer.predict(source))) == 0


def test_what_is_kept_of_a_source_goes_with_it():
    kept, made = Kept(), []

    def make():
        made.append(object())
        return made[-1]

    source = labelled(4)
    assert kept.get(source, "a", None, make) is kept.get(source, "a", None, make)
    assert kept.get(source, "b", None, make) is made[1]
    assert kept.get(source, "b", make, make) is made[2]
    assert len(made) == 3
    alive = weakref.ref(source)
    del source
    gc.collect()
    assert alive() is None
    assert not kept._kept


def test_an_evaluated_source_is_not_kept_alive():
    trainer, source = Trainer(MLP(), labelled(8), batch_size=8), labelled(9, seed=1)
    trainer.evaluate(source)
    trainer.predict(source)
    alive = weakref.ref(source)
    del source
    gc.collect()
    assert alive() is None


def test_in_a_callback_they_see_the_run_s_model_at_that_step():
    source, seen = labelled(24), []

    def look(run):
        logits = trainer.predict(source)
        np.testing.assert_allclose(logits, run.model()(source.data["x"]), rtol=1e-5, atol=1e-6)
        assert trainer.batch_at(0)["x"].shape == (8, 4)
        seen.append((trainer.evaluate(source)["loss"], run.metrics["eval/loss"]))

    trainer = Trainer(
        MLP(),
        source,
        batch_size=8,
        steps=9,
        log_every=3,
        eval_every=3,
        eval_source=source,
        optimizer=optax.sgd(0.5),
        callbacks=[look],
    )
    trainer.fit()
    assert len({mine for mine, _ in seen}) == 3
    assert [mine for mine, _ in seen] == pytest.approx([its for _, its in seen], rel=1e-6)


def test_before_fit_they_see_init_from_and_an_abstract_model_gets_its_values(tmp_path):
    source = labelled(20)
    result = Trainer(MLP(), source, batch_size=8, workdir=tmp_path).fit()
    expected = result.model(source.data["x"])
    abstract = nnx.eval_shape(lambda: MLP(seed=3))
    for model in (MLP(seed=2), abstract):
        trainer = Trainer(model, source, batch_size=8, steps=1, init_from=tmp_path)
        np.testing.assert_allclose(trainer.predict(source), expected, rtol=1e-5, atol=1e-6)
    assert_same(abstract, result.model)
    trained = nnx.eval_shape(lambda: MLP(seed=3))
    Trainer(trained, source, batch_size=8, steps=1, init_from=tmp_path).fit()
    assert_same(load(tmp_path, nnx.eval_shape(lambda: MLP(seed=3))), result.model)
    with pytest.raises(ValueError, match=r"'hidden.bias'.* have no value.*init_from=workdir"):
        Trainer(nnx.eval_shape(MLP), source, batch_size=8).fit()
