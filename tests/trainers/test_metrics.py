"""Metrics: those of many batches are those of all their rows, as scikit-learn has them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clu import metrics as clu

from tests.support.models import MLP, memory, points
from trainers import Trainer, metrics

pytestmark = pytest.mark.usefixtures("compiled_once")

sklearn = pytest.importorskip("sklearn.metrics")

N, CLASSES = 101, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, CLASSES)).astype(np.float32)
LOGITS[:, 5] -= 9  # class 5 is neither a label nor predicted
LABELS = (LOGITS + RNG.normal(size=LOGITS.shape))[:, :5].argmax(1).astype(np.int32)
FOUND = LOGITS.argmax(1)


def of_batches(metric, **given):
    """Merges the metric of batches of 1 and 50 rows, some of which do not count."""
    merged, start = metric.empty(), 0
    for size in (1, 50, 50):
        rows = {name: jnp.array(column[start : start + size]) for name, column in given.items()}
        filled = {name: jnp.concatenate([column, column[:1] * 0]) for name, column in rows.items()}
        mask = jnp.arange(size + 1) < size
        merged, start = merged.merge(metric.from_model_output(**filled, mask=mask)), start + size
    assert start == N
    return float(merged.compute())


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_macro_and_binary_scores_are_those_of_scikit_learn(name):
    score, metric = getattr(sklearn, f"{name}_score"), getattr(metrics, name)
    found = of_batches(metric(CLASSES), logits=LOGITS, labels=LABELS)
    assert found == pytest.approx(score(LABELS, FOUND, average="macro"))
    binary, labels = LOGITS[:, 0], (LABELS == 0).astype(np.int32)
    want = score(labels, binary > 0)
    pair = np.stack([0 * binary, binary], axis=1)
    for logits in (binary, binary[:, None], pair):
        assert of_batches(metric(), logits=logits, labels=labels) == pytest.approx(want)
    assert of_batches(metric(), logits=binary * 0 - 1, labels=labels) == 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_is_that_of_scikit_learn(k):
    found = of_batches(metrics.top_k(k), logits=LOGITS, labels=LABELS)
    want = sklearn.top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(CLASSES))
    assert found == pytest.approx(want)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_errors_of_numbers_are_those_of_scikit_learn(shape):
    targets, found = RNG.normal(size=(2, N, *shape)).astype(np.float32)
    given = {"logits": found, "labels": targets}
    for metric, score in (
        (metrics.MeanSquaredError, sklearn.mean_squared_error),
        (metrics.MeanAbsoluteError, sklearn.mean_absolute_error),
    ):
        assert of_batches(metric, **given) == pytest.approx(score(targets, found), rel=1e-5)


def test_perplexity_weighs_and_passes_over_what_does_not_count():
    losses = RNG.exponential(size=(N, 4)).astype(np.float32)
    weight = RNG.integers(0, 3, losses.shape).astype(np.float32)
    losses[weight == 0] = np.nan
    want = np.exp(np.nansum(losses * weight) / weight.sum())
    merged = metrics.Perplexity.empty()
    for part in (slice(0, 30), slice(30, N)):
        given = {"loss": jnp.array(losses[part]), "weight": jnp.array(weight[part])}
        merged = merged.merge(metrics.Perplexity.from_model_output(**given))
    assert float(merged.compute()) == pytest.approx(want, rel=1e-5)


def test_a_trainer_reports_them_and_predict_gives_the_confusion_matrix():
    data, model = points(50), MLP()
    collection = clu.Collection.create(
        f1=metrics.f1(3), top2=metrics.top_k(2), precision=metrics.precision(3)
    )
    source = memory(data)
    trainer = Trainer(model, source, metrics=collection, eval_source=source, batch_size=16)
    result = trainer.fit()
    found = trainer.predict(source).argmax(-1)
    want = sklearn.f1_score(data["label"], found, average="macro")
    assert result.metrics["eval/f1"] == pytest.approx(want)
    assert {"eval/top2", "eval/precision", "train/f1"} <= result.metrics.keys()
    matrix = metrics.confusion_matrix(data["label"], found, 3)
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(data["label"], found))


def test_regression_reports_its_errors():
    data = {"x": points(20)["x"], "target": points(20)["x"][:, 0]}
    collection = clu.Collection.create(mae=metrics.MeanAbsoluteError, mse=metrics.MeanSquaredError)
    model = MLP(classes=1)
    found = Trainer(model, memory(data), metrics=collection, batch_size=8).evaluate(memory(data))
    error = np.asarray(model(data["x"]))[:, 0] - data["target"]
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    want = pytest.approx(np.square(error).mean(), rel=1e-5)
    assert found["mse"] == want
    assert found["loss"] == want


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (metrics.f1(), r"logits \(8, 3\) for labels \(8,\).*f1\(classes=3\)"),
        (metrics.MeanSquaredError, r"predictions \(8, 3\) and targets \(8,\) differ"),
    ],
)
def test_metrics_that_do_not_fit_say_so_before_the_first_step(metric, words):
    collection = clu.Collection.create(one=metric)

    def loss(model, batch):
        logits = model(batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses, {"logits": logits, "labels": batch["label"]}

    with pytest.raises(ValueError, match=words):
        Trainer(MLP(), memory(points(8)), loss=loss, metrics=collection, batch_size=8).fit()


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="classes=1: expected an integer from 2"):
        metrics.f1(1)
    with pytest.raises(ValueError, match="k=0: expected"):
        metrics.top_k(0)
    with pytest.raises(ValueError, match="go up to 5: classes=3"):
        metrics.confusion_matrix([0], [5], 3)
    with pytest.raises(ValueError, match=r"shape \(1,\), the predictions \(2,\)"):
        metrics.confusion_matrix([0], [0, 1], 3)
