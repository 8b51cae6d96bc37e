"""Training from streams: the same batches through the same loop, resumed exactly, read ahead."""

import contextlib
import json
import threading
import time

import datasets
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import HFEagerSource, HFStreamingSource, MixedSource, Pipeline
from trainers import Checkpoints, Trainer
from trainers.data.adapt import as_batches, as_pipeline
from trainers.devices.layout import Layout

pytestmark = pytest.mark.usefixtures("compiled_once")

N = 50


class Linear(nnx.Module):
    def __init__(self, seed=0):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(seed))

    def __call__(self, x):
        return self.layer(x)


def dataset(n=N):
    x = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    return datasets.Dataset.from_dict({"id": range(n), "x": x, "target": x.sum(axis=1)})


def stream(shuffle=True, n=N, **fields):
    rows = dataset(n).to_iterable_dataset(num_shards=4)
    fields = {"exclude_keys": {"id"}, "shuffle_buffer_size": 16, "seed": 3, **fields}
    return HFStreamingSource.from_dataset(rows, shuffle=shuffle, **fields)


def fit(source, model=None, **options):
    options = {"batch_size": 8, "steps": 20, "optimizer": optax.sgd(0.05), **options}
    return Trainer(model or Linear(), source, **options).fit()


def ids(source, steps, batch_size=8):
    """The ids of the batches that a feed gives, and which of them count."""
    batches = as_batches(as_pipeline(source, batch_size), Layout())
    found, t = [], 0
    with contextlib.closing(batches.feed()) as feed:
        while t < steps:
            data, stop = feed.block(t)
            for t in range(t, min(stop, steps)):  # noqa: B020
                batch, valid, _ = batches.rows(data, batches.stages, t)
                found.append(np.asarray(batch["id"])[np.asarray(valid)].tolist())
            t = stop
    return found


def test_a_stream_trains_as_the_same_data_held_eagerly():
    eager = HFEagerSource.from_dataset(dataset(), exclude_keys={"id"})
    # In stored order both give the same batches; 50 records are six batches of 8 and one of 2.
    streamed, held = fit(stream(shuffle=False)), fit(eager)
    np.testing.assert_array_equal(streamed.model.layer.kernel[...], held.model.layer.kernel[...])
    assert streamed.metrics == held.metrics


