"""The trainer: what it does to a model, with which optimizers, and how it refuses bad input."""

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import HFEagerSource, Pipeline
from tests.support.models import (
    CNN,
    MLP,
    Normed,
    arrays,
    assert_close,
    assert_same,
    images,
    labelled,
    memory,
    points,
)
from trainers import Trainer, every

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_a_model_learns_from_a_source_alone():
    data = points(200)
    data["label"] = (data["x"][:, 0] > 0).astype(np.int32)
    source = memory({"x": data["x"], "label": data["label"]}, shuffle=True)
    model = MLP(classes=2)
    result = Trainer(
        model, source, epochs=20, batch_size=32, optimizer=optax.adam(0.03), eval_source=source
    ).fit()
    assert result.model is model
    assert (result.step, result.status) == (140, "finished")
    assert result.metrics["eval/accuracy"] > 0.95
    assert result.history[-1]["epoch"] == 20
    assert result.metrics.keys() == {
        f"{part}/{name}" for part in ("train", "eval") for name in ("loss", "accuracy")
    }


def test_a_dataset_is_a_source():
    dataset = datasets.Dataset.from_dict({"x": points(20)["x"].tolist(), "label": [0, 1] * 10})
    trainer = Trainer(MLP(classes=2), dataset, batch_size=8, eval_source=dataset)
    assert trainer.fit().step == 3
    assert trainer.batch_at(0)["label"].tolist() != [0, 1] * 4  # in random order
    assert trainer.predict(dataset).shape == (20, 2)


@pytest.mark.parametrize(("given", "steps"), [({}, 7), ({"epochs": 2}, 14), ({"steps": 3}, 3)])
def test_a_run_has_one_epoch_unless_told(given, steps):
    assert Trainer(MLP(), labelled(50), batch_size=8, **given).steps == steps


def test_logs_and_evaluations_come_at_exact_steps_and_at_the_last():
    source = labelled(20)
    trainer = Trainer(
        MLP(), source, batch_size=8, steps=11, log_every=4, eval_every=5, eval_source=source
    )
    seen = [(row["step"], "train/loss" in row, "eval/loss" in row) for row in trainer.fit().history]
    assert seen == [
        (4, True, False),
        (5, False, True),
        (8, True, False),
        (10, False, True),
        (11, True, True),
    ]


# --- the model -----------------------------------------------------------------------------------


def test_the_given_model_is_trained_in_place_and_nothing_else_of_it_changes():
    model = Normed()
    model.dropout.deterministic = True
    before, buffers = arrays(model), jax.tree.leaves(nnx.state(model))
    result = Trainer(model, labelled(20), batch_size=8).fit()
    assert result.model is model
    assert not any(leaf.is_deleted() for leaf in [*buffers, *jax.tree.leaves(nnx.state(model))])
    after = arrays(model)
    assert before.keys() == after.keys()
    assert not np.array_equal(before["['norm']['mean'].value"], after["['norm']['mean'].value"])
    assert int(model.calls[...]) == 3
    assert model.dropout.deterministic  # the modes are as they were
    assert not model.norm.use_running_average


def test_two_runs_are_the_same_and_do_not_share_arrays():
    source = labelled(20)
    models = [Normed(), Normed()]
    shared = nnx.clone(models[0])
    for model in models:
        Trainer(model, source, batch_size=8, epochs=2).fit()
    assert_same(*models)
    assert_same(shared, Normed())


def test_fit_again_goes_on_where_it_ended(capsys):
    source = memory({n: c for n, c in points(16).items() if n != "id"})
    settings = {"batch_size": 8, "optimizer": optax.sgd(0.1)}
    model = MLP()
    trainer = Trainer(model, source, **settings)
    once = trainer.fit()
    again = trainer.fit()
    assert (again.status, again.step) == (once.status, once.step) == ("finished", 2)
    assert again.history == once.history
    assert "Finished already, at step 2" in capsys.readouterr().out
    further = trainer.fit(epochs=2)
    assert "Going on from step 2, where fit() ended." in capsys.readouterr().out
    twice = Trainer(MLP(), source, epochs=2, **settings).fit()
    assert_same(model, twice.model)
    assert [row["step"] for row in further.history] == [2, 4]
    assert twice.step == 4
    assert trainer.fit(steps=5).step == 5
    with pytest.raises(ValueError, match="steps=7 and epochs=3: give one of the two"):
        trainer.fit(steps=7, epochs=3)


class Interrupting:
    """A callback that raises at a step."""

    def __init__(self, step):
        self.step = step

    def __call__(self, run):
        if run.step == self.step:
            raise RuntimeError("in the middle")


@pytest.mark.parametrize("convolution", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_is_usable_after_an_exception_in_the_middle(convolution):
    if convolution:
        model, source = CNN(), memory(images(16))
    else:
        model, source = MLP(), labelled(16)
    before = nnx.clone(model)
    trainer = Trainer(
        model, source, batch_size=8, steps=6, log_every=2, callbacks=[Interrupting(4)]
    )
    with pytest.raises(RuntimeError, match="in the middle"):
        trainer.fit()
    half = Trainer(before, source, batch_size=8, steps=4, log_every=2).fit()
    assert_same(model, half.model)  # it is trained up to there
    assert np.isfinite(trainer.evaluate(source)["loss"])


class Tied(nnx.Module):
    """One kernel used twice."""

    def __init__(self):
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))[:, :3]


