"""A source that a compiled function closes over says so, once, and no other use of it does."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax import MemorySource, MemorySourceConfig, Pipeline
from datarax.sources.closed_over import is_compiled
from trainers import Trainer

COUNT = iter(range(100))


def source(rows=300_000, **config):
    """Returns a source under a name of its own, of 1.2 MB where `rows` is not given."""
    data = {"x": np.arange(rows, dtype=np.float32)}
    name = f"source {next(COUNT)}"
    return MemorySource(MemorySourceConfig(**config), data, name=name)


def told(caplog):
    return [r.getMessage() for r in caplog.records if "closed over" in r.getMessage()]


def test_it_says_so_once_with_the_line_to_write(caplog):
    large = source()
    for _ in range(2):
        got = jax.jit(lambda start: large.get_batch_at(start, 2)["x"])(5)
        assert got.tolist() == [5, 6]
    (line,) = told(caplog)
    assert large.name in line
    assert "1.2 MB" in line
    assert "jax.jit(lambda source, start: source.get_batch_at(" in line


@pytest.mark.parametrize(
    "loop",
    [
        lambda read: jax.lax.fori_loop(0, 3, lambda t, x: x + read(t), 0.0),
        lambda read: jax.lax.scan(lambda x, t: (x + read(t), None), 0.0, jnp.arange(3))[0],
        lambda read: jax.vmap(read)(jnp.arange(3)).sum(),
    ],
)
def test_loops_and_vmap_say_so_under_jit_and_not_outside(loop, caplog):
    large = source()
    assert loop(lambda t: large.get_batch_at(t, 1)["x"].sum()) == 3
    assert not told(caplog)
    assert jax.jit(lambda: loop(lambda t: large.get_batch_at(t, 1)["x"].sum()))() == 3
    assert len(told(caplog)) == 1


def test_a_key_alone_is_traced_too(caplog):
    large = source(shuffle=True)
    jax.jit(lambda key: large.get_batch_at(0, 2, key)["x"])(jax.random.key(0))
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit])
def test_an_argument_says_nothing(jit, caplog):
    got = jit(lambda source, start: source.get_batch_at(start, 2)["x"])(source(), 5)
    assert got.tolist() == [5, 6]
    assert not told(caplog)


def test_small_data_says_nothing(caplog):
    small = source(rows=100)
    jax.jit(lambda start: small.get_batch_at(start, 2)["x"])(5)
    assert not told(caplog)


def test_pipelines_and_trainers_say_nothing(caplog):
    caplog.set_level(logging.WARNING)
    large = source(shuffle=True)
    pipeline = Pipeline(source=large, stages=[], batch_size=8)
    pipeline.step()
    pipeline.scan(lambda batch: batch["x"].sum(), length=2)
    loss = lambda model, batch: model.bias[...].sum() * batch["x"]  # noqa: E731
    Trainer(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), pipeline, loss=loss, steps=2).fit()
    assert not told(caplog)


def test_what_is_compiled_and_what_is_not():
    found = {}

    def look(name):
        def inner(x):
            found[name] = is_compiled(x)
            return x

        return inner

    look("concrete")(1.0)
    jax.jit(look("jit"))(1.0)
    jax.jit(jax.grad(look("grad in jit")))(1.0)
    jax.grad(look("grad"))(1.0)
    assert found == {"concrete": False, "jit": True, "grad in jit": True, "grad": False}
