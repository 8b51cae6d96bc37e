"""How a model is called: as in training or in evaluation, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import CNN, MLP, Language, images, labelled, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")


class Told(nnx.Module):
    """Is told by an argument whether it is in training, and given random streams."""

    def __init__(self):
        self.mlp, self.dropout = MLP(), nnx.Dropout(0.5)
        self.seen = nnx.static([])

    def __call__(self, x, train, *, deterministic: bool, rngs=None):
        self.seen.append((train, deterministic, rngs is not None))
        return self.mlp(self.dropout(x, deterministic=deterministic, rngs=rngs))


def test_train_deterministic_and_rngs_are_given_to_a_model_that_takes_them():
    source, model = labelled(16, shuffle=False), Told()
    trainer = Trainer(model, source, batch_size=8, eval_source=source)
    result = trainer.fit()
    assert set(model.seen) == {(True, False, True), (False, True, False)}
    np.testing.assert_allclose(
        trainer.predict(source), model.mlp(source.data["x"]), rtol=1e-5, atol=1e-6
    )
    again = Trainer(Told(), source, batch_size=8, eval_source=source).fit()
    assert again.metrics == result.metrics  # the seed decides
    other = Trainer(Told(), source, batch_size=8, eval_source=source, seed=1).fit()
    assert other.metrics != result.metrics


class Noisy(nnx.Module):
    """Returns the random number of the step that it is given streams for."""

    def __init__(self):
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, x, rngs):
        return self.bias[...] + jax.random.uniform(rngs(), (len(x),))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_and_slice_has_random_numbers_of_its_own(accumulate):
    source = memory({"x": np.zeros((8, 1), np.float32), "target": np.zeros(8, np.float32)})
    settings = {"batch_size": 8, "steps": 3, "log_every": 1, "accumulate": accumulate}
    history = Trainer(Noisy(), source, **settings).fit().history
    assert len({row["train/loss"] for row in history}) == 3


@pytest.mark.parametrize(
    ("model", "source", "line"),
    [
        (
            CNN(),
            memory(images()),
            "image: uint8 -> float32 in [0, 1], (batch, 6, 6, 1) -> logits (batch, 3); "
            "softmax cross-entropy of label; accuracy",
        ),
        (
            MLP(classes=1),
            memory({"x": points(8)["x"], "target": points(8)["x"][:, 0]}),
            "x: float32 (batch, 4) -> predictions (batch, 1); squared error of target",
        ),
        (
            Language(),
            memory(
                {"input_ids": np.ones((8, 5), np.int32), "attention_mask": np.ones((8, 5), int)}
            ),
            "input_ids: int32 (batch, 5) -> logits (batch, 5, 11); next-token cross-entropy of "
            "input_ids weighted by attention_mask; accuracy; perplexity",
        ),
    ],
)
def test_what_is_inferred_is_said_before_the_first_step(model, source, line, capsys):
    trainer = Trainer(model, source, batch_size=8, steps=1)
    assert str(trainer.preflight()).splitlines()[0] == line
    trainer.fit()
    assert capsys.readouterr().out.splitlines()[0] == line


def test_a_bool_label_needs_two_logits():
    data = {"x": points(8)["x"], "label": np.arange(8) % 2 == 0}
    with pytest.raises(ValueError, match=r"'label' needs \(batch, 2\): give the last layer 2"):
        Trainer(MLP(classes=1), memory(data), batch_size=8).fit()


def test_modes_that_the_user_set_stay(caplog):
    class Frozen(nnx.Module):
        def __init__(self):
            self.norm, self.other = (nnx.BatchNorm(4, rngs=nnx.Rngs(0)) for _ in range(2))
            self.mlp = MLP()

        def __call__(self, x):
            return self.mlp(self.other(self.norm(x)))

    model = Frozen()
    model.norm.eval()
    Trainer(model, labelled(16), batch_size=8).fit()
    assert not np.any(model.norm.mean[...])
    assert np.any(model.other.mean[...])
    assert (model.norm.use_running_average, model.other.use_running_average) == (True, False)
    assert "model.train()" not in caplog.text
    model.eval()
    before = np.array(model.other.mean[...])
    Trainer(model, labelled(16), batch_size=8).fit()
    np.testing.assert_array_equal(model.other.mean[...], before)
    assert "Every 'BatchNorm' of the model is in evaluation mode" in caplog.text