class Sowing(nnx.Module):
    """Sows its activations and counts its calls in a Python number."""

    def __init__(self):
        self.mlp = MLP()
        self.count = nnx.Variable(0)
        self.scale = nnx.BatchStat(1.0)

    def __call__(self, x):
        self.count.set_value(self.count.get_value() + 1)
        self.sow(nnx.Intermediate, "seen", x)
        return self.mlp(x) * self.scale.get_value()


def test_tied_weights_stay_tied():
    model = Tied()
    result = Trainer(model, labelled(20), batch_size=8, epochs=2).fit()
    assert result.model.second.kernel is result.model.first.kernel

    twin, source = Tied(), labelled(20)
    twin(source.data["x"])
    definition, params, rest = nnx.split(twin, nnx.Param, ...)
    batch = Trainer(twin, source, batch_size=20).batch_at(0)

    def mean(params):
        logits = nnx.merge(definition, params, rest, copy=True)(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(mean)(params))
    trained = Trainer(twin, source, batch_size=20, optimizer=optax.sgd(0.1)).fit().model
    assert_close(nnx.state(trained, nnx.Param), expected)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_sown_values_and_python_numbers_do_no_harm(accumulate):
    model = Sowing()
    model(points(3)["x"])  # one value is sown already
    source = labelled(20)
    trainer = Trainer(model, source, batch_size=8, accumulate=accumulate, eval_source=source)
    trainer.evaluate()
    trainer.fit()
    trainer.evaluate()
    assert int(model.count.get_value()) == 1 + 3 * accumulate
    assert trainer.predict(source).shape == (20, 3)


# --- what is trained and how ---------------------------------------------------------------------


def test_only_what_wrt_selects_is_trained():
    def is_out(path, _):
        return "out" in path

    model = MLP()
    before = nnx.clone(model)
    Trainer(model, labelled(20), batch_size=8, wrt=nnx.All(nnx.Param, is_out)).fit()
    assert_same(model.hidden, before.hidden)
    assert not np.array_equal(model.out.kernel[...], before.out.kernel[...])


@pytest.mark.slow
def test_the_average_follows_the_parameters():
    source = labelled(16, shuffle=False)
    settings = {"batch_size": 8, "optimizer": optax.sgd(0.5)}
    steps = [nnx.state(MLP(), nnx.Param)]
    for n in (1, 2, 3):
        steps.append(nnx.state(Trainer(MLP(), source, steps=n, **settings).fit().model, nnx.Param))
    average = steps[0]
    for t, params in enumerate(steps[1:]):
        decay = min(0.15, (1 + t) / (10 + t))  # 0.1, 0.15, 0.15
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, params)
    result = Trainer(MLP(), source, steps=3, ema=0.15, **settings).fit()
    assert_close(nnx.state(result.ema, nnx.Param), average)
    assert_close(nnx.state(result.model, nnx.Param), steps[-1])
    assert Trainer(MLP(), source, steps=1, **settings).fit().ema is None


