"""Precision: what the model is called with is lowered, everything else stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.support.models import MLP, labelled, memory
from trainers import Trainer
from trainers.step.precision import entered_in

pytestmark = pytest.mark.usefixtures("compiled_once")

BF16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float32")


class Parted(nnx.Module):
    """A model whose parts a loss calls by themselves."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.encoder, self.head = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
        self.seen = nnx.static([])

    def encode(self, x, scale=1):
        self.seen.append(x.dtype)
        return self.encoder(x) * scale

    def __call__(self, x):
        x = self.encode(x).astype(jnp.float32)  # on purpose, within the model
        self.seen.append(self.head(x).dtype)
        return self.head(x)[:, 0]


def lowered(model):
    """Returns a model with parameters in bfloat16, entered in it."""
    state = jax.tree.map(lambda x: x.astype(BF16), nnx.state(model))
    nnx.update(model, state)
    return entered_in(model, BF16)


def test_a_call_from_outside_is_lowered_and_what_it_gives_is_float32():
    model, x = lowered(Parted()), jnp.ones((2, 4))
    assert model(x).dtype == F32
    assert model.seen == [BF16, F32]
    assert model.encode(x, scale=2).dtype == F32
    assert model.encoder(x).dtype == F32
    assert model.seen[2:] == [BF16]
    assert isinstance(model, Parted)
    plain = Parted()
    assert entered_in(plain, None) is plain
    assert type(plain) is Parted


def test_random_streams_pass_as_they_are():
    dropout, rngs = entered_in(nnx.Dropout(0.5), BF16), nnx.Rngs(0)
    dropout(jnp.ones(3), rngs=rngs)
    assert int(rngs.default.count[...]) == 1


def test_an_own_loss_keeps_its_columns_and_targets_exact():
    data = {"x": np.zeros((16, 4), np.float32), "y": np.full(16, 257.0, np.float32)}

    def loss(model, batch):
        return jnp.abs(model(batch["x"]) * 0 - batch["y"])

    source, model = memory(data), Parted()
    trainer = Trainer(model, source, loss=loss, batch_size=8, precision=jnp.bfloat16)
    assert trainer.fit().metrics["train/loss"] == 257
    assert trainer.evaluate(source) == {"loss": 257}
    assert set(model.seen) == {BF16, F32}
    y = trainer.predict(source, lambda model, batch: batch["y"] + 0 * model(batch["x"]))
    assert y.tolist() == [257.0] * 16


class Scalar(nnx.Module):
    """One number."""

    def __init__(self, dtype):
        self.w = nnx.Param(jnp.zeros((), dtype))


@pytest.mark.parametrize(
    ("dtype", "gradient", "accumulate"), [("bfloat16", 1.0, 512), ("float16", 200.0, 1)]
)
def test_gradients_are_summed_up_exactly_whatever_the_parameters_dtype(dtype, gradient, accumulate):
    source = memory({"x": np.zeros(512, np.float32)})

    def loss(model, batch):
        return model.w[...].astype(jnp.float32) * (gradient + batch["x"])

    settings = {"optimizer": optax.sgd(1.0), "batch_size": 512, "accumulate": accumulate}
    result = Trainer(Scalar(dtype), source, loss=loss, **settings).fit()
    assert float(result.model.w[...]) == -gradient


def test_a_complex_parameter_goes_downhill():
    source = memory({"x": np.zeros(8, np.float32)})

    def loss(model, batch):
        return jnp.abs(model.w[...] - (3 + 4j)) ** 2 + batch["x"]

    settings = {"optimizer": optax.sgd(0.25), "batch_size": 8, "steps": 40}
    result = Trainer(Scalar("complex64"), source, loss=loss, **settings).fit()
    assert complex(result.model.w[...]) == pytest.approx(3 + 4j, rel=1e-5)


def test_the_gradient_s_norm_is_logged_where_it_is_asked_for():
    source = labelled(16, shuffle=False)
    settings = {"batch_size": 8, "steps": 2, "optimizer": optax.sgd(0.0)}
    assert "train/gradient_norm" not in Trainer(MLP(), source, **settings).fit().metrics
    result = Trainer(MLP(), source, log_gradient_norm=True, **settings).fit()
    norms = []
    for start in (0, 8):
        x, labels = (source.data[name][start : start + 8] for name in ("x", "label"))

        def mean(state, x=x, labels=labels):
            logits = nnx.merge(nnx.graphdef(MLP()), state)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        norms.append(float(optax.tree.norm(jax.grad(mean)(nnx.state(MLP())))))
    assert result.metrics["train/gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
