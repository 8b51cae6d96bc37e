"""Inference of loss, metrics and inputs from the features, and its errors."""

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from datarax import HFEagerSource, Pipeline
from tests.support.models import CNN, MLP, Language, images, labelled, memory, points
from trainers import Trainer

pytestmark = pytest.mark.usefixtures("compiled_once")

RNGS = nnx.Rngs(0)


def dataset(features=None, **columns):
    """Returns a source of a real `datasets.Dataset` in stored order."""
    if features is not None:
        features = datasets.Features(features)
    return HFEagerSource.from_dataset(datasets.Dataset.from_dict(columns, features=features))


def evaluated(model, source):
    """Returns what the inferred task measures of a model."""
    return Trainer(model, source, batch_size=8).evaluate(source)


def assert_measures(model, source, **expected):
    """Asserts what the inferred task measures of a model."""
    measured = evaluated(model, source)
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(float(value), rel=1e-5), name


# --- what is inferred ----------------------------------------------------------------------------


def test_a_class_label_gives_cross_entropy_and_accuracy():
    source, model = labelled(21, shuffle=False), MLP()
    logits, labels = model(source.data["x"]), source.data["label"]
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    accuracy = (logits.argmax(-1) == labels).mean()
    assert_measures(model, source, loss=expected, accuracy=accuracy)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_an_integer_label_is_a_class(dtype):
    data = points(10, classes=2)
    source = memory({"x": data["x"], "label": data["label"].astype(dtype)})
    assert evaluated(MLP(classes=2), source).keys() == {"loss", "accuracy"}


def test_a_list_of_class_labels_is_one_yes_or_no_a_class():
    classes = datasets.ClassLabel(names=["a", "b", "c"])
    features = {
        "x": datasets.List(datasets.Value("float32"), length=4),
        "label": datasets.List(classes, length=2),
    }
    numbers = [[0, 2], [1, 1], [2, 2]]
    source = dataset(features, x=points(3)["x"].tolist(), label=numbers)
    model = MLP()
    indicators = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]])
    logits = model(source.data["x"])
    expected = optax.sigmoid_binary_cross_entropy(logits, indicators).mean()
    accuracy = ((logits > 0) == indicators).mean()
    assert_measures(model, source, loss=expected, accuracy=accuracy)

    features["label"] = datasets.List(datasets.ClassLabel(names=["no", "yes"]), length=3)
    source = dataset(features, x=points(3)["x"].tolist(), label=indicators.tolist())
    assert_measures(model, source, loss=expected, accuracy=accuracy)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_float_label_gives_squared_error(outputs):
    x = points(10)["x"]
    target = x[:, 0] if outputs == 1 else x[:, :outputs]
    source, model = memory({"x": x, "target": target}), MLP(classes=outputs)
    expected = np.mean(np.square(np.asarray(model(x)).reshape(target.shape) - target))
    assert_measures(model, source, loss=expected)


class Classifier(nnx.Module):
    """Classifies tokens under a mask."""

    def __init__(self):
        self.embed = nnx.Embed(11, 3, rngs=nnx.Rngs(0))

    def __call__(self, input_ids, attention_mask):
        weight = attention_mask[..., None].astype(jnp.float32)
        return (self.embed(input_ids) * weight).sum(1) / weight.sum(1)


def _tokens(n=9, length=6):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, length, n)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return {"input_ids": rng.integers(0, 11, (n, length)) * mask, "attention_mask": mask}


