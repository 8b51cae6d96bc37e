"""Rows by number in several real processes: the run on eager data of the same layout."""

import hashlib

import datasets
import pytest

from datarax import HFEagerSource, HFIndexedSource, Pipeline
from tests.support.models import Normed, arrays, points
from tests.support.processes import Group
from tests.support.runs import loss, noise, rows
from trainers import Trainer

N = 101  # the epoch's last batch is filled up
STEPS = 500
KINDS = ("eager", "eager"), ("disk", "eager"), ("memory", "disk"), ("eager", "memory")


def trainer(folder, kind, shards, **arguments):
    """Returns a trainer over rows on the devices (`eager`), in `memory`, or on `disk`."""
    rows = datasets.load_from_disk(folder, keep_in_memory=kind == "memory")
    of = HFEagerSource if kind == "eager" else HFIndexedSource
    source = of.from_dataset(rows, shuffle=True, seed=7)
    pipeline = Pipeline(source=source, stages=[noise], batch_size=16, shards=shards)
    return Trainer(Normed(), pipeline, loss=loss, log_every=10, **arguments)


def run(folder, begun, ended, shards, workdir):
    """Trains on one kind of source to the middle of an epoch, and goes on with another."""
    trainer(folder, begun, shards, steps=STEPS // 2 + 1, workdir=workdir).fit()
    result = trainer(folder, ended, shards, steps=STEPS, workdir=workdir).fit()
    sums = {path: _sum(array) for path, array in arrays(result.model).items()}
    return {"arrays": sums, "history": result.history, "metrics": result.metrics}


def batches(folder, kind, shards):
    """Returns hashes of some batches of the first epochs, and of the last steps."""
    one = trainer(folder, kind, shards)
    steps = [*range(3 * one.steps_per_epoch), *range(STEPS - 5, STEPS)]
    return [{name: _sum(c) for name, c in one.batch_at(t).items()} for t in steps]


def _sum(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_a_run_of_500_steps_is_the_eager_one_of_the_same_processes(processes, devices, tmp_path):
    folder = str(tmp_path / "rows")
    datasets.Dataset.from_dict(points(N)).save_to_disk(folder, num_shards=3)
    with Group(processes, devices) as group:
        for shards in (1, 4):
            expected = batches(folder, "eager", shards)
            for kind in ("eager", "memory", "disk"):
                assert group.results(batches, folder, kind, shards) == [expected] * processes
            found, logs = [], []
            for begun, ended in KINDS if shards == 1 else KINDS[:2]:
                workdir = tmp_path / f"{begun}-{ended}-{shards}"
                found += group.results(run, folder, begun, ended, shards, str(workdir))
                logs.append(rows(workdir))
            assert len(found[0]["history"]) == STEPS // 10 + 1  # and where the first run ended
            assert all(one == found[0] for one in found)
            assert all(log == logs[0] for log in logs)
