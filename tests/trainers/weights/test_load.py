"""Weights without a trainer: load, export, and beginning from another run's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import MLP, Normed, arrays, assert_same, labelled
from tests.support.runs import at, ruin, said, trainer
from trainers import Checkpoints, Trainer, export, load
from trainers.weights import Part, initialize

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compiled_once):
    """A finished run and its workdir, with the best of its four evaluations kept."""
    workdir = tmp_path_factory.mktemp("trained")
    checkpoint = Checkpoints(every=4, keep=2, best=("eval/loss", "min"))
    return trainer(workdir, checkpoint=checkpoint, ema=None).fit(), workdir


class Wide(nnx.Module):
    """An MLP with a wider layer."""

    def __init__(self):
        self.hidden = nnx.Linear(4, 9, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(9, 3, rngs=nnx.Rngs(1))


# --- load and export -----------------------------------------------------------------------------


def test_load_gives_the_model_that_was_trained(trained):
    result, workdir = trained
    model = Normed(seed=5)
    assert load(workdir, model) is model
    assert_same(model, result.model)
    raw = load(str(workdir))
    np.testing.assert_array_equal(raw["out"]["kernel"], result.model.out.kernel[...])
    assert isinstance(raw["out"]["kernel"], np.ndarray)


def test_load_of_a_step_and_of_the_best(trained):
    result, workdir = trained
    earlier = load(workdir, Normed(), step=16)
    assert not np.array_equal(earlier.out.kernel[...], result.model.out.kernel[...])
    step, value = result.best
    assert value == min(row["eval/loss"] for row in result.history if "eval/loss" in row)
    best = load(workdir, Normed(), step="best")
    (evaluator,) = trainer(None)._plan.evaluators.values()
    definition, params, rest = nnx.split(_eval(best), nnx.Param, ...)
    assert evaluator(definition, params, rest)["loss"] == value
    assert [path.name for path in (workdir / "best").iterdir()] == [str(step)]


def _eval(model):
    model.eval()
    return model


def test_safetensors_round_trip(trained, tmp_path):
    result, _ = trained
    export(result.model, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", Normed(seed=5))
    assert_same(nnx.state(model, nnx.Param), nnx.state(result.model, nnx.Param))
    assert_same(nnx.state(model, nnx.BatchStat), nnx.state(Normed(), nnx.BatchStat))


def test_the_precisions_of_a_safetensors_file(tmp_path):
    model = MLP()
    nnx.update(model, jax.tree.map(lambda x: x.astype("bfloat16"), nnx.state(model)))
    export(model, tmp_path / "half.safetensors")
    found = load(tmp_path / "half.safetensors", MLP(seed=1))
    assert found.out.kernel[...].dtype == np.float32
    np.testing.assert_array_equal(found.out.kernel[...], model.out.kernel[...].astype(np.float32))


def test_what_does_not_fit_is_refused(trained, tmp_path):
    _, workdir = trained
    with pytest.raises(ValueError, match=r"is not of this MLP: they differ in 'calls'"):
        load(workdir, MLP())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*\[\]: write load\(workdir\)"):
        load(tmp_path)
    words = r"no checkpoint of step 7 in .* steps \[16, 20\]: write load\(workdir, step=20\)"
    with pytest.raises(FileNotFoundError, match=words):
        load(workdir, step=7)


# --- init_from -----------------------------------------------------------------------------------


def test_a_run_begins_with_the_weights_of_another(trained, tmp_path):
    result, workdir = trained
    seen = []
    settings = {"log_every": 1, "callbacks": [lambda run: seen.append(run.model())]}
    frozen = trainer(
        tmp_path,
        model=Normed(seed=3),
        init_from=workdir,
        wrt=nnx.PathContains("out"),
        steps=2,
        **settings,
    ).fit()
    assert frozen.step == 2
    assert_same(nnx.state(frozen.model.hidden), nnx.state(result.model.hidden))
    assert not np.array_equal(frozen.model.out.kernel[...], result.model.out.kernel[...])
    rate = np.abs(frozen.model.out.kernel[...] - result.model.out.kernel[...]).max()
    assert rate < 0.05  # two steps of Adam away
    keys = arrays(nnx.state(frozen.model, nnx.RngKey))
    assert_same(keys, arrays(nnx.state(Normed(seed=3), nnx.RngKey)))  # its own random streams


def test_init_from_a_file_equals_training_the_loaded_model(trained, tmp_path):
    result, _ = trained
    path = tmp_path / "model.safetensors"
    export(result.model, path)
    expected = trainer(None, model=load(path, Normed(seed=3)), steps=4).fit()
    started = trainer(None, model=Normed(seed=3), init_from=path, steps=4).fit()
    assert_same(started.model, expected.model)
    assert started.history == expected.history


def test_a_checkpoint_goes_before_init_from(trained, tmp_path, capsys):
    _, workdir = trained
    expected = trainer(None, init_from=workdir).fit()
    trainer(tmp_path, init_from=workdir, callbacks=[at(7)]).fit()
    resumed = trainer(tmp_path, init_from=tmp_path / "is not there any more").fit()
    assert f"Going on from step 7 in {tmp_path}, not from init_from." in capsys.readouterr().out
    assert_same(resumed.model, expected.model)


def test_what_only_one_of_the_two_has_is_said_and_another_shape_refused(trained, tmp_path, caplog):
    _, workdir = trained
    model = MLP(seed=4)
    initialize(model, workdir)
    np.testing.assert_array_equal(model.out.kernel[...], load(workdir)["out"]["kernel"])
    (warning,) = said(caplog, "trainers.weights.initialize")
    assert "not in the model:\n  calls () int32\n  dropout.rngs.count () uint32" in warning
    with pytest.raises(ValueError, match=r"hidden.bias has \(8,\) and \(9,\) here"):
        initialize(Wide(), workdir)
    with pytest.raises(ValueError, match=r"does not fit this Linear: its names all differ"):
        initialize(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), workdir)
    with pytest.raises(FileNotFoundError, match=r"has the steps \[\]: write init_from=workdir"):
        trainer(None, init_from=tmp_path).fit()


def test_a_damaged_best_is_said(trained, tmp_path):
    trainer(tmp_path, steps=5, checkpoint=Checkpoints(best=("eval/loss", "min"))).fit()
    ruin(tmp_path / "best" / "5")
    with pytest.raises(RuntimeError, match=r"step 5 in .* is damaged"):
        load(tmp_path, step="best")


class Anything(nnx.Module):
    """Holds all that an nnx state may hold."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        self.out = nnx.Linear(4, 3, rngs=rngs)
        self.seen = nnx.Variable({"sum": jnp.zeros(()), "more": (jnp.zeros(2), [jnp.int32(0)])})
        self.number, self.nothing = nnx.Variable(2.5), nnx.Variable(None)
        self.scale = nnx.Param(0.5 * jnp.ones(3), on_get_value=lambda _, x: jax.nn.softplus(x))
        self.plain, self.other, self.key = jnp.ones(2), np.ones(2), jax.random.key(seed)
        self.empty = nnx.Param(jnp.zeros((0, 3)))
        self.tree = nnx.Param({"w": jnp.ones(3), "b": jnp.zeros(3)})
        self.complex = nnx.Param((1 + 1j) * jnp.ones(3, jnp.complex64))

    def __call__(self, x):
        seen, tree = self.seen.get_value(), self.tree.get_value()
        self.seen.set_value({**seen, "sum": seen["sum"] + x.mean()})
        x = self.out(x) * self.scale.get_value() * tree["w"] + tree["b"] + self.plain.sum()
        return x + self.number[...] * jnp.abs(self.complex[...]) ** 2