def test_tokens_and_mask_reach_the_model_by_name():
    tokens = _tokens()
    data = {**tokens, "token_type_ids": 0 * tokens["input_ids"], "label": np.arange(9) % 3}
    model = Classifier()
    logits = model(tokens["input_ids"], tokens["attention_mask"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["label"])
    accuracy = (logits.argmax(-1) == data["label"]).mean()
    assert_measures(model, memory(data), loss=losses.mean(), accuracy=accuracy)
    source = dataset(None, **{name: c.tolist() for name, c in data.items()})
    assert_measures(model, source, loss=losses.mean(), accuracy=accuracy)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_tokens_without_a_label_give_next_token_loss_under_the_mask(dtype):
    tokens, model = _tokens(), Language()
    data = {
        "input_ids": tokens["input_ids"].astype(dtype),
        "attention_mask": tokens["attention_mask"],
    }
    logits, targets = model(tokens["input_ids"])[:, :-1], tokens["input_ids"][:, 1:]
    weight = tokens["attention_mask"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = logits.argmax(-1) == targets
    loss, accuracy = ((x * weight).sum() / weight.sum() for x in (losses, right))
    means = {"loss": loss, "accuracy": accuracy, "perplexity": jnp.exp(loss)}
    assert_measures(model, memory(data), **means)
    whole = memory({"input_ids": data["input_ids"]})
    means = {"loss": losses.mean(), "perplexity": jnp.exp(losses.mean())}
    assert_measures(model, whole, **means, accuracy=right.mean())


class Seeing(nnx.Module):
    """Notes what it is called with."""

    def __init__(self, inner):
        self.inner = inner
        self.seen = nnx.static([])

    def __call__(self, image):
        self.seen.append(jax.typeof(image).str_short())
        return self.inner(image)


@pytest.mark.parametrize("channels", [(), (1,)])
def test_images_reach_the_model_as_floats_with_channels(channels):
    data = images()
    data["image"] = data["image"].reshape(*data["image"].shape, *channels)
    model = Seeing(CNN())
    trainer = Trainer(model, memory(data), batch_size=20)
    logits = trainer.predict(memory(data))
    assert model.seen == ["float32[20,6,6,1]"]
    model.inner.eval()
    expected = model.inner(data["image"].reshape(20, 6, 6, 1).astype(np.float32) / 255)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


class Two(nnx.Module):
    """Takes two inputs by name and an option that is no column."""

    def __init__(self):
        self.mlp = MLP(features=4)

    def __call__(self, a, b, *, scale=1.0):
        return scale * self.mlp(a - b)


def test_several_inputs_are_matched_by_name_whatever_their_order():
    a, b, label = points(9)["x"], points(9, seed=1)["x"], points(9)["label"]
    model = Two()
    one = evaluated(model, memory({"a": a, "b": b, "unused": label, "label": label}))
    other = evaluated(model, memory({"b": b, "label": label, "a": a}))
    assert one == other


def test_text_beside_an_input_array_rides_along():
    data = points(10)
    source = dataset(None, name=["n"] * 10, x=data["x"].tolist(), label=data["label"].tolist())
    assert evaluated(MLP(), source)["loss"] > 0


# --- errors --------------------------------------------------------------------------------------


def _columns(**columns):
    return memory({"x": points(10)["x"], **columns})


INTEGERS = np.arange(10) % 3


class Uncallable(nnx.Module):
    pass


class Textual(nnx.Module):
    def __call__(self, text):
        return text


@pytest.mark.parametrize(
    ("model", "source", "error", "message"),
    [
        (MLP(), _columns(), ValueError, "no label among x: .*Rename the column, or write loss="),
        (
            MLP(),
            _columns(label=INTEGERS, target=INTEGERS),
            ValueError,
            "Which of 'label', 'target' is the label.*exclude_keys",
        ),
        (
            MLP(),
            _columns(label=np.zeros((10, 5), np.int32)),
            ValueError,
            r"shape \(5,\) a record.*write loss=",
        ),
        (Two(), _columns(label=INTEGERS), ValueError, "takes 'a', 'b', and the inputs are 'x'"),
        (
            MLP(),
            memory({"a": INTEGERS, "b": INTEGERS, "label": INTEGERS}),
            ValueError,
            "takes 'x', and the inputs are 'a', 'b'.*include_keys",
        ),
        (
            nnx.Sequential(nnx.Linear(4, 3, rngs=RNGS)),
            _columns(label=INTEGERS, other=INTEGERS),
            ValueError,
            "takes any inputs, and the inputs are 'other', 'x'",
        ),
        (MLP(), memory({"label": INTEGERS}), ValueError, "no input beside the label 'label'"),
        (Uncallable(), _columns(label=INTEGERS), TypeError, "Uncallable has no __call__"),
        (
            Textual(),
            dataset(None, text=["a", "b"], label=[0, 1]),
            TypeError,
            "column 'text' is no JAX array: row 0",
        ),
        (
            MLP(),
            dataset(None, sentence=["a", "b"], idx=[0, 1], label=[0, 1]),
            TypeError,
            "column 'sentence' is no JAX array: row 0",
        ),
        (
            MLP(),
            dataset(None, x=[[0.0], [1.0]], label=["pos", "neg"]),
            TypeError,
            "column 'label' is no JAX array: row 0",
        ),
        (
            Language(),
            dataset(None, input_ids=[[1, 2], [3]]),
            TypeError,
            "column 'input_ids' is no JAX array: row 1",
        ),
    ],
)
def test_what_cannot_be_inferred_is_an_error_when_the_trainer_is_made(
    model, source, error, message
):
    with pytest.raises(error, match=message):
        Trainer(model, source)


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        (
            MLP(classes=2),
            labelled(),
            r"logits of shape \(batch, 2\), but 'label' needs \(batch, 3\): give .* 3 outputs",
        ),
        (
            nnx.Linear(4, 3, rngs=RNGS),
            _columns(target=np.zeros(10, np.float32)),
            r"returns \(batch, 3\), but 'target' has shape \(batch,\)",
        ),
        (
            MLP(classes=2),
            _columns(label=INTEGERS),
            "'label' holds 0 to 2, but the model's 2 logits",
        ),
        (MLP(), _columns(label=INTEGERS - 1), "'label' holds -1 to 1.*without a label"),
        (MLP(), _columns(label=0 * INTEGERS - 1), "'label' holds -1 to -1"),
        (
            Language(vocabulary=5),
            memory({"input_ids": np.arange(12).reshape(4, 3)}),
            "'input_ids' holds 0 to 11, but the model's 5 logits",
        ),
        (
            MLP(),
            memory({"input_ids": np.ones((10, 4), np.float32)}),
            r"logits of shape \(batch, 3\), but next-token",
        ),
    ],
)
def test_what_does_not_fit_the_logits_is_an_error_before_anything_is_compiled(
    model, source, message, caplog
):
    trainer = Trainer(model, source, batch_size=8)
    with jax.log_compiles(), caplog.at_level("WARNING"), pytest.raises(ValueError, match=message):
        trainer.fit()
    compiled = [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]
    assert not [line for line in compiled if "step" in line or "chunk" in line]


