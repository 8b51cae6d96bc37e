"""Skipped records: they have no influence, all else stays bit-identical, the state remembers."""

import json

import datasets
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from datarax import HFStreamingSource, MixedSource, Pipeline
from tests.datarax.sources.test_indexed import Rows
from tests.support.models import MLP, Normed, assert_same, memory, points
from tests.support.runs import noise
from trainers import Checkpoints, Trainer, every
from trainers.data.skipped import numbers_of, skips_of

pytestmark = pytest.mark.usefixtures("compiled_once")

N, SIZE = 50, 8  # seven steps an epoch
FIRST = 30  # of them, the first source's of a mixture
SLOW = pytest.mark.slow
BLOCKS = pytest.param("mixture in blocks", marks=SLOW)
KINDS = ["eager", "indexed", "sharded", "view", "mixture", BLOCKS]
RARE = [pytest.param(one, marks=SLOW) for one in ("indexed", "sharded", "view")]


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def source_of(kind, data):
    if kind == "indexed":
        return Rows(data, shuffle=True, seed=7)
    if not kind.startswith("mixture"):
        source = memory(data, shuffle=True)
        return source.select(np.arange(3, N)) if kind == "view" else source
    some, others = ({k: v[rows] for k, v in data.items()} for rows in np.split(ROWS, [FIRST]))
    other = Rows(others, shuffle=True, seed=3) if "blocks" in kind else memory(others, seed=3)
    stages = [(0, [2, 1]), (20, [3, 2])]
    return MixedSource([memory(some, shuffle=True), other], stages, stop="first")


ROWS = np.arange(N)


def rows_of(records):
    """Returns the rows of `points` that `records_at` names."""
    return records if records.ndim == 1 else records[:, 0] * FIRST + records[:, 1]


def trainer(kind="eager", data=None, **arguments):
    source = source_of(kind, points(N) if data is None else data)
    # A model whose rows see each other, and a stage that draws, for one kind: they take long.
    model, stages = (Normed(), [noise]) if kind == "eager" else (MLP(), [])
    shards = 4 if kind == "sharded" else 1
    pipeline = Pipeline(source=source, stages=stages, batch_size=SIZE, shards=shards)
    arguments = {"loss": loss, "steps": 15, "log_every": 5, **arguments}
    return Trainer(model, pipeline, optimizer=optax.adam(1e-2), **arguments)


def spoilt(records):
    """Returns the data with numbers that would spoil everything."""
    data = points(N)
    data["x"][rows_of(np.asarray(records))] = np.nan
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_the_records_of_a_step_are_those_of_its_batch(kind):
    one = trainer(kind)
    sizes = [len(one.batch_at(t)["label"]) for t in range(8)]
    found = one.records_at(range(8))
    labels = np.concatenate([one.batch_at(t)["label"] for t in range(8)])
    assert len(found) == sum(sizes)
    np.testing.assert_array_equal(points(N)["label"][rows_of(found)], labels)
    np.testing.assert_array_equal(one.records_at(1), found[sizes[0] : sum(sizes[:2])])
    assert one.records_at([]).shape == (0, *found.shape[1:])


@pytest.mark.parametrize("kind", ["eager", "mixture", BLOCKS, *RARE])
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


@SLOW
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


@pytest.mark.parametrize(
    "kind", ["indexed", BLOCKS, *(pytest.param(one, marks=SLOW) for one in ("eager", "mixture"))]
)
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


@pytest.mark.parametrize("kind", ["view", "mixture"])
def test_a_checkpoint_has_them_as_json(kind):
    given = [7, 5] if kind == "view" else [[1, 12], [0, 3]]
    skips = [(4, list(numbers_of(given, source_of(kind, points(N)))))]
    assert skips_of(json.loads(json.dumps(skips))) == skips


def test_a_run_without_a_workdir_remembers_them_too(capsys):
    skip = trainer("view").records_at([2])
    one = trainer("view", skip=skip, steps=10)
    one.fit(steps=5)
    assert_same(one.fit(steps=10).model, trainer("view", skip=skip, steps=10).fit().model)
    assert "Leaving out 8 records from step 0 on." in capsys.readouterr().out


@SLOW
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


@pytest.mark.parametrize(
    ("skip", "words"),
    [
        ([3], r"pairs of a source and its record, \(k, 2\), as in skip=\[\(0, 12\), \(1, 345\)\]"),
        ([(0, 3), (1,)], "pairs of a source"),
        ([(0, 30)], "30 of source 0, and .* has records 0 to 29"),
        ([(1, -1)], "-1 of source 1, and .* has records 0 to 19"),
        ([(2, 0)], "source 2, and MixedSource has 0 to 1"),
        ([(0, n) for n in range(30)] + [(1, n) for n in range(20)], "all 50 records"),
    ],
)
def test_what_names_no_records_of_a_mixture_is_refused(skip, words):
    with pytest.raises(ValueError, match=words):
        numbers_of(skip, source_of("mixture", points(N)))


def test_records_without_numbers_are_refused():
    rows = datasets.Dataset.from_dict(points(N)).to_iterable_dataset()
    stream = HFStreamingSource.from_dataset(rows, name="texts")
    for source in (stream, MixedSource([memory(points(N)), stream], [1, 1])):
        mixed = "source 1 of the mixture, " * (source is not stream)
        one = Trainer(MLP(), source, loss=loss, steps=2, batch_size=SIZE)
        words = f"{mixed}texts, is a HFStreamingSource.*in order.*HFIndexedSource"
        with pytest.raises(ValueError, match=rf"records_at\(steps\) needs.*{words}"):
            one.records_at([0])
        with pytest.raises(ValueError, match=rf"skip= needs records with numbers.*{words}"):
            Trainer(MLP(), source, loss=loss, steps=2, batch_size=SIZE, skip=[3])
    with pytest.raises(ValueError, match="steps=-1"):
        trainer().records_at([-1])
