"""The compiled loop: chunks, traces, and what the compiled program is made of."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import Pipeline
from tests.support.models import (
    CNN,
    MLP,
    Normed,
    Traced,
    assert_same,
    images,
    labelled,
    memory,
    points,
)
from trainers import Trainer
from trainers.data.adapt import as_pipeline
from trainers.data.eager import EagerBatches
from trainers.devices.arrays import as_carry
from trainers.devices.layout import Layout
from trainers.step.compiled import Loop
from trainers.step.model import split
from trainers.step.spike import Trend
from trainers.step.state import State, Window
from trainers.step.step import Update, train_step
from trainers.task.task import infer

# --- Loop by itself ------------------------------------------------------------------------------


def _sum(state, data, t):
    return state + data["x"][t % len(data["x"])]


def _convolved(state, data, t):
    kernel = jnp.ones((1, 1, 3))
    return jax.lax.conv_general_dilated(state, kernel, (1,), "SAME") + data["x"][t]


@pytest.mark.parametrize("cuts", [[12], [1, 12], [5, 5, 9, 12], list(range(1, 13))])
def test_any_division_of_the_steps_gives_the_same_bits(cuts):
    data = {"x": jax.random.normal(jax.random.key(0), (12,))}
    for step, shape in [(_sum, ()), (_convolved, (1, 1, 8))]:
        loop = Loop(step, jnp.zeros(shape), data)
        whole = loop(jnp.zeros(shape), data, 0, 12)
        state, start = jnp.zeros(shape), 0
        for stop in cuts:
            state, start = loop(state, data, start, stop), stop
        np.testing.assert_array_equal(state, whole)


def test_a_convolution_is_called_from_python_on_the_cpu():
    data = {"x": jnp.arange(12.0)}
    assert not Loop(_sum, jnp.zeros(()), data).from_python
    on_cpu = jax.default_backend() == "cpu"
    assert Loop(_convolved, jnp.zeros((1, 1, 8)), data).from_python == on_cpu

    def hidden(state, data, t):  # inside a function of its own, as models have it
        return jax.checkpoint(lambda s: jax.jit(_convolved)(s, data, t))(state)

    assert Loop(hidden, jnp.zeros((1, 1, 8)), data).from_python == on_cpu


def test_a_long_step_is_called_from_python_on_the_cpu():
    def products(count):
        def step(state, data, t):
            return jax.lax.scan(lambda x, _: (x @ data["x"], None), state, length=count)[0]

        return step

    data, on_cpu = {"x": jnp.eye(1024)}, jax.default_backend() == "cpu"
    assert not Loop(products(4), data["x"], data).from_python  # 8.6 GFLOP
    loop = Loop(products(5), data["x"], data)
    assert loop.from_python == on_cpu
    assert not loop.is_slow_in_loops
    np.testing.assert_array_equal(loop(jnp.ones((1024, 1024)), data, 0, 3), np.ones((1024, 1024)))


def test_a_step_is_traced_once_for_all_lengths():
    traces = []

    def step(state, data, t):
        traces.append(t)
        return state + data

    data = jnp.ones(())
    loop = Loop(step, jnp.zeros(()), data)
    for start, stop in [(0, 1), (1, 5), (5, 105)]:
        loop(jnp.zeros(()), data, start, stop)
    assert len(traces) == 1


def test_inner_loops_change_no_bit_and_have_a_length_that_the_compiler_knows():
    data = {"x": jax.random.normal(jax.random.key(0), (16,))}
    traces = []

    def step(state, data, t):
        traces.append(t)
        return _sum(state, data, t) * 1.01

    loop = Loop(step, jnp.zeros(()), data, lambda state: state < 1e9, inner=5)
    bounds = [(start, stop) for start in (0, 3) for stop in range(start, 17)]
    expected = [loop(jnp.zeros(()), data, *cut) for cut in bounds]
    loop.compile_inner()
    program = loop.inner_program
    loop.compile_inner()
    assert loop.inner_program is program
    np.testing.assert_array_equal([loop(jnp.zeros(()), data, *cut) for cut in bounds], expected)
    assert len(traces) == 1
    trips = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
    assert trips.findall(program.as_text()) == ["5"]
    assert not trips.findall(loop.program.as_text())

    convolved = Loop(_convolved, jnp.zeros((1, 1, 8)), data, inner=5)
    convolved.compile_inner()
    assert (convolved.inner_program is None) == convolved.from_python


# --- through the trainer -------------------------------------------------------------------------


def _cadences():
    return [{}, {"log_every": 1}, {"log_every": 7, "eval_every": 3}, {"log_every": 4}]


def test_the_cadence_of_logs_and_evaluations_does_not_change_a_bit():
    data, held_out = memory(points(50), shuffle=True), memory(points(19, seed=1))
    pipeline = Pipeline(source=data, stages=[_without_id], batch_size=16)
    evaluated = Pipeline(source=held_out, stages=[_without_id], batch_size=16)
    results = [
        Trainer(Normed(), pipeline, epochs=3, eval_source=evaluated, **cadence).fit()
        for cadence in ({}, {"log_every": 1}, {"log_every": 7, "eval_every": 3})
    ]
    for result in results[1:]:
        assert_same(result.model, results[0].model)
        assert result.metrics["eval/loss"] == results[0].metrics["eval/loss"]


@pytest.mark.slow
def test_the_cadence_does_not_change_a_bit_of_a_convolutional_model():
    source = memory(images(20), shuffle=True)
    results = [Trainer(CNN(), source, batch_size=8, epochs=2, log_every=n).fit() for n in (1, 100)]
    assert_same(results[1].model, results[0].model)


def _parts(model, source, batch_size):
    """Returns the train step of an inferred task, its data and a function that makes its state."""
    batches = EagerBatches(as_pipeline(source, batch_size), Layout())
    task, optimizer = infer(model, batches), optax.adamw(1e-3)
    objective = task.objective(batches, seed=0)
    definition, params, rest = split(model, nnx.Param, training=True)
    update = Update(optimizer, nnx.Param, accumulate=1, ema=None)
    step = train_step(definition, objective, update, batches.rows, Layout().slices)

    def start():
        window = Window.empty(objective.metrics)
        sums = window, jnp.zeros(()), Trend.begun()
        return as_carry(State(params, rest, optimizer.init(params), None, batches.stages, *sums))

    return step, batches.data, start


def test_steps_called_from_python_equal_the_loop_bit_by_bit():
    source = memory({n: c for n, c in points(50).items() if n != "id"}, shuffle=True)
    step, data, start = _parts(Normed(), source, 16)
    looped = Loop(step, start(), data)
    called = Loop(lambda *arguments: _beside_a_convolution(step(*arguments)), start(), data)
    assert not looped.from_python
    assert called.from_python == (jax.default_backend() == "cpu")
    expected = looped(start(), data, 0, 9)
    assert_same(called(start(), data, 0, 9), expected)
    state = start()
    for cut in ((0, 1), (1, 4), (4, 9)):
        state = looped(state, data, *cut)
    assert_same(state, expected)


def _beside_a_convolution(state):
    ones = jnp.ones((1, 1, 3))
    jax.lax.conv_general_dilated(ones, ones, (1,), "SAME")
    return state


@pytest.mark.parametrize(
    ("cadence", "accumulate"),
    [({"log_every": 1}, 1), ({"log_every": 7, "eval_every": 3}, 4)],
)
def test_a_run_traces_training_once_and_evaluation_once(cadence, accumulate):
    model = Traced(MLP())
    source, held_out = labelled(50, shuffle=False), labelled(21, seed=1)
    settings = {"batch_size": 16, "epochs": 4, "eval_source": held_out, **cadence}
    Trainer(model, source, accumulate=accumulate, **settings).fit()
    assert (model.counts.training, model.counts.evaluation) == (1, 1)


def test_a_convolutional_run_is_traced_once_too():
    model = Traced(CNN())
    source = memory(images(20))
    Trainer(model, source, batch_size=8, accumulate=2, epochs=2, eval_source=source).fit()
    assert (model.counts.training, model.counts.evaluation) == (1, 1)


def test_the_compiled_chunk_talks_to_no_host_and_keeps_the_data_out_of_its_results():
    columns = {name: column for name, column in points(64).items() if name != "id"}
    step, data, start = _parts(Normed(), memory(columns, shuffle=True), 16)
    state = start()
    text = Loop(step, state, data).program.as_text()
    for forbidden in ("infeed", "outfeed", "send(", "recv(", "callback", "SendToHost"):
        assert forbidden not in text, forbidden

    entry = re.search(r"entry_computation_layout=\{\((.*?)\)->\(?(.*?)\)?\}\n", text + "\n")
    parameters, results = entry.groups()
    assert parameters.count("f32[64,4]") == 1
    assert "f32[64,4]" not in results
    assert not re.search(r"f32\[64,4\]\S* constant", text)

    alias = re.search(r"input_output_alias=\{(.*?)\}, entry", text).group(1)
    donated = {int(number) for number in re.findall(r"\((\d+), \{", alias)}
    assert donated == set(range(len(jax.tree.leaves(state))))  # the state, and all of it


def test_the_source_is_the_same_after_a_run():
    source = memory(points(50), shuffle=True)
    before = {name: np.array(column) for name, column in source.data.items()}
    buffers, position = dict(source.data), source.get_state()
    pipeline = Pipeline(source=source, stages=[_without_id], batch_size=16)
    Trainer(Normed(), pipeline, epochs=2, eval_source=pipeline).fit()
    for name, column in source.data.items():
        assert column is buffers[name]
        assert not column.is_deleted()
        np.testing.assert_array_equal(column, before[name])
    assert source.get_state() == position


def _without_id(batch):
    return {name: column for name, column in batch.items() if name != "id"}
