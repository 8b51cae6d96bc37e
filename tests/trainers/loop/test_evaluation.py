"""Evaluation and prediction: every record once, in stored order, in evaluation mode."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import Pipeline
from tests.support.models import MLP, Normed, assert_same, labelled, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")


def _expected(model, source):
    """Loss and accuracy over the whole source at once, by hand."""
    model = nnx.clone(model)
    model.eval()
    logits, labels = model(source.data["x"]), source.data["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(losses.mean()), float((logits.argmax(-1) == labels).mean())


def test_evaluation_in_a_run_is_exact_over_every_record_of_several_sources():
    source = labelled(20)
    sources = {"odd": labelled(37, seed=1, shuffle=True), "tiny": labelled(3, seed=2)}
    sources["piped"] = Pipeline(source=sources["odd"], stages=[], batch_size=5)
    result = Trainer(Normed(), source, batch_size=8, epochs=2, eval_source=sources).fit()
    assert [row["step"] for row in result.history] == [3, 6]
    for name in sources:
        loss, accuracy = _expected(result.model, sources["tiny" if name == "tiny" else "odd"])
        assert result.metrics[f"eval/{name}/loss"] == pytest.approx(loss, rel=1e-5)
        assert result.metrics[f"eval/{name}/accuracy"] == pytest.approx(accuracy)


def test_evaluation_moves_neither_the_model_nor_its_random_state():
    source = labelled(20)
    one = Trainer(Normed(), source, batch_size=8, epochs=2).fit()
    trainer = Trainer(Normed(), source, batch_size=8, epochs=2, eval_source=source, eval_every=1)
    other = trainer.fit()
    assert_same(one.model, other.model)
    before = nnx.clone(other.model)
    trainer.evaluate()
    trainer.evaluate(labelled(11))
    trainer.predict(source)
    assert_same(other.model, before)


def test_evaluate_takes_one_source_or_several_before_and_after_a_run():
    source, held_out = labelled(20), labelled(13, seed=1)
    model = MLP()
    trainer = Trainer(model, source, batch_size=8, eval_source=held_out)
    assert trainer.evaluate()["loss"] == pytest.approx(_expected(model, held_out)[0], rel=1e-5)
    result = trainer.fit()
    loss, accuracy = _expected(model, held_out)
    for values in (trainer.evaluate(), trainer.evaluate(held_out)):
        assert values == pytest.approx({"loss": loss, "accuracy": accuracy}, rel=1e-5)
    assert trainer.evaluate()["loss"] == result.metrics["eval/loss"]
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        trainer.evaluate({})
    named = trainer.evaluate({"a": held_out, "b": source})
    assert named.keys() == {"a/loss", "a/accuracy", "b/loss", "b/accuracy"}
    with pytest.raises(ValueError, match=r"write evaluate\(source\)"):
        Trainer(MLP(), source).evaluate()


class Nested(nnx.Module):
    """Returns a dict of the input's sum and a tuple."""

    def __init__(self):
        self.mlp = MLP()

    def __call__(self, x):
        return {"sum": x.sum(-1), "more": (self.mlp(x), None)}


def _loss(model, batch):
    return model(batch["x"])["more"][0][:, 0]


@pytest.mark.parametrize(
    ("n", "shuffle"),
    [
        (3, False),
        (21, True),
        *(pytest.param(n, n < 20, marks=pytest.mark.slow) for n in (3, 16, 21)),
        pytest.param(16, False, marks=pytest.mark.slow),
    ],
)
def test_predict_returns_one_row_a_record_in_stored_order(shuffle, n):
    data = points(n)
    source = memory({"x": data["x"], "label": data["label"]}, shuffle=shuffle)
    trainer = Trainer(Nested(), source, loss=_loss, batch_size=8)
    outputs = trainer.predict(source, lambda model, batch: model(batch["x"]))
    assert isinstance(outputs["sum"], np.ndarray)
    np.testing.assert_allclose(outputs["sum"], data["x"].sum(-1), rtol=1e-5, atol=1e-6)
    assert outputs["more"][0].shape == (n, 3)
    assert outputs["more"][1] is None


def test_predict_needs_no_label_and_uses_the_running_averages():
    source = labelled(20)
    trainer = Trainer(Normed(), source, batch_size=8)
    model = trainer.fit().model
    x = points(11, seed=3)["x"]
    logits = trainer.predict(memory({"x": x}, shuffle=True))
    assert not model.dropout.deterministic  # the model's own mode is left alone
    evaluated = nnx.clone(model)
    evaluated.eval()
    np.testing.assert_allclose(logits, evaluated(x), rtol=1e-5, atol=1e-6)


def test_predict_says_that_a_model_reduces_its_batch():
    class Reduced(MLP):
        def __call__(self, x):
            return super().__call__(x).mean()

    source = memory({"x": points(8)["x"]})
    trainer = Trainer(Reduced(), source, loss=lambda model, batch: batch["x"][:, 0], batch_size=4)
    with pytest.raises(ValueError, match=r"shape \(\) for 4 records"):
        trainer.predict(source, lambda model, batch: model(batch["x"]))


def test_with_an_average_evaluation_and_predict_use_it():
    source = labelled(20, shuffle=False)
    trainer = Trainer(
        MLP(), source, batch_size=8, steps=6, ema=0.5, optimizer=optax.sgd(1.0), eval_source=source
    )
    result = trainer.fit()
    loss, _ = _expected(result.ema, source)
    assert abs(loss - _expected(result.model, source)[0]) > 1e-3
    assert result.metrics["eval/loss"] == pytest.approx(loss, rel=1e-5)
    assert trainer.evaluate()["loss"] == pytest.approx(loss, rel=1e-5)
    predicted = trainer.predict(source)
    np.testing.assert_allclose(predicted, result.ema(source.data["x"]), rtol=1e-5, atol=1e-6)


def test_weights_and_masks_hold_in_evaluation_too():
    data = points(21)
    data["weight"] = (data["id"] / 20).astype(np.float32)

    def loss(model, batch):
        value = jnp.where(batch["weight"] > 0, batch["x"][:, 0], jnp.nan)
        return value, {"weight": batch["weight"]}

    trainer = Trainer(MLP(), memory(data), loss=loss, batch_size=8)
    expected = np.average(data["x"][:, 0], weights=data["weight"])
    assert trainer.evaluate(memory(data))["loss"] == pytest.approx(expected, rel=1e-5)
