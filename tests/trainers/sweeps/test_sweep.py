"""Sweeps: members are their own runs; a diverged one freezes alone; resumed bit for bit."""

import json
import signal

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.support.models import (
    MLP,
    Diary,
    Normed,
    arrays,
    assert_same,
    labelled,
    memory,
    noted_loss,
    points,
)
from trainers import Checkpoints, Trainer, load, sweep

pytestmark = pytest.mark.usefixtures("compiled_once")

RATES = [1e-3, 1e-2]


def own_run(rate, seed, source, **arguments):
    """Returns the result of a member's own run."""
    optimizer = optax.adamw(rate)
    return Trainer(MLP(seed=seed), source, optimizer=optimizer, **arguments).fit()


@pytest.mark.parametrize("seeds", [[1], pytest.param([0, 1], marks=pytest.mark.slow)])
def test_members_are_as_their_own_runs(seeds):
    settings = {"batch_size": 8, "steps": 100, "log_every": 10, "ema": 0.9}
    train, test = labelled(50, shuffle=True), labelled(20, seed=1)
    found = sweep(
        lambda seed: MLP(seed=seed),
        train,
        learning_rate=RATES,
        seed=seeds,
        eval_source=test,
        **settings,
    )
    assert found.settings == [
        {"learning_rate": rate, "seed": seed} for rate in RATES for seed in seeds
    ]
    for member, result in zip(found.settings, found.results, strict=True):
        expected = own_run(*member.values(), train, eval_source=test, **settings)
        assert [row["step"] for row in result.history] == [r["step"] for r in expected.history]
        for own, other in zip(result.history, expected.history, strict=True):
            assert own.keys() == other.keys() | own.keys() & {"train/learning_rate"}
            for name, value in other.items():
                assert own[name] == pytest.approx(value, abs=1e-5), name
        for path, value in arrays(result.ema).items():
            np.testing.assert_allclose(value, arrays(expected.ema)[path], atol=1e-4, err_msg=path)
    losses = [result.metrics["eval/loss"] for result in found.results]
    assert found.best == int(np.argmin(losses))
    assert found.table[found.best]["eval/loss"] == min(losses)
    assert str(found).splitlines()[-1].startswith("best: learning_rate ")


def test_members_see_the_batches_of_their_own_runs():
    source = memory(points(50), shuffle=True)
    diary = lambda: Diary(MLP(), 20, 8)  # noqa: E731
    settings = {"loss": noted_loss, "batch_size": 8, "steps": 20}
    found = sweep(diary, source, learning_rate=RATES, **settings)
    expected = Trainer(diary(), source, **settings).fit().model.records[...]
    for result in found.results:
        np.testing.assert_array_equal(result.model.records[...], expected)


def explosive(model, batch):
    """Squared error, which diverges at a large rate."""
    return ((model(batch["x"]) - 100.0) ** 2).mean(-1)


def test_a_member_that_diverges_freezes_alone_at_the_state_before():
    source = memory(points(50))
    settings = {"loss": explosive, "batch_size": 8, "steps": 60, "log_every": 10}
    found = sweep(MLP, source, optimizer=optax.sgd, learning_rate=[1e-4, 1e4], **settings)
    assert [result.status for result in found.results] == ["finished", "diverged"]
    assert found.best == 0
    frozen = found.results[1]
    own = Trainer(MLP(), source, optimizer=optax.sgd(1e4), **settings).fit()
    assert (own.status, own.step) == ("diverged", frozen.step)
    for path, value in arrays(frozen.model).items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, arrays(own.model)[path], rtol=1e-3, err_msg=path)
    assert len(found.results[0].history) == 6
    none = sweep(MLP, source, optimizer=optax.sgd, learning_rate=[1e4, 2e4], **settings)
    assert (none.status, none.best, none.model) == ("diverged", None, None)


def test_a_sweep_goes_on_bit_for_bit_and_exports_the_best(tmp_path, monkeypatch):
    source = labelled(50, shuffle=True)
    settings = {"batch_size": 8, "steps": 20, "log_every": 3, "learning_rate": [*RATES, 1e20]}
    settings |= {"checkpoint": Checkpoints(every=4), "optimizer": optax.sgd, "ema": 0.9}
    expected = sweep(Normed, source, **settings)
    place = tmp_path / "sweep"
    sweep(Normed, source, **settings | {"steps": 7}, workdir=place)

    class Preempting:
        def write_scalars(self, step, scalars):
            if step == 12:
                signal.raise_signal(signal.SIGTERM)

    cut = sweep(Normed, source, **settings, workdir=place, writers=[Preempting()])
    assert cut.status == "preempted"
    resumed = sweep(Normed, source, **settings, workdir=place)
    for own, other in zip(resumed.results, expected.results, strict=True):
        assert_same(own.model, other.model)
        assert_same(own.ema, other.ema)
        assert own.status == other.status
    assert [r.status for r in resumed.results] == ["finished", "finished", "diverged"]
    best = load(place / "best.safetensors", Normed(seed=9))
    assert_same(nnx.state(best, nnx.Param), nnx.state(resumed.results[resumed.best].ema, nnx.Param))
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["0/train/loss"] == resumed.results[0].metrics["train/loss"]
    page = (place / "report.html").read_text()
    assert "(best)" in page
    assert page.count('class="curve m0"') == page.count('class="curve m1"') > 0
    with pytest.raises(ValueError, match="begin another in another workdir"):
        sweep(Normed, source, **settings | {"learning_rate": RATES}, workdir=place)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, ValueError, r"nothing to sweep: write sweep\(..., learning_rate="),
        ({"learning_rates": [1.0]}, TypeError, "no 'learning_rates'. Did you mean 'learning_rate'"),
        ({"learning_rate": ["a"]}, ValueError, "expected a list of numbers"),
        ({"learning_rate": [optax.constant_schedule(1.0)]}, ValueError, "schedule belongs into"),
        ({"learning_rate": [1.0], "callbacks": [print]}, TypeError, "no callbacks=: a callback"),
        (
            {"learning_rate": [1.0], "optimizer": optax.adam(1.0)},
            TypeError,
            "optimizer=optax.adamw",
        ),
        ({"seed": [0, 1], "optimizer": optax.sgd}, ValueError, "sgd needs learning_rate: write"),
        ({"seed": [-1]}, ValueError, "seed=-1"),
        ({"learning_rate": [1.0], "steps": 0}, ValueError, "steps=0"),
    ],
)
def test_a_bad_argument_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        sweep(lambda seed: MLP(seed=seed), memory(points(20)), **arguments)


def test_bad_models_are_named():
    source = memory(points(20))
    with pytest.raises(ValueError, match=r"takes no argument, so seed=\[...\] changes nothing"):
        sweep(lambda: MLP(), source, seed=[0, 1])
    with pytest.raises(TypeError, match="make_model returns a float"):
        sweep(lambda seed: 1.0, source, seed=[0, 1])

    def grows(seed):
        model = MLP()
        model.more = nnx.Variable(jnp.zeros(seed + 1))
        return model

    with pytest.raises(ValueError, match=r"several structures: more is .* in member 1"):
        sweep(grows, source, loss=explosive, seed=[0, 1])
