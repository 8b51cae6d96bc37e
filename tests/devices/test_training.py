"""The same run on any number of devices, and the same numbers from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import Pipeline
from tests.support.devices import losses, trainer
from tests.support.models import (
    CNN,
    MLP,
    Language,
    Normed,
    Traced,
    arrays,
    assert_close,
    assert_same,
    called,
    images,
    labelled,
    memory,
    points,
)
from trainers import every
from trainers.loop import program
from trainers.step import logits

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("shards", "devices"),
    [
        (8, [8]),
        pytest.param(8, [2, 4], marks=SLOW),
        pytest.param(1, [2, 4, 8], marks=SLOW),
    ],
)
def test_the_loss_of_each_of_100_steps_is_the_same_on_all_layouts(shards, devices):
    """With BatchNorm, Dropout and a last batch that is filled up."""
    arguments = {"steps": 100, "shards": shards}
    expected = losses(trainer(Normed(), 1, **arguments).fit())
    assert len(expected) == 100
    for count in devices:
        found = losses(trainer(Normed(), count, **arguments).fit())
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.slow
def test_the_same_layout_gives_the_same_bits():
    one, other = (trainer(Normed(), 8, shards=8, ema=0.9).fit() for _ in range(2))
    assert one.history == other.history
    assert_same(one.model, other.model)
    assert_same(one.ema, other.ema)


@pytest.mark.parametrize(
    ("shards", "devices"),
    [
        (1, [4]),
        pytest.param(1, [2, 8], marks=SLOW),
        pytest.param(8, [2, 4, 8], marks=SLOW),
    ],
)
def test_skipped_records_have_no_influence_on_any_number_of_devices(shards, devices):
    skip = trainer(MLP(), 1, shards=shards).records_at([3, 9])
    spoilt = points(101)
    spoilt["x"][skip] = np.nan
    arguments = {"shards": shards, "skip": skip}
    expected = losses(trainer(MLP(), 1, **arguments).fit())
    for count in devices:
        found = trainer(MLP(), count, memory(spoilt, shuffle=True), **arguments).fit()
        np.testing.assert_allclose(losses(found), expected, rtol=1e-6)


def test_without_a_mesh_all_devices_work():
    source = memory(points(101), shuffle=True)
    expected = trainer(MLP(), 8, source, steps=5).fit()
    found = trainer(MLP(), None, source, steps=5).fit()
    assert found.history == expected.history
    assert_same(found.model, expected.model)


@pytest.mark.parametrize(("accumulate", "shards"), [(2, 8), pytest.param(4, 1, marks=SLOW)])
def test_slices_on_many_devices_make_the_gradient_of_one_big_batch(accumulate, shards):
    arguments = {"batch_size": 32, "optimizer": optax.sgd(0.1), "shards": shards}
    expected = trainer(MLP(), 1, **arguments).fit()
    result = trainer(MLP(), 8, accumulate=accumulate, **arguments).fit()
    np.testing.assert_allclose(losses(result), losses(expected), rtol=1e-5)
    assert_close(result.model, expected.model)


def test_large_logits_are_computed_in_slices_of_each_devices_rows(monkeypatch):
    monkeypatch.setattr(logits, "LARGEST", 2**10)
    tokens = np.random.default_rng(0).integers(0, 40, (48, 9))
    arguments = {"loss": None, "steps": 3, "optimizer": optax.sgd(1.0)}
    source = memory({"input_ids": tokens})
    runs = [trainer(Language(40), n, source, eval_source=source, **arguments) for n in (1, 4)]
    assert [program.logits(run._plan).slices for run in runs] == [8, 4]
    expected, result = (run.fit() for run in runs)
    np.testing.assert_allclose(losses(result), losses(expected), rtol=1e-5)
    assert result.metrics["eval/loss"] == pytest.approx(expected.metrics["eval/loss"], rel=1e-5)
    assert_close(result.model, expected.model)


@pytest.mark.slow  # the slices that make a gradient are tried above
def test_slices_hold_the_same_rows_on_any_number_of_devices():
    """BatchNorm's statistics are those of the rows computed together."""
    arguments = {"batch_size": 32, "accumulate": 2, "shards": 8}
    expected, result = (trainer(Normed(), devices, **arguments).fit() for devices in (1, 8))
    np.testing.assert_allclose(losses(result), losses(expected), rtol=1e-6)


