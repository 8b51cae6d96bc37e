"""Small models and data that the trainer's tests share."""

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from datarax import HFEagerSource, MemorySource, MemorySourceConfig


class MLP(nnx.Module):
    """Two layers whose rows do not see each other."""

    def __init__(self, features=4, classes=3, *, seed=0):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.Linear(features, 8, rngs=rngs)
        self.out = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


class Normed(nnx.Module):
    """BatchNorm, Dropout with a stream of its own, and a layer that counts its calls."""

    def __init__(self, features=4, classes=3, *, seed=0):
        rngs = nnx.Rngs(params=seed, dropout=seed + 1, noise=seed + 2)
        self.hidden = nnx.Linear(features, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(8, classes, rngs=rngs)
        self.rngs = rngs
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        self.calls[...] += 1
        x = self.dropout(nnx.relu(self.norm(self.hidden(x))))
        if not self.dropout.deterministic:
            x += 0.01 * jax.random.normal(self.rngs.noise(), x.shape)
        return self.out(x)


class CNN(nnx.Module):
    """One convolution, BatchNorm and Dropout."""

    def __init__(self, classes=3, *, seed=0):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, image):
        x = nnx.relu(self.norm(self.conv(image)))
        return self.out(self.dropout(x.mean(axis=(1, 2))))


class Language(nnx.Module):
    """An embedding, a mean over the tokens so far, and a layer back to the vocabulary."""

    def __init__(self, vocabulary=11, *, seed=0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(vocabulary, 6, rngs=rngs)
        self.out = nnx.Linear(6, vocabulary, rngs=rngs)

    def __call__(self, tokens):
        x = jnp.cumsum(self.embed(tokens), axis=1)
        return self.out(x / jnp.arange(1, tokens.shape[1] + 1)[None, :, None])


class Decoder(nnx.Module):
    """A block of causal attention within segments, and a layer back to the vocabulary."""

    def __init__(self, vocabulary=11, length=8, width=8, *, seed=0):
        rngs = nnx.Rngs(seed)
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(length, width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, vocabulary, rngs=rngs)

    def __call__(self, tokens, segment_ids, positions):
        x = self.embed(tokens) + self.places(positions)
        q, k, v = jnp.split(self.qkv(x)[:, :, None], 3, axis=-1)  # one head
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        x = x + jax.nn.dot_product_attention(q, k, v, mask=same, is_causal=True)[:, :, 0]
        return self.out(jax.nn.gelu(self.up(x)))


class Traced(nnx.Module):
    """Counts how often it is traced, in training and in evaluation.

    Args:
        inner: The model that does the work.
    """

    def __init__(self, inner):
        self.inner = inner
        self.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(9))
        self.counts = nnx.static(Counts())

    def __call__(self, x):
        if self.dropout.deterministic:
            self.counts.evaluation += 1
        else:
            self.counts.training += 1
        return self.inner(x)


class Diary(nnx.Module):
    """Writes down the records of each step's batch, in its own state.

    Args:
        inner: The model that does the work.
        steps: Number of steps it has room for.
        batch_size: Records in a batch.
    """

    def __init__(self, inner, steps, batch_size):
        self.inner = inner
        self.records = nnx.Variable(jnp.full((steps, batch_size), -1, jnp.int32))
        self.step = nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        return self.inner(x)

    def write(self, records):
        """Writes down the records of the next step."""
        self.records[...] = self.records[...].at[self.step[...]].set(records)
        self.step[...] += 1


def noted_loss(model, batch):
    """Cross-entropy of a `Diary`, which writes down the batch's records."""
    model.write(batch["id"])
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


class Counts:
    """Numbers of traces; the same object in every clone of a model."""

    def __init__(self):
        self.training = self.evaluation = 0

    def __deepcopy__(self, memo):
        return self


def points(n=50, *, features=4, classes=3, seed=0):
    """Returns `x` float32 `(n, features)`, `label` int32 `(n,)` and `id` int32 `(n,)`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(n, features)).astype(np.float32),
        "label": rng.integers(0, classes, n).astype(np.int32),
        "id": np.arange(n, dtype=np.int32),
    }


def memory(data, *, shuffle=False, seed=7):
    """Returns a source of a dict of arrays."""
    return MemorySource(MemorySourceConfig(shuffle=shuffle, seed=seed), data)


def labelled(n=50, *, shuffle=False, features=4, classes=3, seed=0):
    """Returns a Hugging Face source of `x` and a `label` that is a `ClassLabel`."""
    data = points(n, features=features, classes=classes, seed=seed)
    columns = datasets.Features(
        {
            "x": datasets.List(datasets.Value("float32"), length=features),
            "label": datasets.ClassLabel(names=[f"c{i}" for i in range(classes)]),
        }
    )
    dataset = datasets.Dataset.from_dict(
        {"x": data["x"].tolist(), "label": data["label"].tolist()}, features=columns
    )
    return HFEagerSource.from_dataset(dataset, shuffle=shuffle, seed=7)


def called(model, batch):
    """Returns a model's outputs, as the second argument of `predict`."""
    return model(batch["x"])


def images(n=20, *, classes=3, seed=0):
    """Returns `image` uint8 `(n, 6, 6)` and `label` int32 `(n,)`."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, 6, 6)).astype(np.uint8),
        "label": rng.integers(0, classes, n).astype(np.int32),
    }


def arrays(tree):
    """Returns the leaves of a model or a state as NumPy arrays, keys as their words, by path."""
    state = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    return {
        jax.tree_util.keystr(path): np.asarray(_words(leaf))
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def assert_same(one, other):
    """Asserts that two models or states are bit-identical."""
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def assert_close(one, other, *, rtol=2e-5, atol=1e-6):
    """Asserts that two models or states agree to the rounding of float32."""
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], rtol=rtol, atol=atol, err_msg=path)


def _words(leaf):
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
