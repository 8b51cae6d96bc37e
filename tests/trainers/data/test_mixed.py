"""Mixtures of eager sources: formed in the compiled loop, batch for batch as they are read."""

import json

import numpy as np
import optax
import pytest

from datarax import MixedSource
from tests.support.models import MLP, arrays, memory, points
from tests.trainers.data.test_views import loss
from trainers import Trainer
from trainers.data import mixed
from trainers.data.eager import EagerBatches

pytestmark = pytest.mark.usefixtures("compiled_once")

N = 60


def source(n, seed, first=0):
    data = points(n)
    data["id"] = data["id"] + np.int32(first)
    return memory(data, shuffle=True)


def mixture(kind="plain", stop="never"):
    a, b = source(N, 1), source(23, 2, first=1000)
    if kind == "views":
        a = a.select(slice(0, 40))
        b = source(N, 1, first=1000).balanced("label")
    if kind == "one source":
        whole = source(N, 1)
        a, b = whole.select(slice(0, 40)), whole.select(slice(40, N))
    if kind == "nested":
        a = MixedSource([a, source(31, 3, first=500)], [1, 2], stop="all")
    return MixedSource([a, b], [(0, [3, 1]), (50, [1, 2]), (333, [1, 1])], stop=stop)


def trainer(source, **arguments):
    arguments = {"loss": loss, "batch_size": 12, "log_every": 1, **arguments}
    return Trainer(MLP(), source, **arguments)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        pytest.param("views", marks=SLOW),
        pytest.param("one source", marks=SLOW),
        pytest.param("nested", marks=SLOW),
    ],
)
def test_batches_are_those_that_are_read(kind, monkeypatch):
    monkeypatch.setattr(mixed, "_DRAWS", 60)  # five batches a span
    one = trainer(mixture(kind), steps=40)
    assert isinstance(one._batches, EagerBatches)
    expected = mixture(kind).get_batch(36 * 12)["id"]  # each size that is read is compiled
    for t in range(36):
        np.testing.assert_array_equal(one.batch_at(t)["id"], expected[12 * t : 12 * (t + 1)])
    np.testing.assert_array_equal(one.batch_at(0)["id"], mixture(kind).get_batch(12)["id"])


@pytest.mark.parametrize("stop", ["never", pytest.param("first", marks=SLOW)])
def test_a_run_resumes_exactly_with_the_state_that_reading_has(stop, tmp_path, monkeypatch):
    monkeypatch.setattr(mixed, "_DRAWS", 60)
    whole = trainer(mixture(stop=stop), steps=17).fit()
    trainer(mixture(stop=stop), steps=8, workdir=tmp_path).fit()
    again = trainer(mixture(stop=stop), steps=17, workdir=tmp_path).fit()
    for path, value in arrays(whole.model).items():
        np.testing.assert_array_equal(arrays(again.model)[path], value)
    assert again.history == whole.history
    batches = trainer(mixture(stop=stop), steps=17)._batches
    read = mixture(stop=stop)
    read.get_batch(5 * 12)
    assert json.loads(json.dumps(batches.state_at(5))) == read.get_state()


def test_it_ends_is_evaluated_and_predicted_where_it_stops(monkeypatch):
    monkeypatch.setattr(mixed, "_DRAWS", 60)
    made = mixture(stop="first")
    length = len(made)
    one = trainer(made, epochs=2, eval_source=mixture(stop="all"))
    assert one.steps_per_epoch == -(-length // 12)
    result = one.fit()
    assert result.step == 2 * one.steps_per_epoch
    evaluated = [row["step"] for row in result.history if "eval/loss" in row]
    assert evaluated == [result.step // 2, result.step]
    assert result.history[-1]["rows_seen"] == 2 * length
    assert result.history[-1]["epoch"] == 2.0
    made.set_random_order(False)
    rows = made.get_batch(length)
    predicted = one.predict(made, lambda model, batch: model(batch["x"]))
    np.testing.assert_allclose(predicted, result.model(rows["x"]), rtol=1e-5, atol=1e-6)
    expected = optax.softmax_cross_entropy_with_integer_labels(
        result.model(rows["x"]), rows["label"]
    ).mean()
    np.testing.assert_allclose(one.evaluate(made)["loss"], expected, rtol=1e-5)


@pytest.mark.slow
def test_records_that_fill_up_an_epochs_last_batch_do_not_count():
    made = mixture(stop="first")
    length = len(made)
    one = trainer(made, steps=40)
    last = one.batch_at(one.steps_per_epoch - 1)
    assert len(last["id"]) == length % 12
    whole = made.get_batch(2 * length)["id"]
    np.testing.assert_array_equal(last["id"], whole[length - length % 12 : length])
    following = one.batch_at(one.steps_per_epoch)
    np.testing.assert_array_equal(following["id"], whole[length : length + 12])
