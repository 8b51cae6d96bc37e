"""The train step: its gradient against plain optax, weights, precision, and what it carries."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu import metrics as clu
from flax import nnx

from tests.support.models import (
    MLP,
    Language,
    Normed,
    assert_close,
    assert_same,
    labelled,
    memory,
    points,
)
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")


def _cross_entropy(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["label"])


def _plain_optax(model, loss, batches, optimizer):
    """Trains a clone of `model` on `batches` with a plain loop.

    `loss(model, batch)` returns the sum of the weighted losses and the sum of the weights. Returns
    the parameters, and those two sums for each batch.
    """
    definition, params, rest = nnx.split(nnx.clone(model), nnx.Param, ...)
    state, totals = optimizer.init(params), []

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            total, weight = loss(nnx.merge(definition, params, rest, copy=True), batch)
            return total / weight, (total, weight)

        gradient, totals = jax.grad(mean, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, totals

    for batch in batches:
        params, state, total = step(params, state, batch)
        totals.append(total)
    return params, np.array(jax.device_get(totals))


def _batches(source, batch_size, epochs):
    """Yields the batches of whole epochs as NumPy would: each record once, the last one short."""
    rows = {name: np.asarray(column) for name, column in source.data.items()}
    for epoch in range(epochs):
        key = jax.random.key(source.seed + epoch)
        order = np.asarray(source.get_batch_at(0, len(source), key)["id"])
        for start in range(0, len(source), batch_size):
            yield {name: column[order[start : start + batch_size]] for name, column in rows.items()}


# --- loss and gradient -----------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_run_equals_a_plain_loop_over_the_same_batches(shuffle):
    source = memory(points(50), shuffle=shuffle)
    model, optimizer = MLP(), optax.adam(1e-2)
    batches = list(_batches(source, 16, 3))

    def total(model, batch):
        losses = _cross_entropy(model, batch)
        return losses.sum(), len(losses)

    expected, totals = _plain_optax(model, total, batches, optimizer)
    settings = {"loss": _cross_entropy, "optimizer": optimizer, "batch_size": 16}
    result = Trainer(model, source, epochs=3, log_every=4, **settings).fit()
    assert_close(nnx.state(result.model, nnx.Param), expected)
    assert [(row["step"], row["epoch"]) for row in result.history] == [(4, 1), (8, 2), (12, 3)]
    for row, (loss, weight) in zip(result.history, totals.reshape(3, 4, 2).sum(1), strict=True):
        assert weight == 50
        assert row["train/loss"] == pytest.approx(loss / weight, rel=1e-5)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_token_weights_and_a_padded_last_batch_equal_plain_optax(accumulate):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 8, 21)
    data = {
        "input_ids": rng.integers(0, 11, (21, 8)),
        "attention_mask": (np.arange(8) < lengths[:, None]).astype(np.int32),
        "id": np.arange(21),
    }
    source = memory(data, shuffle=True)

    def weighted(model, batch):
        logits, tokens = model(batch["input_ids"]), batch["input_ids"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses, batch["attention_mask"][:, 1:].astype(jnp.float32)

    def total(model, batch):
        losses, weight = weighted(model, batch)
        return (losses * weight).sum(), weight.sum()

    def loss(model, batch):
        losses, weight = weighted(model, batch)
        return losses, {"weight": weight}

    model, optimizer = Language(), optax.sgd(0.5)
    expected, totals = _plain_optax(model, total, _batches(source, 8, 1), optimizer)
    loss_sum, weight = totals.sum(axis=0)
    assert weight == data["attention_mask"][:, 1:].sum()
    settings = {"optimizer": optimizer, "batch_size": 8, "accumulate": accumulate}
    result = Trainer(model, source, loss=loss, **settings).fit()
    assert_close(nnx.state(result.model, nnx.Param), expected)
    assert result.metrics["train/loss"] == pytest.approx(loss_sum / weight, rel=1e-5)


def test_accumulation_gives_the_gradient_of_one_big_batch():
    source = memory(points(50), shuffle=True)  # the last batch of 32 has 18 records
    models = [
        Trainer(
            MLP(),
            source,
            loss=_cross_entropy,
            optimizer=optax.sgd(0.1),
            batch_size=32,
            epochs=2,
            accumulate=accumulate,
        ).fit()
        for accumulate in (1, 4)
    ]
    assert_close(models[1].model, models[0].model)
    assert models[1].metrics["train/loss"] == pytest.approx(models[0].metrics["train/loss"])


def test_accumulation_carries_metrics_and_statistics_through_its_slices():
    result = Trainer(Normed(), labelled(50), batch_size=16, accumulate=4, epochs=2).fit()
    assert 0 <= result.metrics["train/accuracy"] <= 1
    assert int(result.model.calls[...]) == 2 * 4 * 4


def test_records_of_weight_0_do_no_harm_though_their_loss_is_not_a_number():
    data = points(50)
    data["weight"] = (data["id"] % 2).astype(np.float32)
    data["spoil"] = np.where(data["id"] % 2, 0.0, np.nan).astype(np.float32)

    def run(loss):
        settings = {"loss": loss, "optimizer": optax.sgd(0.1), "batch_size": 16}
        return Trainer(MLP(), memory(data, shuffle=True), **settings).fit()

    def spoilt(model, batch):
        return _cross_entropy(model, batch) + batch["spoil"], {"weight": batch["weight"]}

    def clean(model, batch):
        return _cross_entropy(model, batch), {"weight": batch["weight"]}

    result, expected = run(spoilt), run(clean)
    assert np.isfinite(result.metrics["train/loss"])
    assert_same(result.model, expected.model)


def test_a_run_in_which_every_weight_is_0_changes_nothing_and_warns_of_nothing():
    def loss(model, batch):
        losses = _cross_entropy(model, batch)
        return losses, {"weight": jnp.zeros_like(losses)}

    model = MLP()
    before = nnx.clone(model)
    source = memory(points(8))
    result = Trainer(model, source, loss=loss, optimizer=optax.sgd(1.0), batch_size=8).fit()
    assert np.isnan(result.metrics["train/loss"])
    assert_same(result.model, before)


# --- metrics ---------------------------------------------------------------------------------


@flax.struct.dataclass
class Greatest(clu.Metric):
    """The greatest id seen: its empty value is not 0."""

    value: jax.Array

    @classmethod
    def empty(cls):
        return cls(jnp.float32(-jnp.inf))

    @classmethod
    def from_model_output(cls, *, id, mask, **_):
        return cls(jnp.where(mask, id, -jnp.inf).max())

    def merge(self, other):
        return type(self)(jnp.maximum(self.value, other.value))

    def compute(self):
        return self.value


@flax.struct.dataclass
class Several(clu.Collection):
    accuracy: clu.Accuracy
    greatest: Greatest
    id: clu.Average.from_output("id")
    loss_again: clu.Average.from_output("loss")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_metrics_see_every_record_once_and_no_padding(accumulate):
    def loss(model, batch):
        logits = model(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses, {"logits": logits, "id": -1.0 - batch["id"]}

    source, model = memory(points(50), shuffle=True), MLP()
    predicted = np.asarray(model(source.data["x"])).argmax(-1)
    result = Trainer(
        model,
        source,
        loss=loss,
        metrics=Several,
        optimizer=optax.sgd(0.0),
        batch_size=16,
        accumulate=accumulate,
    ).fit()
    metrics = result.metrics
    assert metrics["train/greatest"] == -1
    assert metrics["train/id"] == pytest.approx(-1 - 49 / 2)
    assert metrics["train/loss_again"] == pytest.approx(metrics["train/loss"], rel=1e-6)
    correct = (predicted == np.asarray(source.data["label"])).mean()  # labels: from the batch
    assert metrics["train/accuracy"] == pytest.approx(correct)


def _trainer(loss, **settings):
    return Trainer(MLP(), memory(points(50)), loss=loss, batch_size=16, **settings)


def test_a_metric_that_misses_its_input_says_what_it_was_given():
    for metrics in (Several, clu.Collection.create(accuracy=clu.Accuracy)):
        with pytest.raises(ValueError, match=r"computed of 'labels' \(16,\), .*return losses,"):
            _trainer(_cross_entropy, metrics=metrics).fit()


def test_a_metric_that_is_no_sum_or_no_number_is_refused():
    def loss(model, batch):
        return _cross_entropy(model, batch), {"id": batch["id"]}

    collecting = clu.Collection.create(ids=clu.CollectingMetric.from_outputs(("id",)))
    with pytest.raises(ValueError, match=r"Metric 'ids' .* grows from batch to batch.*predict"):
        _trainer(loss, metrics=collecting).fit()
    several = clu.Collection.create(each=Each)
    with pytest.raises(ValueError, match=r"Metric 'each' has shape \(3,\): expected one number"):
        _trainer(loss, metrics=several).fit()


@flax.struct.dataclass
class Each(Greatest):
    """Three numbers."""

    def compute(self):
        return np.full(3, self.value)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda m, b: _cross_entropy(m, b).mean(), ValueError, r"shape \(\).*leave out .mean"),
        (lambda m, b: m(b["x"])[:3, 0], ValueError, r"shape \(3,\).*\(batch,\) = \(16,\)"),
        (lambda m, b: m(b["x"])[..., None], ValueError, r"\(16, 3, 1\)"),
        (lambda m, b: None, TypeError, "returns NoneType.*return losses"),
        (lambda m, b: (m(b["x"])[:, 0], m(b["x"])), TypeError, r"\(array\(16,\), array\(16, 3\)\)"),
        (
            lambda m, b: (m(b["x"]), {"weight": b["x"][:, 0]}),
            ValueError,
            r"outputs\['weight'\] has shape \(16,\), the losses \(16, 3\)",
        ),
    ],
)
def test_a_loss_of_the_wrong_kind_says_what_is_expected(loss, error, message):
    with pytest.raises(error, match=message):
        _trainer(loss).fit()


# --- precision -------------------------------------------------------------------------------


class Watching(nnx.Module):
    """Keeps the dtypes its layers compute in."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.frozen = nnx.Linear(36, 8, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)
        self.seen = nnx.static([])

    def __call__(self, image):
        hidden = self.frozen(image.reshape(len(image), -1))
        self.seen.append((image.dtype, hidden.dtype, self.out(hidden).dtype))
        return self.out(hidden)


