"""Losses: `loss(model, batch) -> losses | (losses, outputs)`, one loss a record or a token.

A loss never averages: the trainer divides the weighted sum over the whole step by the sum of the
weights, so that accumulation, padding and any number of devices give the same gradient. A mean of
means does not.
"""

import jax
import jax.numpy as jnp
import optax


def softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of integer classes.

    Args:
        logits: `(..., classes)` floats.
        labels: `(...)` integers in `[0, classes)`.

    Returns:
        `(...)` float32, in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)


def soft_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of shares of the classes.

    Args:
        logits: `(..., classes)` floats.
        labels: `(..., classes)` floats that sum up to 1.

    Returns:
        `(...)` float32, in nats.
    """
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of independent binary labels, averaged over a record's classes.

    Args:
        logits: `(batch, classes)` floats.
        labels: `(batch, classes)` of 0 and 1.

    Returns:
        `(batch,)` float32, in nats.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    return losses.mean(axis=-1)


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the squared error, averaged over a record's values.

    Args:
        predictions: `(batch, ...)` floats.
        targets: `(batch, ...)` floats.

    Returns:
        `(batch,)` float32.
    """
    error = jnp.square(predictions.astype(jnp.float32) - targets)
    return error.reshape(len(error), -1).mean(axis=-1)


def next_token(logits: jax.Array, tokens: jax.Array, mask: jax.Array | None):
    """Returns the cross-entropy of each token given those before it, and its weight.

    Args:
        logits: `(batch, length, vocabulary)` floats; position `i` predicts token `i + 1`.
        tokens: `(batch, length)` integers.
        mask: `(batch, length)`, 1 where there is a token and 0 where there is padding, or None.

    Returns:
        Losses `(batch, length - 1)` in nats, and weights of the same shape.
    """
    losses = softmax_cross_entropy(logits[:, :-1], tokens[:, 1:])
    weight = jnp.ones_like(losses) if mask is None else mask[:, 1:].astype(losses.dtype)
    return losses, weight
