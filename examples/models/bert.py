"""BERT for classification (https://arxiv.org/abs/1810.04805), as `transformers` has it."""

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx

NAMES = [
    (r"^bert\.", ""),
    (r"\.position_ids$", None),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # as bert-base-uncased and others of its age
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.(\w+)_embeddings\.weight$", r"\1.embedding"),
    (r"^embeddings\.LayerNorm", "norm"),
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense", "out"),
    (r"attention\.output\.LayerNorm", "norm1"),
    (r"intermediate\.dense", "up"),
    (r"output\.dense", "down"),
    (r"output\.LayerNorm", "norm2"),
    (r"pooler\.dense", "pooler"),
    (r"(norm\d?)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel", np.transpose),
]
"""From the names of `transformers.BertForSequenceClassification` to those of `Bert`."""


class Layer(nnx.Module):
    """Attention and a multilayer perceptron, each added to its input and normalised.

    Args:
        config: The sizes.
        rngs: Stream `params`.
    """

    def __init__(self, config: transformers.BertConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value, self.out = (
            nnx.Linear(width, width, rngs=rngs) for _ in range(4)
        )
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.norm1, self.norm2 = (
            nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        def by_head(layer):
            return layer(x).reshape(*x.shape[:2], self.heads, -1)

        parts = by_head(self.query), by_head(self.key), by_head(self.value)
        attended = jax.nn.dot_product_attention(*parts, mask=mask)
        x = self.norm1(x + self.out(attended.reshape(x.shape)))
        return self.norm2(x + self.down(nnx.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """An encoder with a linear layer on what it makes of the first token.

    Args:
        config: The sizes.
        rngs: Stream `params`.
    """

    def __init__(self, config: transformers.BertConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.word = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.token_type = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.pooler = nnx.Linear(width, width, rngs=rngs)
        self.classifier = nnx.Linear(width, config.num_labels, rngs=rngs)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        places = jnp.arange(input_ids.shape[1])
        first_text = self.token_type(jnp.zeros_like(input_ids))
        x = self.norm(self.word(input_ids) + self.position(places) + first_text)
        mask = attention_mask[:, None, None, :].astype(bool)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(jnp.tanh(self.pooler(x[:, 0])))
