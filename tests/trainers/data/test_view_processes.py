"""Views and a mixture of them: byte-identical batches on one, two and four processes."""

import hashlib

import numpy as np
import pytest

from datarax import MixedSource
from tests.support.models import MLP, memory, points
from tests.support.processes import Group
from tests.trainers.data.test_views import loss
from trainers import Trainer

N = 101


def views():
    """Returns views of views, and a mixture of them in stages."""
    source = memory(points(N), shuffle=True)
    training, _ = source.select(slice(5, None)).fold(1, of=4, stratify="label")
    rest, _ = source.split(0.3, stratify="label")
    balanced, weighted = training.balanced("label"), rest.weighted(np.arange(len(rest)))
    mixture = MixedSource([balanced, weighted], [(0, [2, 1]), (100, [1, 3])])
    return {"fold": training, "balanced": balanced, "weighted": weighted, "mixture": mixture}


def trained():
    """Returns the batches of some epochs of each, as hashes, and the last loss of a run."""
    found = {}
    for name, view in views().items():
        one = Trainer(MLP(), view, loss=loss, batch_size=16, steps=20, log_every=5)
        batches = [one.batch_at(t) for t in range(20)]
        hashes = [hashlib.sha256(batch["x"].tobytes()).hexdigest() for batch in batches]
        ids = [batch["id"].tolist() for batch in batches]
        found[name] = {"hashes": hashes, "ids": ids, "loss": one.fit().metrics["train/loss"]}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (4, 1), (2, 2)])
def test_batches_of_views_are_the_same_on_any_number_of_processes(processes, devices):
    one = trained()
    with Group(processes, devices) as group:
        for other in group.results(trained):
            for name, expected in one.items():
                assert other[name]["ids"] == expected["ids"], name
                assert other[name]["hashes"] == expected["hashes"], name
                np.testing.assert_allclose(other[name]["loss"], expected["loss"], rtol=1e-4)
