"""Rows by number on many devices: the run of eager data of the same layout, bit for bit."""

import numpy as np
import pytest

from datarax import Pipeline
from tests.support.devices import mesh
from tests.support.models import Normed, assert_same, points
from tests.support.runs import loss, noise, rows
from tests.support.sources import kinds_of
from trainers import Trainer

N = 101  # the epoch's last batch is filled up


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a trainer over the same rows: on the device, in memory, or on disk."""
    source = kinds_of(points(N), tmp_path_factory.mktemp("rows") / "rows", shuffle=True, seed=7)

    def trainer(kind, devices, **arguments):
        pipeline = Pipeline(source=source(kind), stages=[noise], batch_size=16)
        arguments = {"loss": loss, "log_every": 10, "mesh": mesh(devices), **arguments}
        return Trainer(Normed(), pipeline, **arguments)

    return trainer


KINDS = ("disk", "eager"), ("memory", "disk"), ("eager", "memory")  # of source: begun, ended


@pytest.mark.parametrize(
    ("devices", "steps", "kinds"),
    [
        (4, 20, KINDS[:1]),
        *(pytest.param(devices, 500, KINDS, marks=pytest.mark.slow) for devices in (1, 2, 4, 8)),
    ],
)
def test_a_run_is_the_eager_one_of_the_same_layout(made, devices, steps, kinds, tmp_path):
    """Each run is taken up once, in mid-epoch, from the checkpoint of another kind of source."""

    def run(begun, ended):
        workdir = tmp_path / f"{begun}-{ended}"
        made(begun, devices, steps=steps // 2 + 1, workdir=workdir).fit()
        return made(ended, devices, steps=steps, workdir=workdir).fit(), rows(workdir)

    expected, logs = run("eager", "eager")
    for begun, ended in kinds:
        result, own = run(begun, ended)
        assert result.history == expected.history
        assert_same(result.model, expected.model)
        assert own == logs


def test_batches_are_byte_identical_on_any_number_of_devices(made):
    expected = made("eager", 1)
    for devices in 1, 2, 4, 8:
        found = made("disk", devices)
        for t in (0, 5, 6, 7, 20):
            for name, column in expected.batch_at(t).items():
                assert np.asarray(column).tobytes() == np.asarray(found.batch_at(t)[name]).tobytes()