def test_labels_of_the_eval_source_are_checked_too():
    trainer = Trainer(
        MLP(), _columns(label=INTEGERS), eval_source=_columns(label=np.full(10, -1)), batch_size=8
    )
    with pytest.raises(ValueError, match="'label' holds -1 to -1"):
        trainer.fit()
    with pytest.raises(ValueError, match="'label' holds 0 to 9, but the model's 3 logits"):
        trainer.evaluate(_columns(label=np.arange(10)))


def test_labels_that_a_stage_changes_are_its_own_business():
    pipeline = Pipeline(
        source=_columns(label=INTEGERS + 100),
        stages=[lambda batch: {**batch, "label": batch["label"] - 100}],
        batch_size=8,
    )
    assert Trainer(MLP(), pipeline).fit().status == "finished"


def test_a_class_label_that_a_stage_makes_shares_of_is_softmax_cross_entropy():
    def smooth(batch):
        soft = 0.9 * jax.nn.one_hot(batch["label"], 3) + 0.1 / 3
        return {"x": batch["x"], "label": soft}

    source = labelled(20)
    pipeline = Pipeline(source=source, stages=[smooth], batch_size=20)
    result = Trainer(MLP(), pipeline, steps=1, eval_source=labelled(20)).fit()
    batch = source.get_batch(20)
    logp = jax.nn.log_softmax(MLP()(batch["x"]))
    soft = smooth(batch)["label"]
    assert result.metrics["train/loss"] == pytest.approx(
        float(-(soft * logp).sum(1).mean()), rel=1e-5
    )
    right = float((logp.argmax(1) == batch["label"]).mean())
    assert result.metrics["train/accuracy"] == pytest.approx(right)
    assert "eval/accuracy" in result.metrics