@pytest.mark.filterwarnings("ignore:Variable hooks are deprecated")
def test_any_state_is_trained_saved_resumed_loaded_and_exported(tmp_path):
    settings = {"source": labelled(20), "batch_size": 8}
    expected = Trainer(Anything(), steps=6, **settings).fit()
    Trainer(Anything(), steps=3, workdir=tmp_path, **settings).fit()
    result = Trainer(Anything(), steps=6, workdir=tmp_path, **settings).fit()
    assert_same(result.model, expected.model)
    assert float(result.model.seen.get_value()["sum"]) != 0
    assert_same(load(tmp_path, Anything(seed=1)), result.model)
    export(result.model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", Anything())
    assert_same(nnx.state(loaded, nnx.Param), nnx.state(result.model, nnx.Param))


# --- parts ---------------------------------------------------------------------------------------


class Headed(nnx.Module):
    """A `Normed` under another name, with a head of its own."""

    def __init__(self, classes=7):
        self.body = Normed(seed=8)
        self.head = nnx.Linear(3, classes, rngs=nnx.Rngs(0))


def test_load_of_what_matches_by_prefix_and_shape(trained, caplog):
    result, workdir = trained
    model = load(workdir, Wide(), match="")
    np.testing.assert_array_equal(model.out.bias[...], result.model.out.bias[...])
    assert_same(nnx.state(model.hidden), nnx.state(Wide().hidden))
    (warning,) = said(caplog, "trainers.weights.fitting")
    assert "hidden.kernel: (4, 9) float32 in the model, (4, 8) float32 there" in warning
    with pytest.raises(ValueError, match=r"Nothing of .* that match='hidden' names fits this Wide"):
        load(workdir, Wide(), match="hidden")
    headed = load(workdir, Headed(), match={"": "body"})
    assert_same(nnx.state(headed.body, nnx.Param), nnx.state(result.model, nnx.Param))
    assert_same(headed.body.dropout.rngs, Normed(seed=8).dropout.rngs)
    other = load(workdir, Headed(), match={"hidden": "body.hidden", "out.bias": "body.out.bias"})
    assert_same(other.body.hidden, result.model.hidden)
    np.testing.assert_array_equal(other.body.out.kernel[...], Normed(seed=8).out.kernel[...])
    with pytest.raises(TypeError, match="match is a int: expected a prefix"):
        load(workdir, Wide(), match=3)


def test_a_run_begins_with_a_part_of_another(trained, caplog):
    result, workdir = trained
    start = Part(workdir, match=["hidden", "norm"])
    run = trainer(None, model=Normed(seed=3), init_from=start, wrt=nnx.PathContains("out"), steps=1)
    model = run.fit().model
    assert_same(model.hidden, result.model.hidden)
    assert np.abs(model.out.kernel[...] - Normed(seed=3).out.kernel[...]).max() < 0.02
    assert "out.kernel (8, 3) float32" in said(caplog, "trainers.weights.initialize")[0]