def test_bfloat16_computes_so_and_keeps_parameters_and_labels_in_float32():
    rng = np.random.default_rng(0)
    data = {"image": rng.integers(0, 256, (20, 6, 6), np.uint8), "label": rng.integers(0, 3, 20)}

    def is_out(path, _):
        return "out" in path

    model = Watching()
    frozen = nnx.clone(model.frozen)
    trainer = Trainer(
        model,
        memory(data),
        batch_size=8,
        precision=jnp.bfloat16,
        wrt=nnx.All(nnx.Param, is_out),
        eval_source=memory(data),
    )
    result = trainer.fit()
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    assert_same(model.frozen, frozen)
    assert trainer.predict(memory(data)).dtype == np.float32
    assert set(result.model.seen) == {(jnp.dtype(jnp.bfloat16),) * 3}


def test_bfloat16_leaves_targets_as_they_are():
    data = {"x": np.zeros((8, 1), np.float32), "target": np.full(8, 1001.0, np.float32)}
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    trainer = Trainer(model, memory(data), batch_size=8, precision=jnp.bfloat16)
    assert trainer.evaluate(memory(data)) == {"loss": 1001.0**2}


def test_float16_is_refused():
    for precision in (jnp.float16, "float16"):
        with pytest.raises(ValueError, match=r"write precision=jnp\.bfloat16"):
            Trainer(MLP(), labelled(), precision=precision)
