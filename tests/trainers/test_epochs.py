"""Where a run ends: epochs of streams whose length nobody knows, and readers that fail."""

import datasets
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import HFStreamingSource, MemorySource, MemorySourceConfig, MixedSource
from tests.support.models import assert_same
from tests.support.runs import at
from trainers import Trainer, every

pytestmark = pytest.mark.usefixtures("compiled_once")

N = 50


class Linear(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


def columns():
    x = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    return {"x": x, "target": x.sum(axis=1)}


def unknown(fails_after=None):
    """A stream of N rows that does not know how many it has, and may fail."""
    calls = iter(range(10**6))

    def rows():
        for i in range(N):
            if fails_after is not None and next(calls) >= fails_after:
                raise OSError("the disk is gone")
            yield {"x": columns()["x"][i].tolist(), "target": float(columns()["target"][i])}

    features = datasets.Features(
        {"x": datasets.List(datasets.Value("float32"), 2), "target": datasets.Value("float32")}
    )
    rows = datasets.IterableDataset.from_generator(rows, features=features)
    return HFStreamingSource.from_dataset(rows)


def trainer(source=None, **options):
    options = {"batch_size": 8, "optimizer": optax.sgd(0.05), "log_every": 5, **options}
    return Trainer(Linear(), unknown() if source is None else source, **options)


def test_an_epoch_of_unknown_length_ends_where_the_stream_does():
    seen = []

    def note(run):
        seen.append((run.step, run.epoch, run.steps))

    one = trainer(epochs=2, eval_source=unknown(), callbacks=[every(1, note)])
    assert one.steps is None
    result = one.fit()
    # 7 batches an epoch, the last of them with 2 records.
    assert (result.status, result.step) == ("finished", 14)
    assert [row["epoch"] for row in result.history] == [0, 1, 1, 2]
    assert [row["step"] for row in result.history if "eval/loss" in row] == [7, 14]
    assert result.history[-1].keys() >= {"train/loss", "eval/loss"}
    assert seen[5:7] == [(6, 0, None), (7, 1, None)]
    assert seen[-1] == (14, 2, 14)
    assert one.steps is None
    eager = MemorySource(MemorySourceConfig(), columns())
    np.testing.assert_allclose(
        result.model.layer.kernel[...], trainer(eager, epochs=2).fit().model.layer.kernel[...]
    )


def test_neither_steps_nor_epochs_is_one_epoch():
    assert trainer().fit().step == 7


# 7 is an epoch's end, and an evaluation.
@pytest.mark.parametrize("step", [7, pytest.param(9, marks=pytest.mark.slow)])
def test_a_run_of_epochs_goes_on_where_it_was_cut(tmp_path, step):
    def run(name, **more):
        return trainer(epochs=2, eval_source=unknown(), workdir=tmp_path / name, **more).fit()

    whole, cut = run("whole"), run("cut", callbacks=[at(step)])
    assert (cut.status, cut.step) == ("preempted", step)
    resumed = run("cut")
    assert (resumed.status, resumed.step) == ("finished", 14)
    assert resumed.history == whole.history
    assert_same(resumed.model, whole.model)
    assert run("cut").step == 14  # it is finished
    further = trainer(epochs=3, eval_source=unknown(), workdir=tmp_path / "cut").fit()
    assert (further.step, further.history[-1]["epoch"]) == (21, 3)


def test_a_mixture_wants_steps():
    mixture = MixedSource([unknown(), unknown()], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"A mixture never ends, so epochs=2 .* steps=10_000"):
        trainer(mixture, epochs=2)
    assert trainer(mixture, steps=3).fit().step == 3


def test_a_reader_that_fails_saves_the_step_up_to_which_there_were_batches(tmp_path):
    # The first rows are read to know the columns, too.
    with pytest.raises(Exception, match="the disk is gone"):
        trainer(unknown(fails_after=3 * N), steps=40, workdir=tmp_path).fit()
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved > 7
    resumed = trainer(steps=40, workdir=tmp_path).fit()
    whole = trainer(steps=40).fit()
    assert_same(resumed.model, whole.model)
    assert resumed.history == whole.history
    assert jax.tree.leaves(nnx.state(resumed.model))
