"""Language models on packed rows: documents do not see each other, and each token counts once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax.tokens import Packer
from tests.support.models import Decoder, Language, assert_close, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")

SETTINGS = {"batch_size": 4, "steps": 1, "optimizer": optax.sgd(1.0)}


def documents(count=6, longest=8):
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 11, n).tolist() for n in rng.integers(2, longest + 1, count)]
    weights = [rng.integers(0, 2, len(doc)).astype(float).tolist() for doc in docs]
    return {"input_ids": docs, "weights": weights}


def alone(docs, length=8):
    """Packs each document into a row of its own."""
    rows = [
        Packer(length)({name: [column[i]] for name, column in docs.items()})
        for i in range(len(docs["input_ids"]))
    ]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_packed_documents_have_the_loss_and_the_gradient_of_each_alone(weighted):
    docs = documents()
    if not weighted:
        del docs["weights"]
    packed, single = Packer(8)(docs), alone(docs)
    assert len(packed["input_ids"]) < len(single["input_ids"])

    @nnx.jit
    @nnx.value_and_grad
    def plain(model):
        """The mean over all documents' tokens, each document computed by itself."""
        total = weight = 0.0
        for i, doc in enumerate(docs["input_ids"]):
            tokens = jnp.array([doc])
            logits = model(tokens, jnp.ones_like(tokens), jnp.arange(len(doc))[None])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
            counts = jnp.array(docs["weights"][i][1:]) if weighted else jnp.ones(len(doc) - 1)
            total, weight = total + (losses[0] * counts).sum(), weight + counts.sum()
        return total / weight

    want, gradient = plain(Decoder())
    for rows in (packed, single):
        size = len(rows["input_ids"])
        model = Decoder()
        result = Trainer(model, memory(rows), **{**SETTINGS, "batch_size": size}).fit()
        assert result.metrics["train/loss"] == pytest.approx(float(want), rel=1e-5)
        assert result.metrics["train/perplexity"] == pytest.approx(float(np.exp(want)), rel=1e-5)
        moved = jax.tree.map(jnp.subtract, nnx.state(Decoder()), nnx.state(model))
        assert_close(moved, gradient, rtol=1e-5, atol=1e-6)


def test_a_model_that_takes_no_segments_is_trained_without_and_that_is_said_once(caplog):
    rows = memory(Packer(8)(documents()))
    trainer = Trainer(Language(), rows, eval_source=rows, **SETTINGS)
    assert trainer.fit().status == "finished"
    trainer.predict(rows)
    said = [r for r in caplog.records if "segment_ids" in r.getMessage()]
    assert len(said) == 1
    assert "which Language does not take" in said[0].getMessage()
    Trainer(Decoder(), rows, **SETTINGS).fit()
    assert len([r for r in caplog.records if "segment_ids" in r.getMessage()]) == 1


def test_evaluation_reports_loss_perplexity_and_accuracy_of_the_tokens_that_count():
    rows = Packer(8)(documents())
    model, source = Decoder(), memory(rows)
    logits = model(*(jnp.array(rows[name]) for name in ("input_ids", "segment_ids", "positions")))
    targets, segments = rows["input_ids"][:, 1:], rows["segment_ids"]
    counts = rows["weights"][:, 1:] * (segments[:, 1:] == segments[:, :-1]) * (segments[:, 1:] > 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], targets)
    right = np.asarray(logits[:, :-1].argmax(-1)) == targets
    loss, accuracy = (float((x * counts).sum() / counts.sum()) for x in (losses, right))
    found = Trainer(model, source, batch_size=3).evaluate(source)
    want = {"loss": loss, "accuracy": accuracy, "perplexity": np.exp(loss)}
    assert found == pytest.approx(want, rel=1e-5)


class Classifier(nnx.Module):
    """Takes the mean of its tokens' embeddings, and nothing else of a batch."""

    def __init__(self):
        self.embed = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
        self.scale = nnx.Embed(100, 3, rngs=nnx.Rngs(0))  # of something else

    def __call__(self, input_ids):
        return (self.embed(input_ids) + self.scale(jnp.arange(input_ids.shape[1]))).mean(1)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.arange(12).reshape(4, 3), "'input_ids' holds 0 to 11, but .* nnx.Embed has .* 0 to 4"),
        (np.arange(12).reshape(4, 3) % 5 - 1, "'input_ids' holds -1 to 3, .*nnx.Embed"),
    ],
)
def test_tokens_without_an_embedding_are_an_error_before_anything_is_compiled(
    tokens, words, caplog
):
    data = {"input_ids": tokens, "label": points(4)["label"]}
    trainer = Trainer(Classifier(), memory(data), **SETTINGS)
    with jax.log_compiles(), caplog.at_level("WARNING"), pytest.raises(ValueError, match=words):
        trainer.fit()
    assert not [r for r in caplog.records if "chunk" in r.getMessage()]
    data["input_ids"] = tokens % 5
    assert Trainer(Classifier(), memory(data), **SETTINGS).fit().status == "finished"


def test_documents_without_tokens_leave_no_row_and_change_nothing():
    docs = documents()
    del docs["weights"]
    with_empty = {"input_ids": [[], *docs["input_ids"][:4], [], *docs["input_ids"][4:]]}
    for name, rows in Packer(8)(docs).items():
        np.testing.assert_array_equal(Packer(8)(with_empty)[name], rows)
