"""Grain's data sets and other objects as sources of a trainer: by number, and as a stream."""

import logging

import grain
import numpy as np
import optax
import pytest

from tests.support.models import MLP, assert_same, points
from tests.support.runs import said
from trainers import Checkpoints, Trainer

N, SIZE = 50, 8
pytestmark = pytest.mark.usefixtures("compiled_once")


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def by_number(n=N):
    data = points(n)
    return grain.MapDataset.range(n).map(lambda i: {name: data[name][i] for name in data})


def stream():
    return by_number().shuffle(seed=3).to_iter_dataset()


class Records:
    """Records by number, as a map-style data set of torch gives them."""

    def __init__(self, n=N):
        self._data = points(n)

    def __len__(self):
        return len(self._data["x"])

    def __getitem__(self, i):
        return {name: column[i] for name, column in self._data.items()}


class Plain:
    """Records in order, whose iterator has no state."""

    def __iter__(self):
        records = Records()
        return (records[i] for i in range(len(records)))


def trainer(source, **arguments):
    arguments = {"loss": loss, "batch_size": SIZE, "steps": 20, "log_every": 5, **arguments}
    return Trainer(MLP(), source, optimizer=optax.adam(1e-2), **arguments)


@pytest.mark.parametrize("make", [by_number, Records])
def test_records_by_number_are_an_indexed_source(make):
    one = trainer(make())
    assert one.steps_per_epoch == 7
    for first in (0, 7):
        ids = np.concatenate([one.batch_at(t)["id"] for t in range(first, first + 7)])
        np.testing.assert_array_equal(np.sort(ids), np.arange(N))
    assert one.fit().step == 20


def test_a_stream_of_grain_has_its_order_and_every_record_counts():
    one, expected = trainer(stream(), steps=None, epochs=2), [int(r["id"]) for r in stream()]
    ids = np.concatenate([one.batch_at(t)["id"] for t in range(14)])
    assert ids.tolist() == 2 * expected
    result = one.fit()
    assert (result.step, result.history[-1]["rows_seen"]) == (14, 2 * N)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("cut", [pytest.param(4, marks=SLOW), 7, pytest.param(11, marks=SLOW)])
def test_a_stream_of_grain_resumes_exactly(cut, tmp_path):
    whole = trainer(stream()).fit()
    options = {"workdir": tmp_path, "checkpoint": Checkpoints(every=3)}
    stopped = trainer(stream(), callbacks=[lambda run: run.step >= cut], log_every=1, **options)
    assert stopped.fit().status == "stopped"
    again = trainer(stream(), **options).fit()
    assert again.step == 20
    assert_same(again.model, whole.model)


def test_an_iterable_without_a_state_trains_and_says_once_that_it_cannot_resume(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer(Plain(), workdir=tmp_path).fit(steps=4)
    assert len([m for m in said(caplog, "datarax.sources.iterable_source") if "resume" in m]) == 1
    with pytest.raises(ValueError, match=r"cannot go on at record 32.*get_state and set_state"):
        trainer(Plain(), workdir=tmp_path).fit()
    assert trainer(Plain(), workdir=tmp_path, resume_data="restart").fit().step == 20


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: by_number().map(lambda r: r["x"]), TypeError, "is a ndarray: expected a dict"),
        (lambda: by_number()[:0], ValueError, "has no rows"),
        (lambda: by_number().map(lambda r: r["x"]).to_iter_dataset(), TypeError, "expected a dict"),
        (lambda: by_number().filter(lambda r: False).to_iter_dataset(), ValueError, "no record"),
        (lambda: iter(Plain()), TypeError, "can be used only once"),
        (lambda: 7, TypeError, "expected a source"),
    ],
)
def test_what_gives_no_records_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        trainer(make())


def ragged(i):
    return {"x": np.zeros(4 if i < 40 else 5, np.float32), "label": np.int32(0)}


@pytest.mark.parametrize("kind", ["number", "stream"])
def test_records_of_different_shapes_are_refused_and_named(kind):
    records = grain.MapDataset.range(N).map(ragged)
    with pytest.raises(ValueError, match=r"shape|columns"):
        trainer(records if kind == "number" else records.to_iter_dataset()).fit()
