"""Skipped records: they have no influence, all else stays bit-identical, the state remembers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarax import HFStreamingSource, MixedSource, Pipeline
from tests.datarax.sources.test_indexed import Rows
from tests.support.models import MLP, Normed, assert_same, memory, points
from tests.support.runs import noise
from trainers import Checkpoints, Trainer, every

pytestmark = pytest.mark.usefixtures("compiled_once")

N, SIZE = 50, 8  # seven steps an epoch
KINDS = ["eager", "indexed", "sharded", "view"]
OFTEN = ["eager", *(pytest.param(one, marks=pytest.mark.slow) for one in KINDS[1:])]


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def trainer(kind="eager", data=None, **arguments):
    data = points(N) if data is None else data
    source = memory(data, shuffle=True) if kind != "indexed" else Rows(data, shuffle=True, seed=7)
    source = source.select(np.arange(3, N)) if kind == "view" else source
    # A model whose rows see each other, and a stage that draws, for one kind: they take long.
    model, stages = (Normed(), [noise]) if kind == "eager" else (MLP(), [])
    shards = 4 if kind == "sharded" else 1
    pipeline = Pipeline(source=source, stages=stages, batch_size=SIZE, shards=shards)
    arguments = {"loss": loss, "steps": 15, "log_every": 5, **arguments}
    return Trainer(model, pipeline, optimizer=optax.adam(1e-2), **arguments)


def spoilt(records):
    """Returns the data with numbers that would spoil everything."""
    data = points(N)
    data["x"][records] = np.nan
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_the_records_of_a_step_are_those_of_its_batch(kind):
    one = trainer(kind)
    sizes = [len(one.batch_at(t)["label"]) for t in range(8)]
    found = one.records_at(range(8))
    labels = np.concatenate([one.batch_at(t)["label"] for t in range(8)])
    assert len(found) == sum(sizes)
    np.testing.assert_array_equal(points(N)["label"][found], labels)
    np.testing.assert_array_equal(one.records_at(1), found[sizes[0] : sum(sizes[:2])])
    assert one.records_at([]).shape == (0,)


@pytest.mark.parametrize("kind", OFTEN)
def test_what_was_before_stays_and_the_records_have_no_influence(kind):
    skip = trainer(kind).records_at([4])  # step 5 is the first that holds them

    def run(**arguments):
        before = []
        callback = every(4, lambda run: before.append(run.model()) if run.step == 4 else None)
        result = trainer(kind, callbacks=[callback], **arguments).fit()
        return before[0], result

    (early, whole), (early_too, without) = run(), run(skip=skip)
    assert_same(early, early_too)
    assert not np.array_equal(whole.model.out.kernel[...], without.model.out.kernel[...])
    assert [row["rows_seen"] for row in whole.history] == [
        row["rows_seen"] for row in without.history
    ]
    _, blind = run(skip=skip, data=spoilt(skip))
    assert blind.status == "finished"
    assert_same(without.model, blind.model)


@pytest.mark.slow
def test_a_step_is_that_of_a_loss_which_weighs_the_records_by_zero():
    skip = trainer("view").records_at([1, 2])

    def weighed(model, batch):
        return loss(model, batch), {"weight": ~jnp.isin(batch["id"], skip)}

    one = trainer("view", skip=skip, steps=2).fit()
    other = trainer("view", loss=weighed, steps=2).fit()
    assert_same(one.model, other.model)


def test_a_batch_without_any_other_record_changes_nothing():
    one = trainer("view", skip=trainer("view").records_at([0]), data=spoilt(range(3)), steps=1)
    before = trainer("view").model
    assert_same(one.fit().model, before)


@pytest.mark.parametrize("kind", ["indexed", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_state_remembers_them_from_the_step_on_that_left_them_out(kind, tmp_path):
    options = {"checkpoint": Checkpoints(every=5)}
    early, late = trainer(kind).records_at([2]), trainer(kind).records_at([9])

    def run(place, steps, **arguments):
        return trainer(kind, workdir=tmp_path / place, steps=steps, **options, **arguments).fit()

    run("whole", 4)
    whole = run("whole", 15, skip=early)
    run("parts", 4)
    run("parts", 6, skip=early)
    again = run("parts", 15)
    assert_same(whole.model, again.model)
    assert whole.history[-1] == again.history[-1]
    other = run("parts", 20, skip=late)
    assert not np.array_equal(other.model.out.kernel[...], again.model.out.kernel[...])


def test_a_run_without_a_workdir_remembers_them_too(capsys):
    skip = trainer("view").records_at([2])
    one = trainer("view", skip=skip, steps=10)
    one.fit(steps=5)
    assert_same(one.fit(steps=10).model, trainer("view", skip=skip, steps=10).fit().model)
    assert "Leaving out 8 records from step 0 on." in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_diverged_goes_on_without_the_record(tmp_path):
    bad = trainer("view").records_at([7])[:1]
    options = {"data": spoilt(bad), "workdir": tmp_path}
    found = trainer("view", **options).fit()
    assert found.status == "diverged"
    assert trainer("view", **options).fit().status == "diverged"
    assert trainer("view", skip=bad, **options).fit().status == "finished"


@pytest.mark.parametrize(
    ("skip", "words"),
    [
        (np.ones(N, bool), r"np.flatnonzero\(mask\)"),
        ([1.5], r"integers of shape \(k,\)"),
        ("12", r"integers of shape \(k,\)"),
        (7, r"integers of shape \(k,\)"),
        ([-1], "-1, and .* has records 0 to 49"),
        ([50], "50, and .* has records 0 to 49"),
        (range(N), "all 50 records .* none is left"),
    ],
)
def test_what_names_no_records_is_refused(skip, words):
    with pytest.raises(ValueError, match=words):
        trainer("sharded", skip=skip)


def test_records_without_numbers_are_refused():
    import datasets

    rows = datasets.Dataset.from_dict(points(N)).to_iterable_dataset()
    for source in (HFStreamingSource.from_dataset(rows), MixedSource([memory(points(N))], [1])):
        one = Trainer(MLP(), source, loss=loss, steps=2, batch_size=SIZE)
        with pytest.raises(ValueError, match=r"records_at.*no? ?.*in order.*HFIndexedSource"):
            one.records_at([0])
        with pytest.raises(ValueError, match=r"skip= needs records with numbers.*filter"):
            Trainer(MLP(), source, loss=loss, steps=2, batch_size=SIZE, skip=[3])
    with pytest.raises(ValueError, match="steps=-1"):
        trainer().records_at([-1])
