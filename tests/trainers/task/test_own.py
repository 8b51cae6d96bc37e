"""A task with the user's own loss, and what tracing tells of one."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu import metrics as clu
from flax import nnx

from tests.support.models import MLP, called, labelled, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")


def loss(model, batch):
    """Cross-entropy of inputs that only the loss scales, with outputs and a weight."""
    logits, labels = model(batch["x"] / 2 - 1), batch["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    weight = jnp.where(labels == 0, 0.5, 1.0)
    return losses, {"logits": logits, "labels": labels.astype(jnp.int8), "weight": weight}


def test_predict_is_what_was_evaluated():
    source, model = labelled(21), MLP()
    trainer = Trainer(model, source, loss=loss, batch_size=8)
    outputs = trainer.predict(source)
    assert outputs.keys() == {"logits", "labels"}
    x, labels = source.data["x"], np.asarray(source.data["label"])
    np.testing.assert_allclose(outputs["logits"], model(x / 2 - 1), rtol=1e-5, atol=1e-6)
    right = outputs.argmax(-1) == labels
    weight = np.where(labels == 0, 0.5, 1.0)
    accuracy = trainer.evaluate(source)["accuracy"]
    assert accuracy == pytest.approx(right.mean()) or accuracy == pytest.approx(
        np.average(right, weights=weight)
    )
    np.testing.assert_allclose(trainer.predict(source, called), model(x), rtol=1e-5, atol=1e-6)


def test_predict_says_what_is_missing_and_names_its_second_argument():
    source = labelled(8)
    trainer = Trainer(MLP(), source, loss=lambda m, b: loss(m, b)[0], batch_size=8)
    with pytest.raises(ValueError, match=r"returns nothing beside the losses.*lambda model, batch"):
        trainer.predict(source)
    trainer = Trainer(MLP(), source, loss=loss, batch_size=8)
    unlabelled = memory({"x": points(5)["x"]})
    with pytest.raises(ValueError, match=r"reads the column 'label'.*has 'x'.*lambda model, batch"):
        trainer.predict(unlabelled)
    assert trainer.predict(unlabelled, called).shape == (5, 3)
    with pytest.raises(TypeError, match="expected a function"):
        trainer.predict(unlabelled, "logits")


def test_accuracy_needs_no_metrics_where_the_outputs_have_it(capsys):
    source = labelled(16)
    trainer = Trainer(MLP(), source, loss=loss, batch_size=8, eval_source=source)
    result = trainer.fit()
    assert 0 <= result.metrics["train/accuracy"] <= 1
    assert 0 <= result.metrics["eval/accuracy"] <= 1
    assert "accuracy of the loss's logits and labels\n" in capsys.readouterr().out
    plain = Trainer(MLP(), source, loss=lambda m, b: loss(m, b)[0], batch_size=8).fit()
    assert plain.metrics.keys() == {"train/loss"}


def test_losses_that_broadcast_to_pairs_are_refused_and_those_of_tokens_are_not():
    source = memory({"x": points(16)["x"], "y": points(16)["x"][:, 0]})
    model = MLP(classes=1)

    def pairs(model, batch):
        return (model(batch["x"]) - batch["y"]) ** 2

    with pytest.raises(ValueError, match=r"shape \(8, 8\), \(batch, batch\).*predictions\[:, 0\]"):
        Trainer(model, source, loss=pairs, batch_size=8).fit()

    def tokens(model, batch):
        return (model(batch["x"]) - batch["y"][:, None]) ** 2 * jnp.ones(8)

    assert Trainer(model, source, loss=tokens, batch_size=8).fit().step == 2


def test_a_loss_that_no_trained_parameter_changes_is_refused():
    source, other = labelled(8), MLP()
    ignores = [
        lambda model, batch: loss(other, batch),
        lambda model, batch: model(batch["x"]).argmax(-1).astype(jnp.float32),
    ]
    for one in ignores:
        with pytest.raises(ValueError, match="depends on none of the parameters"):
            Trainer(MLP(), source, loss=one, batch_size=8).fit()
    with pytest.raises(ValueError, match="depends on none of the parameters"):
        Trainer(
            MLP(),
            source,
            loss=lambda model, batch: model.out(jnp.ones((8, 8)))[:, 0] + batch["label"],
            batch_size=8,
            wrt=nnx.All(nnx.Param, lambda path, _: "hidden" in path),
        ).fit()


def test_a_metric_named_loss_does_not_take_the_place_of_the_loss(caplog):
    source = labelled(8)
    settings = {"loss": loss, "batch_size": 8}
    expected = Trainer(MLP(), source, **settings).fit().metrics["train/loss"]
    unweighted = clu.Collection.create(loss=clu.Average.from_output("loss"))
    result = Trainer(MLP(), source, metrics=unweighted, **settings).fit()
    assert result.metrics["train/loss"] == expected
    assert "a metric 'loss'" in caplog.text


def test_a_metric_that_cannot_be_computed_is_refused_when_the_trainer_is_made():
    deviation = clu.Collection.create(deviation=clu.Std.from_output("loss"))
    with pytest.raises(ValueError, match=r"Metric 'deviation'.*cannot be computed"):
        Trainer(MLP(), labelled(8), loss=loss, metrics=deviation)
