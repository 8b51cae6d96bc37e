"""Training, evaluating and predicting on views: their records, resumed exactly."""

import itertools

import numpy as np
import optax
import pytest

from tests.support.models import MLP, arrays, labelled, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")

N = 60
VIEWS = {
    "fold": lambda s: s.fold(0, of=4, stratify="label")[0],
    "balanced": lambda s: s.balanced("label"),
    "weighted": lambda s: s.weighted(np.arange(N)),
}


def loss(model, batch):
    logits = model(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses, {"logits": logits, "labels": batch["label"]}


def trainer(view, **arguments):
    arguments = {"loss": loss, "batch_size": 12, "log_every": 1, **arguments}
    return Trainer(MLP(), view, **arguments)


SLOW = pytest.mark.slow
OFTEN = [("fold", 4), ("balanced", 1), ("weighted", 1)]


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        pytest.param(*one, marks=[] if one in OFTEN else SLOW)
        for one in itertools.product(VIEWS, (1, 4))
    ],
)
def test_batches_are_those_of_the_view(name, shards):
    view = VIEWS[name](memory(points(N), shuffle=True))
    one = trainer(view, shards=shards)
    seen = np.concatenate([one.batch_at(t)["id"] for t in range(one.steps_per_epoch)])[: len(view)]
    if shards == 1 or name != "fold":
        np.testing.assert_array_equal(seen, view.get_batch(len(view))["id"])
    else:
        assert sorted(seen) == sorted(view.collect_to_array()["id"].tolist())
    counts = np.bincount(seen, minlength=N)
    if name == "weighted":
        assert abs(counts - np.arange(N) / np.arange(N).sum() * N).max() <= 1


@pytest.mark.parametrize(
    "name",
    ["balanced", pytest.param("fold", marks=SLOW), pytest.param("weighted", marks=SLOW)],
)
def test_a_run_on_a_view_resumes_exactly_and_refuses_another_view(name, tmp_path):
    def view():
        return VIEWS[name](memory(points(N), shuffle=True))

    whole = trainer(view(), steps=9).fit()
    trainer(view(), steps=4, workdir=tmp_path).fit()
    again = trainer(view(), steps=9, workdir=tmp_path).fit()
    for path, value in arrays(whole.model).items():
        np.testing.assert_array_equal(arrays(again.model)[path], value)
    other = memory(points(N), shuffle=True).select(slice(0, 30))
    with pytest.raises(ValueError, match=r"has select\(30 records\)"):
        trainer(other, steps=12, workdir=tmp_path).fit()


def test_predictions_are_of_the_views_rows_in_its_stored_order():
    source = labelled(N, shuffle=True)
    part = source.split(0.3, stratify="label")[1]
    one = Trainer(MLP(), source, batch_size=12)
    whole, some = one.predict(source), one.predict(part)
    rows = part.stored_records(np.arange(len(part)))
    np.testing.assert_allclose(some, whole[rows], rtol=1e-6)
    assert one.evaluate(part)["loss"] != one.evaluate(source)["loss"]


def test_labels_that_a_view_leaves_out_do_not_count():
    data = points(N)
    data["label"][:5] = 9
    view = memory(data).select(slice(5, N))
    assert trainer(view)._batches.extent("label") == (0, 2)