def _masked(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(
            optax.clip_by_global_norm(0.1),
            optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6), mask=_masked),
        ),
        optax.chain(optax.sgd(0.5, momentum=0.9), optax.contrib.reduce_on_plateau(patience=1)),
        pytest.param(
            optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(), marks=pytest.mark.slow
        ),
        pytest.param(
            optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.0, 6)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["schedule and clipping", "plateau", "MultiSteps", "inject_hyperparams"],
)
def test_any_optax_transformation_does_what_it_does_in_a_plain_loop(optimizer):
    source = labelled(16, shuffle=False)
    trainer = Trainer(MLP(), source, batch_size=8, steps=6, optimizer=optimizer)
    definition, params, rest = nnx.split(MLP(), nnx.Param, ...)
    state = optimizer.init(params)

    def mean(params, batch):
        logits = nnx.merge(definition, params, rest, copy=True)(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    @jax.jit
    def step(params, state, batch):
        value, gradient = jax.value_and_grad(mean)(params, batch)
        update = optax.with_extra_args_support(optimizer).update
        updates, state = update(gradient, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for t in range(6):
        params, state = step(params, state, trainer.batch_at(t))
    assert_close(nnx.state(trainer.fit().model, nnx.Param), params, rtol=1e-4, atol=1e-5)


# --- bad input -----------------------------------------------------------------------------------

MULTI_STEPS = optax.MultiSteps(optax.adam(1.0), 2)
SPLITS = datasets.DatasetDict(train=datasets.Dataset.from_dict({"x": [1.0], "label": [0]}))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "model is a function: expected a flax nnx.Module"),
        ({"source": [1, 2]}, TypeError, "source is a list: expected a source such as"),
        ({"source": SPLITS}, TypeError, r"pick a split, as in source\['train'\]"),
        ({"source": points(8)}, TypeError, r"write MemorySource\(MemorySourceConfig\(\), {...}\)"),
        ({"eval_source": [1]}, TypeError, "source is a list"),
        ({"steps": 3, "epochs": 2}, ValueError, "steps=3 and epochs=2: give one of the two"),
        ({"steps": 0}, ValueError, "steps=0: expected an integer from 1"),
        ({"epochs": 1.5}, ValueError, "epochs=1.5: expected an integer"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"log_every": 0}, ValueError, "log_every=0"),
        ({"accumulate": 3}, ValueError, "accumulate=3 does not divide batch_size=8"),
        ({"optimizer": optax.adam}, TypeError, r"expected an optax transformation, such as opt"),
        ({"optimizer": nnx.Optimizer(MLP(), optax.adam(1.0), wrt=nnx.Param)}, TypeError, "optax"),
        ({"optimizer": MULTI_STEPS}, TypeError, r"MultiSteps\(...\).gradient_transformation\(\)"),
        ({"loss": "mse"}, TypeError, r"loss is a str: expected a function .model, batch."),
        ({"metrics": "accuracy"}, TypeError, r"metrics.*clu.metrics.Collection"),
        ({"wrt": nnx.Cache}, ValueError, "selects none of .*'Param'.*Write wrt=nnx.Param"),
        ({"wrt": ...}, ValueError, "has no gradient: write a narrower filter"),
        ({"ema": 1.5}, ValueError, "ema=1.5: expected a number between 0 and 1"),
        ({"ema": "0.9"}, ValueError, "ema='0.9': expected a number between 0 and 1"),
        ({"precision": jnp.int8}, ValueError, "precision=int8"),
        ({"precision": "fp8"}, ValueError, r"precision='fp8' .* write precision=jnp.bfloat16"),
        ({"callbacks": print}, TypeError, r"callbacks is a .*write callbacks=\[fn\]"),
        ({"callbacks": every(5, print)}, TypeError, r"callbacks is a every.*=\[fn\]"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks holds a int.*=\[fn\]"),
        ({"writers": 3}, TypeError, r"writers is a int.*write writers=\[writer\]"),
        ({"writers": [print]}, TypeError, r"writers holds a .* objects with write_scalars"),
        ({"batch_size": "8"}, ValueError, "batch_size='8'"),
    ],
)
def test_bad_input_is_refused_when_the_trainer_is_made(arguments, error, message):
    arguments = {"model": Normed(), "source": labelled(16), "batch_size": 8, **arguments}
    with pytest.raises(error, match=message):
        Trainer(**arguments)


@pytest.mark.parametrize("missing", ["x", "label"])
def test_a_column_that_an_eval_source_lacks_is_found_when_the_trainer_is_made(missing):
    columns = {name: c for name, c in points(8).items() if name != missing}
    with pytest.raises(ValueError, match=f"There is no column '{missing}', which the training"):
        Trainer(MLP(), labelled(16), eval_source=memory(columns))
    text = datasets.Dataset.from_dict({"x": points(2)["x"].tolist(), "label": ["no", "yes"]})
    with pytest.raises(TypeError, match="column 'label' is no JAX array"):
        Trainer(MLP(), labelled(16), eval_source=text)


class Reshaping(MLP):
    """Keeps its last input, whatever its shape."""

    def __init__(self):
        super().__init__()
        self.last = nnx.Variable(jnp.zeros((1, 4)))

    def __call__(self, x):
        self.last.set_value(x)
        return super().__call__(x)


def test_a_variable_that_changes_its_shape_is_named():
    with pytest.raises(ValueError, match=r"changes \['last'\].* from shape \(1, 4\) to \(8, 4\)"):
        Trainer(Reshaping(), labelled(16), batch_size=8).fit()


@pytest.mark.parametrize(
    ("stage", "error", "message"),
    [
        (lambda batch: batch["x"], TypeError, "The last stage returns a .*: expected a dict"),
        (
            lambda batch: {**batch, "x": batch["x"][:2]},
            ValueError,
            r"of shape \(2, 4\).*\(8, ...\)",
        ),
    ],
)
def test_what_stages_return_is_checked_when_the_trainer_is_made(stage, error, message):
    pipeline = Pipeline(source=labelled(16), stages=[stage], batch_size=8)
    with pytest.raises(error, match=message):
        Trainer(MLP(), pipeline)


def test_an_eval_pipeline_keeps_its_own_batch_size():
    source = labelled(16)
    pipeline = Pipeline(source=labelled(10), stages=[], batch_size=3)
    result = Trainer(MLP(), source, batch_size=8, eval_source=pipeline).fit()
    assert result.metrics["eval/loss"] > 0


def test_asking_the_batch_for_a_host_column_says_what_is_in_it():
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "x": [[1.0], [2.0]], "label": [0, 1]})

    def loss(model, batch):
        return model(batch["text"])[:, 0]

    source = HFEagerSource.from_dataset(dataset)
    with pytest.raises(TypeError, match="column 'text' is no JAX array: row 0"):
        Trainer(MLP(features=1), source, loss=loss, batch_size=2).fit()
