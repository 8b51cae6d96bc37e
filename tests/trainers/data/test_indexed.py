"""Training on an indexed source: the run on the eager source of the same arrays, bit for bit."""

import json

import jax
import numpy as np
import optax
import pytest

from datarax import Pipeline
from tests.datarax.sources.test_indexed import Rows
from tests.support.models import Normed, arrays, memory, points
from tests.support.sources import kinds_of
from trainers import Trainer

N = 101


def noise(batch, key):
    return {**batch, "x": batch["x"] + jax.vmap(lambda k: jax.random.normal(k, (4,)))(key)}


def loss(model, batch):
    logits = model(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, {"logits": logits, "labels": batch["label"]}


def trainer(kind, **arguments):
    data = points(N)
    source = memory(data, shuffle=True) if kind == "eager" else Rows(data, shuffle=True, seed=7)
    pipeline = Pipeline(source=source, stages=[noise], batch_size=16)
    arguments = {"loss": loss, "log_every": 5, "eval_source": source, **arguments}
    return Trainer(Normed(), pipeline, **arguments)


def equal(a, b):
    for path, value in arrays(a.model).items():
        np.testing.assert_array_equal(arrays(b.model)[path], value)
    assert a.history == b.history


@pytest.mark.slow  # so are, below, those of a dataset in memory and on disk
def test_the_run_is_the_eager_one_bit_for_bit():
    equal(trainer("eager", steps=25).fit(), trainer("indexed", steps=25).fit())


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("eager", "indexed"), ("indexed", "eager")])
def test_a_run_of_one_kind_goes_on_with_the_other(kinds, tmp_path):
    def resumed(first, second, workdir):
        trainer(first, steps=10, workdir=workdir).fit()
        return trainer(second, steps=25, workdir=workdir).fit()

    equal(resumed("eager", "eager", tmp_path / "eager"), resumed(*kinds, tmp_path / "both"))


def test_batches_and_predictions_are_the_eager_ones():
    eager, indexed = trainer("eager"), trainer("indexed")
    for t in (0, 5, 6, 7, 20):
        for name, column in eager.batch_at(t).items():
            np.testing.assert_array_equal(indexed.batch_at(t)[name], column)


# --- Hugging Face datasets: on the device, in memory, on disk ---


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    data = points(N) | {"text": [f"row {i}" for i in range(N)]}
    of = kinds_of(data, tmp_path_factory.mktemp("rows") / "rows", shuffle=True, seed=7)

    def made(kind, shards=1, **arguments):
        source = of(kind)
        pipeline = Pipeline(source=source, stages=[noise], batch_size=16, shards=shards)
        arguments = {"loss": loss, "log_every": 5, "eval_source": source, **arguments}
        return Trainer(Normed(), pipeline, **arguments)

    return made


def logged(workdir):
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "time"} for row in found]


def resumed(rows, first, second, workdir, **arguments):
    """Returns the result of a run that begins on one kind of source and goes on with another."""
    rows(first, steps=10, workdir=workdir, **arguments).fit()
    return rows(second, steps=25, workdir=workdir, **arguments).fit()


@pytest.fixture(scope="module")
def eagerly(rows, tmp_path_factory, compiled_once):
    """A run on the eager source, resumed once, and its workdir."""
    workdir = tmp_path_factory.mktemp("eagerly")
    return resumed(rows, "eager", "eager", workdir), workdir


@pytest.mark.parametrize(
    "kinds",
    [
        ("memory", "disk"),
        pytest.param(("eager", "disk"), marks=pytest.mark.slow),
        pytest.param(("disk", "eager"), marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_dataset_is_the_eager_one_wherever_its_rows_lie(rows, kinds, tmp_path, eagerly):
    expected, workdir = eagerly
    equal(expected, resumed(rows, *kinds, tmp_path))
    assert logged(workdir) == logged(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("disk", "eager"), ("eager", "disk")])
def test_a_run_in_the_order_of_canonical_shards_is_that_of_dealt_rows(
    rows, kinds, tmp_path, compiled_once
):
    arguments = {"shards": 4, "eval_source": None}
    expected = rows("eager", steps=25, **arguments).fit()
    equal(expected, resumed(rows, *kinds, tmp_path, **arguments))
    one, other = (rows(kind, **arguments) for kind in ("eager", "disk"))
    for t in (0, 6):
        for name, column in one.batch_at(t).items():
            np.testing.assert_array_equal(other.batch_at(t)[name], column)


def test_evaluations_predictions_and_batches_are_the_eager_ones(rows):
    eager, indexed = rows("eager"), rows("disk")
    assert indexed.evaluate() == eager.evaluate()
    np.testing.assert_array_equal(*(t.predict(t.pipeline)["logits"] for t in (eager, indexed)))
    for t in (0, 6, 7):
        for name, column in eager.batch_at(t).items():
            np.testing.assert_array_equal(indexed.batch_at(t)[name], column)
