"""Llama (https://arxiv.org/abs/2302.13971), as `transformers` has it."""

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx

NAMES = [
    (r"^model\.", ""),
    (r"rotary_emb\.inv_freq$", None),
    (r"^embed_tokens\.weight$", "word.embedding"),
    (r"^lm_head", "head"),
    (r"self_attn\.q_proj", "query"),
    (r"self_attn\.k_proj", "key"),
    (r"self_attn\.v_proj", "value"),
    (r"self_attn\.o_proj", "out"),
    (r"mlp\.(gate|up|down)_proj", r"\1"),
    (r"input_layernorm", "norm1"),
    (r"post_attention_layernorm", "norm2"),
    (r"(norm\d?)\.weight$", r"\1.scale"),
    (r"\.weight$", ".kernel", np.transpose),
]
"""From the names of `transformers.LlamaForCausalLM` to those of `Llama`."""


def rotated(x: jax.Array, base: float) -> jax.Array:
    """Turns pairs of numbers by an angle that grows with the token's position.

    Rotary embedding (https://arxiv.org/abs/2104.09864); number `i` and number `i + size / 2` are a
    pair, and turn by `position * base ** (-2 i / size)`.

    Args:
        x: `(batch, length, heads, size)`.
        base: The base of the angles, 10,000 in Llama 2.
    """
    half = x.shape[-1] // 2
    speed = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (jnp.arange(x.shape[1])[:, None] * speed)[None, :, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Layer(nnx.Module):
    """Causal attention and a gated multilayer perceptron, each added to its input.

    Args:
        config: The sizes.
        rngs: Stream `params`.
    """

    def __init__(self, config: transformers.LlamaConfig, *, rngs: nnx.Rngs):
        width, hidden = config.hidden_size, config.intermediate_size
        self.size, self.base = config.head_dim, config.rope_parameters["rope_theta"]
        queries, keys = (
            self.size * heads for heads in (config.num_attention_heads, config.num_key_value_heads)
        )

        def linear(inputs, outputs):
            return nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)

        self.query, self.out = linear(width, queries), linear(queries, width)
        self.key, self.value = linear(width, keys), linear(width, keys)
        self.gate, self.up, self.down = (
            linear(width, hidden),
            linear(width, hidden),
            linear(hidden, width),
        )
        self.norm1, self.norm2 = (
            nnx.RMSNorm(width, epsilon=config.rms_norm_eps, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        normed = self.norm1(x)

        def by_head(layer):
            return layer(normed).reshape(*x.shape[:2], -1, self.size)

        query, key = (rotated(by_head(layer), self.base) for layer in (self.query, self.key))
        value = by_head(self.value)
        attended = jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=True)
        x = x + self.out(attended.reshape(*x.shape[:2], -1))
        normed = self.norm2(x)
        return x + self.down(nnx.silu(self.gate(normed)) * self.up(normed))


class Llama(nnx.Module):
    """A decoder-only transformer.

    Args:
        config: The sizes; the rotary embedding must be the plain one.
        rngs: Stream `params`.

    Raises:
        ValueError: If the rotary embedding is scaled.
    """

    def __init__(self, config: transformers.LlamaConfig, *, rngs: nnx.Rngs):
        if config.rope_parameters["rope_type"] != "default":
            raise ValueError(
                f"rope_parameters={config.rope_parameters}: this Llama has the rotary embedding of "
                "the first two versions only, with the rope_type default."
            )
        width, words = config.hidden_size, config.vocab_size
        self.word = nnx.Embed(words, width, rngs=rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = nnx.RMSNorm(width, epsilon=config.rms_norm_eps, rngs=rngs)
        if not config.tie_word_embeddings:
            self.head = nnx.Linear(width, words, use_bias=False, rngs=rngs)
        self.is_tied = config.tie_word_embeddings

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        x, mask = self.word(input_ids), attention_mask[:, None, None, :].astype(bool)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        return self.word.attend(x) if self.is_tied else self.head(x)
