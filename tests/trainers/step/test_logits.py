"""A language model's logits: computed in slices where they are large, with the same result."""

import numpy as np
import optax
import pytest
from flax import nnx

from datarax.tokens import Packer
from tests.support.models import Decoder, assert_close, assert_same, memory
from trainers import Trainer
from trainers.loop import program
from trainers.step import logits

pytestmark = pytest.mark.usefixtures("compiled_once")


def packed(vocabulary, rows, length):
    """Returns a source of packed rows, and a fraction of its tokens that does not count."""
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, vocabulary, n) for n in rng.integers(2, length, 4 * rows)]
    weights = [rng.integers(0, 2, len(doc)) for doc in docs]
    found = Packer(length)({"input_ids": docs, "weights": weights})
    return memory({name: column[:rows] for name, column in found.items()})


def whole(model, batch):
    """The inferred loss as one's own, which no slices are made of."""
    tokens, segments = batch["input_ids"], batch["segment_ids"]
    scores = model(tokens, segments, batch["positions"])[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, tokens[:, 1:])
    weight = batch["weights"][:, 1:] * (segments[:, 1:] == segments[:, :-1])
    weight *= segments[:, 1:] > 0
    return losses, {"weight": weight, "logits": scores, "labels": tokens[:, 1:]}


class Normed(Decoder):
    """Its rows see each other: BatchNorm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = nnx.BatchNorm(self.embed.features, rngs=nnx.Rngs(0))

    def __call__(self, tokens, segment_ids, positions):
        self.norm(self.embed(tokens))
        return super().__call__(tokens, segment_ids, positions)


class Dropped(Decoder):
    """Its random streams count its calls."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))

    def __call__(self, tokens, segment_ids, positions):
        return self.dropout(super().__call__(tokens, segment_ids, positions))


class Drawing(Decoder):
    """Is given random streams."""

    def __call__(self, tokens, segment_ids, positions, rngs=None):
        return super().__call__(tokens, segment_ids, positions)


def trainer(model, source, **settings):
    return Trainer(model, source, **{"batch_size": 8, "steps": 2, "log_every": 1, **settings})


@pytest.fixture
def small(monkeypatch):
    """Takes logits of more than 4 KiB for large ones."""
    monkeypatch.setattr(logits, "LARGEST", 2**12)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_large_logits_are_computed_in_slices_with_the_same_loss_and_gradient(accumulate):
    source, optimizer = packed(100, 24, 13), optax.sgd(1.0)
    settings = {"optimizer": optimizer, "eval_source": source, "accumulate": accumulate}
    run = trainer(Decoder(100, 13), source, **settings)
    rows = 8 // accumulate
    size = f"{38.4 / accumulate:.3g} kB for {rows} rows, 4.8 kB at once"
    assert f"logits    {size}: computed in {rows} slices" in str(run.preflight())
    result = run.fit()
    plain = trainer(Decoder(100, 13), source, loss=whole, optimizer=optimizer)
    want = plain.fit()
    assert plain.preflight().logits is None
    for one, other in zip(result.history, want.history, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-6)
        assert one["train/accuracy"] == other["train/accuracy"]
        assert one["tokens_seen"] == other["tokens_seen"]
    assert_close(result.model, want.model, rtol=1e-5, atol=1e-6)
    loss = plain.evaluate(source)["loss"]
    assert result.metrics["eval/loss"] == pytest.approx(loss, rel=1e-6)
    assert result.metrics["eval/perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.slow
def test_slices_keep_the_bits_however_the_steps_are_divided(tmp_path):
    source, models = packed(100, 24, 13), [Decoder(100, 13) for _ in range(3)]
    trainer(models[0], source, steps=5, log_every=5).fit()
    trainer(models[1], source, steps=5).fit()
    trainer(Decoder(100, 13), source, steps=2, workdir=tmp_path).fit()
    trainer(models[2], source, steps=5, workdir=tmp_path).fit()
    assert_same(models[1], models[0])
    assert_same(models[2], models[0])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", [Normed, Dropped, Drawing])
def test_rows_that_see_each_other_or_draw_stay_together(kind):
    run = trainer(kind(100, 13), packed(100, 8, 13))
    assert str(program.logits(run._plan)) == "38.4 kB for 8 rows at once"


def test_the_number_of_slices_divides_the_rows_and_is_at_most_eight(monkeypatch):
    def slices(batch_size, largest):
        monkeypatch.setattr(logits, "LARGEST", largest)
        run = trainer(Decoder(100, 13), packed(100, batch_size, 13), batch_size=batch_size)
        return program.logits(run._plan).slices

    row = 4 * 12 * 100
    assert slices(8, 8 * row) == 1
    assert slices(8, 8 * row - 1) == 2
    assert slices(12, 5 * row) == 3
    assert slices(16, row) == 8
    assert slices(13, row) == 1
    # The gradient of 61 kB would be held twice to hold less of 38 kB of logits.
    monkeypatch.setattr(logits, "LARGEST", row)
    wide = trainer(Decoder(100, 13, width=64), packed(100, 8, 13))
    assert program.logits(wide._plan).slices == 1


@pytest.mark.slow
def test_memory_and_gradients_at_a_vocabulary_of_32_thousand():
    source, optimizer = packed(2**15, 8, 512), optax.sgd(1.0)
    runs = [
        trainer(Decoder(2**15, 512), source, steps=1, optimizer=optimizer, **own)
        for own in ({}, {"loss": whole})
    ]
    needed, plain = (run.preflight().step_bytes for run in runs)
    assert needed <= 0.4 * plain
    found, want = (run.fit() for run in runs)
    assert found.metrics["train/loss"] == pytest.approx(want.metrics["train/loss"], rel=1e-6)
    assert_close(found.model, want.model, rtol=1e-5, atol=1e-6)
