"""How much of the data a run has seen: rows and tokens in each log, exact wherever it goes on."""

import datasets
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import HFStreamingSource, MemorySource, MemorySourceConfig, Pipeline
from tests.support.runs import at, checkpoint, rows
from trainers import Trainer, every

pytestmark = pytest.mark.usefixtures("compiled_once")

N, TOKENS = 50, 6


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2)).astype(np.float32)
    weights = rng.integers(0, 2, (N, TOKENS)).astype(np.float32)
    return {"x": x, "target": x.sum(axis=1), "weights": weights}


def eager(columns):
    return MemorySource(MemorySourceConfig(shuffle=True), columns)


def stream(columns):
    """A stream that does not know its length."""

    def rows():
        for i in range(len(columns["x"])):
            yield {name: column[i].tolist() for name, column in columns.items()}

    features = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float32"), 2),
            "target": datasets.Value("float32"),
            "weights": datasets.List(datasets.Value("float32"), TOKENS),
        }
    )
    dataset = datasets.IterableDataset.from_generator(rows, features=features)
    return HFStreamingSource.from_dataset(dataset, shuffle=True, shuffle_buffer_size=16)


def per_row(model, batch):
    return (model(batch["x"])[:, 0] - batch["target"]) ** 2


def per_token(model, batch):
    losses = per_row(model, batch)[:, None] * jnp.ones((1, TOKENS))
    return losses, {"weight": batch["weights"]}


def trainer(source, loss=per_row, **options):
    options = {"batch_size": 8, "optimizer": optax.sgd(0.01), "log_every": 5, **options}
    return Trainer(Linear(), source, loss=loss, **{"epochs": 2, **options})


@pytest.mark.parametrize("source", [eager, stream])
def test_the_records_that_fill_up_an_epochs_last_batch_are_not_seen(source, capsys):
    seen = []

    def note(run):
        seen.append(run.rows_seen)

    result = trainer(source(columns()), callbacks=[every(1, note)]).fit()
    counts = {row["step"]: row["rows_seen"] for row in result.history}
    assert counts == {5: 40, 10: 50 + 24, 14: 100}
    assert seen == [8, 16, 24, 32, 40, 48, 50, 58, 66, 74, 82, 90, 98, 100]
    assert "seen" not in "".join(result.metrics)
    assert "seen" not in capsys.readouterr().out


@pytest.mark.parametrize("source", [eager, stream])
def test_batches_that_are_left_out_are_not_seen(source):
    pipeline = Pipeline(source=source(columns()), stages=[], batch_size=8, drop_remainder=True)
    result = trainer(pipeline, batch_size=None).fit()
    assert [(row["step"], row["rows_seen"]) for row in result.history[-2:]] == [(10, 80), (12, 96)]


@pytest.mark.parametrize(
    ("source", "loss"),
    [
        (eager, per_row),
        (stream, per_token),
        pytest.param(eager, per_token, marks=pytest.mark.slow),
        pytest.param(stream, per_row, marks=pytest.mark.slow),
    ],
)
def test_the_counts_go_on_where_the_run_was_cut(tmp_path, source, loss):
    def run(name, **more):
        return trainer(source(columns()), loss, workdir=tmp_path / name, **more).fit()

    whole = run("whole")
    for step in (3, 9):
        assert run("cut", callbacks=[at(step)]).step == step
    assert run("cut").history == whole.history
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert whole.history[-1]["rows_seen"] == 2 * N
    if loss is per_token:
        assert whole.history[-1]["tokens_seen"] == 2 * columns()["weights"].sum()
    else:
        assert "tokens_seen" not in whole.history[-1]


def test_a_second_fit_counts_on():
    one = trainer(eager(columns()), per_token, epochs=1)
    one.fit()
    last = one.fit(epochs=2).history[-1]
    assert (last["rows_seen"], last["tokens_seen"]) == (2 * N, 2 * columns()["weights"].sum())


@pytest.mark.parametrize("source", [pytest.param(eager, marks=pytest.mark.slow), stream])
def test_data_that_begins_anew_is_counted_on(tmp_path, source):
    other = {name: column[:20] for name, column in columns().items()}
    trainer(source(columns()), workdir=tmp_path, epochs=None, steps=7).fit()
    options = {"workdir": tmp_path, "resume_data": "restart", "epochs": None, "steps": 11}
    assert trainer(source(other), callbacks=[at(9)], **options).fit().step == 9
    assert trainer(source(other), **options).fit().history[-1]["rows_seen"] == N + 20 + 8


@pytest.mark.parametrize("source", [pytest.param(eager, marks=pytest.mark.slow), stream])
def test_a_run_that_diverged_has_seen_what_came_before(tmp_path, source):
    spoiled = columns()
    spoiled["target"][3] = np.nan
    result = trainer(source(spoiled), workdir=tmp_path).fit()
    assert result.status == "diverged"
    assert checkpoint(tmp_path, result.step)["rows_seen"] == 8 * result.step