@pytest.mark.slow
def test_a_convolution_that_is_called_from_python_is_spread_too():
    def loss(model, batch):
        logits = model(jnp.float32(batch["image"][..., None]) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    def run(devices):
        source = memory(images(40), shuffle=True)
        arguments = {"loss": loss, "steps": 6, "accumulate": 2, "shards": 8}
        return losses(trainer(CNN(), devices, source, **arguments).fit())

    np.testing.assert_allclose(run(8), run(1), rtol=1e-6)


# --- evaluation and prediction -------------------------------------------------------------------


def _without_id(batch):
    return {"x": batch["x"], "label": batch["label"]}


@pytest.mark.parametrize(
    ("n", "shards"),
    [
        (5, 8),
        pytest.param(32, 8, marks=SLOW),
        pytest.param(37, 1, marks=SLOW),
    ],
)
def test_evaluate_and_predict_see_all_rows_once_and_in_stored_order(n, shards):
    """With 5 rows there are fewer than shards: these are not dealt."""
    source = memory(points(n, seed=1), shuffle=True)

    def identity(model, batch):
        return batch["label"] + 0 * model(batch["x"])[:, 0]

    one = trainer(Normed(), 1, shards=shards)
    many = trainer(Normed(), 8, shards=shards)
    rows = many.predict(source, called)
    assert rows.shape == (n, 3)
    assert isinstance(rows, np.ndarray)
    np.testing.assert_allclose(rows, one.predict(source, called), rtol=1e-5, atol=1e-6)
    model = Normed()
    model.eval()
    np.testing.assert_allclose(rows, model(points(n, seed=1)["x"]), rtol=1e-5, atol=1e-6)

    assert many.evaluate(source) == pytest.approx(one.evaluate(source), rel=1e-5)
    exact = trainer(Normed(), 8, shards=shards, loss=identity).evaluate({"it": source})
    assert exact == {"it/loss": pytest.approx(points(n, seed=1)["label"].mean(), rel=1e-6)}


@pytest.mark.slow
def test_evaluation_pipelines_may_have_other_shards_than_the_run():
    data = points(37, seed=1)
    expected = trainer(Normed(), 1).evaluate(memory(data))
    for shards in (1, 8, 16):
        pipeline = Pipeline(source=memory(data), stages=[_without_id], batch_size=16, shards=shards)
        for own in (1, 8):
            found = trainer(Normed(), 8, shards=own, eval_source=pipeline).evaluate()
            assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_evaluations_in_a_run_and_the_average_follow_the_single_device_s():
    def run(devices):
        one = trainer(
            Normed(),
            devices,
            shards=8,
            ema=0.8,
            optimizer=optax.sgd(0.1),  # Adam would make much of the bias before BatchNorm
            eval_source=memory(points(37, seed=1)),
            eval_every=5,
        )
        result = one.fit()
        return one, result, [r["eval/loss"] for r in result.history if "eval/loss" in r]

    one, expected, evaluated = run(1)
    many, result, found = run(8)
    assert len(found) == 4
    np.testing.assert_allclose(found, evaluated, rtol=1e-5)
    assert_close(result.ema, expected.ema)
    source = memory(points(37, seed=1))
    assert many.evaluate(source) == pytest.approx({"loss": result.metrics["eval/loss"]}, rel=1e-6)
    expected = one.predict(source, called)  # both with the average
    np.testing.assert_allclose(many.predict(source, called), expected, rtol=1e-4, atol=1e-5)
    result.ema.eval()
    np.testing.assert_allclose(
        result.ema(points(37, seed=1)["x"]), many.predict(source, called), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_an_extent_of_labels_is_known_though_each_device_has_its_own():
    one = trainer(MLP(4, 3), 8, labelled(50), loss=None, shards=8)
    assert one.fit().status == "finished"
    assert 0 <= one.fit().metrics["train/accuracy"] <= 1
    with pytest.raises(ValueError, match="label"):
        trainer(MLP(4, 2), 8, labelled(50), loss=None, shards=8).fit()


# --- the model afterwards ------------------------------------------------------------------------


def test_the_model_is_usable_on_plain_arrays_before_and_after():
    model, x = Normed(), points(5)["x"]
    before = {path: value.copy() for path, value in arrays(model).items()}
    one = trainer(model, 8, ema=0.9, steps=3)
    one.preflight()
    for path, value in arrays(model).items():  # what the trainer donates is not the user's
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    result = one.fit()
    assert result.model is model
    for trained in (model, result.ema):
        trained.eval()
        assert trained(x).shape == (5, 3)
        for leaf in jax.tree.leaves(nnx.state(trained)):
            assert len(leaf.devices()) == 1
    again = one.fit()  # trains on
    assert again.status == "finished"


@pytest.mark.slow
def test_a_user_s_arrays_are_not_donated_with_the_model():
    model = MLP()
    kernel = model.hidden.kernel[...]
    shared = {name: np.asarray(value).copy() for name, value in arrays(model).items()}
    twin = nnx.clone(model)  # shares no buffers
    alias = MLP()
    nnx.update(alias, nnx.state(model))  # shares all of them
    trainer(model, 8, steps=3).fit()
    assert not kernel.is_deleted()
    for other in (twin, alias):
        for path, value in arrays(other).items():
            np.testing.assert_array_equal(value, shared[path])


@pytest.mark.slow
def test_a_model_that_an_exception_stops_is_trained_up_to_there():
    def fail(run):
        raise ZeroDivisionError

    one = trainer(Normed(), 8, callbacks=[every(7, fail)])
    with pytest.raises(ZeroDivisionError):
        one.fit()
    assert_same(one.model, trainer(Normed(), 8, steps=7).fit().model)


def test_a_callback_sees_a_model_that_computes():
    seen = []

    def look(run):
        model = run.model()
        seen.append(np.asarray(model(points(8)["x"])))

    result = trainer(Normed(), 8, steps=3, callbacks=[look]).fit()
    assert len(seen) == 3
    result.model.eval()
    np.testing.assert_allclose(result.model(points(8)["x"]), seen[-1], rtol=1e-5, atol=1e-6)


def test_the_steps_are_traced_once():
    model = Traced(MLP())
    trainer(model, 8, steps=7, eval_source=memory(points(37)), eval_every=2).fit()
    assert (model.counts.training, model.counts.evaluation) == (1, 1)
