"""Preflight: what a run will take, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import CNN, MLP, assert_same, images, labelled, memory, points
from trainers import Trainer


def test_it_tells_parameters_memory_work_and_time():
    model = MLP(features=64)
    trainer = Trainer(model, labelled(200, features=64), batch_size=32, steps=70)
    report = trainer.preflight()
    assert report.parameters == 64 * 8 + 8 + 8 * 3 + 3
    assert "hidden/kernel" in report.overview
    adam = 3 * 4 * report.parameters
    assert adam <= report.state_bytes < adam + 200
    assert 200 * 64 * 4 < report.data_bytes < 200 * 66 * 4
    assert report.state_bytes + report.data_bytes <= report.step_bytes < report.limit_bytes
    forward_and_weights = 2 * 2 * 32 * 64 * 8
    assert forward_and_weights < report.flops < 4 * forward_and_weights
    assert report.seconds == 70 * report.step_seconds > 0
    text = str(report)
    assert all(word in text for word in ("memory", "compiling", "FLOP/s", "70 steps"))


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_run_after_it_is_the_run_without_it(accumulate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = memory(images(20), shuffle=True)

    def trainer():
        return Trainer(CNN(), source, batch_size=8, epochs=2, loss=loss, accumulate=accumulate)

    def loss(model, batch):
        return model(batch["image"][..., None] / 255).sum(-1) ** 2

    looked = trainer()
    assert looked.preflight().flops > 0
    assert_same(looked.fit().model, trainer().fit().model)
    assert list(tmp_path.iterdir()) == []


def test_a_step_larger_than_the_memory_is_refused_before_it_runs():
    def loss(model, batch):
        large = jnp.ones((10**6, 10**6)) * batch["x"].sum() + jnp.arange(1e6)
        return model(batch["x"]).sum(-1) + (large @ large)[3, 5]

    trainer = Trainer(MLP(), memory(points(20)), loss=loss, batch_size=8)
    for run in (trainer.fit, trainer.preflight):
        with pytest.raises(MemoryError, match=r"takes \d+ TB .*the state .*accumulate=8"):
            run()


def test_data_larger_than_the_memory_is_refused():
    rows = 10**9
    x, label = np.broadcast_to(np.float32(1), (rows, 500)), np.broadcast_to(np.int32(1), rows)
    with pytest.raises(MemoryError, match=r"2 TB .*'x' .*2 kB a record.*with HFIndexedSource"):
        Trainer(MLP(), memory({"x": x, "label": label}))


def test_the_run_finds_the_program_compiled(tmp_path):
    trainer = Trainer(MLP(), labelled(20), batch_size=8, workdir=tmp_path)
    trainer.preflight()
    programs = {path.name for path in (tmp_path / "compilation").iterdir()}
    assert any("chunk" in name for name in programs)
    trainer.fit()
    after = {path.name for path in (tmp_path / "compilation").iterdir()}
    assert {n for n in after if "chunk" in n} == {n for n in programs if "chunk" in n}
    assert jax.config.jax_compilation_cache_dir is None