def test_each_epoch_holds_each_record_once_in_an_order_of_its_own():
    source = stream(exclude_keys=None)
    steps = -(-N // 8)
    epochs = [sum(ids(source, 3 * steps)[e * steps : (e + 1) * steps], []) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(N))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_callers_stream_does_not_move():
    source = stream()
    before = source.get_state()
    fit(source)
    assert source.get_state() == before


SLOW = pytest.mark.slow


@pytest.mark.parametrize("cut", [pytest.param(3, marks=SLOW), 7, pytest.param(12, marks=SLOW)])
def test_a_stopped_run_goes_on_with_exactly_the_next_batch(tmp_path, cut):
    options = {"checkpoint": Checkpoints(every=100), "log_every": 4}
    whole = fit(stream(), **options)
    stopped = fit(stream(), workdir=tmp_path, callbacks=[lambda run: run.step >= cut], **options)
    assert stopped.status == "stopped"
    state = next((tmp_path / "checkpoints").glob("*/data/metadata")).read_text()
    assert len(state) < 10_000
    assert "x" not in json.loads(state)
    resumed = fit(stream(), model=Linear(seed=9), workdir=tmp_path, **options)
    assert resumed.step == 20
    np.testing.assert_array_equal(resumed.model.layer.kernel[...], whole.model.layer.kernel[...])


def test_another_order_is_refused_with_the_line_to_write(tmp_path):
    fit(stream(), workdir=tmp_path, steps=5)
    with pytest.raises(ValueError, match='resume_data="restart"'):
        fit(stream(seed=4), workdir=tmp_path)
    result = fit(stream(seed=4), workdir=tmp_path, resume_data="restart")
    assert result.step == 20


def test_evaluation_and_prediction_are_exact_over_a_stream():
    eager = HFEagerSource.from_dataset(dataset(), exclude_keys={"id"})
    trainer = Trainer(Linear(), eager, batch_size=8)
    assert trainer.evaluate(stream()) == trainer.evaluate(eager)
    np.testing.assert_array_equal(trainer.predict(stream()), trainer.predict(eager))


def test_a_stages_draws_are_the_same_after_resuming():
    def noisy(batch, key):
        noise = jax.vmap(lambda k: jax.random.normal(k, (2,)))(key)
        return {**batch, "x": batch["x"] + noise}

    def batch_at(t):
        pipeline = Pipeline(source=stream(), stages=[noisy], batch_size=8, rngs=nnx.Rngs(0))
        return Trainer(Linear(), pipeline, steps=20).batch_at(t)["x"]

    np.testing.assert_array_equal(batch_at(9), batch_at(9))
    assert not np.array_equal(batch_at(2), batch_at(9))


def mixture(second=None):
    eager = HFEagerSource.from_dataset(dataset(), exclude_keys={"id"}, shuffle=True)
    return MixedSource([stream(), eager if second is None else second], weights=[3, 1])


@pytest.mark.parametrize("cut", [12, pytest.param(3, marks=pytest.mark.slow)])
def test_a_mixture_trains_and_goes_on_with_exactly_the_next_batch(tmp_path, cut):
    whole = fit(mixture(), log_every=4)
    assert whole.status == "finished"
    stopped = fit(mixture(), workdir=tmp_path, callbacks=[lambda run: run.step >= cut], log_every=4)
    assert stopped.status == "stopped"
    resumed = fit(mixture(), model=Linear(seed=9), workdir=tmp_path, log_every=4)
    assert resumed.step == 20
    np.testing.assert_array_equal(resumed.model.layer.kernel[...], whole.model.layer.kernel[...])
    assert [row["step"] for row in resumed.history] == [row["step"] for row in whole.history]


def test_a_mixture_that_diverges_is_traced_to_its_batch(caplog):
    rows = dataset().to_dict()
    rows["x"][30] = [np.nan, 0.0]
    spoiled = HFEagerSource.from_dataset(datasets.Dataset.from_dict(rows), exclude_keys={"id"})
    result = fit(mixture(spoiled), steps=200)
    assert result.status == "diverged"
    assert "The run diverged in step" in caplog.text
    batches = Trainer(Linear(), mixture(spoiled), batch_size=8, steps=200)
    assert np.isnan(batches.batch_at(result.step)["x"]).any()
    assert not np.isnan(batches.batch_at(result.step - 1)["x"]).any()


def test_a_mixture_cannot_be_evaluated():
    with pytest.raises(ValueError, match=r"never ends.*eval_source=\{"):
        Trainer(Linear(), stream(), batch_size=8, steps=3, eval_source=mixture())
    with pytest.raises(ValueError, match="never ends"):
        Trainer(Linear(), stream(), batch_size=8, steps=3).predict(mixture())


def test_a_mixture_wants_steps_and_cannot_be_indexed():
    mixture = MixedSource([stream(), stream(seed=5)], weights=[3, 1])
    with pytest.raises(ValueError, match=r"epochs=2 says nothing: write .*steps="):
        Trainer(Linear(), mixture, epochs=2)
    with pytest.raises(NotImplementedError, match="cannot be indexed"):
        mixture.get_batch_at(0, 4)
    with pytest.raises(TypeError, match="never ends"):
        len(mixture)


def test_text_beside_the_inputs_does_no_harm():
    rows = dataset().add_column("text", ["a"] * N).to_iterable_dataset(num_shards=4)
    source = HFStreamingSource.from_dataset(rows, exclude_keys={"id"})
    assert fit(source).status == "finished"


def test_a_stream_of_unknown_length_trains_for_steps():
    rows = datasets.IterableDataset.from_generator(lambda: iter(dataset().to_list()))
    source = HFStreamingSource.from_dataset(rows, exclude_keys={"id"})
    assert fit(source, steps=9).history[-1]["step"] == 9


def test_a_reader_that_fails_ends_the_run_with_its_error_and_a_usable_model():
    def rows():
        for _ in range(60):  # more rows than are looked at to know what the columns are
            yield from dataset().to_list()
        raise OSError("the disk is gone")

    source = HFStreamingSource.from_dataset(
        datasets.IterableDataset.from_generator(rows), exclude_keys={"id"}
    )
    model = Linear()
    with pytest.raises(Exception, match="the disk is gone"):
        fit(source, model=model, steps=1000)
    assert model(np.ones((1, 2), np.float32)).shape == (1, 1)


def test_no_thread_is_left():
    before = threading.active_count()
    for _ in range(3):
        fit(stream(), steps=3)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
