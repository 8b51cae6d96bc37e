"""The tokens that a model has an embedding for."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx


@contextlib.contextmanager
def embedding(model: nnx.Module, tokens: jax.Array | None) -> Iterator[list[int]]:
    """Lists the sizes of each `nnx.Embed` that is called with `tokens` themselves, while traced.

    Args:
        model: The model.
        tokens: What it is called with; None: nothing is listed.
    """
    found: list[int] = []

    def watched(kind: Any) -> Any:
        def call(self, inputs: jax.Array) -> jax.Array:
            if inputs is tokens:
                found.append(self.num_embeddings)
            return kind.__call__(self, inputs)

        return type(kind)(kind.__name__, (kind,), {"__call__": call})

    modules = [module for _, module in nnx.iter_modules(model) if isinstance(module, nnx.Embed)]
    kinds = [type(module) for module in modules]
    try:
        for module, kind in zip(modules, kinds, strict=True):
            if tokens is not None:
                object.__setattr__(module, "__class__", watched(kind))
        yield found
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            object.__setattr__(module, "__class__", kind)


def expect_embedded(extent: tuple[int, int], sizes: list[int]) -> None:
    """Raises where a token has no embedding, which JAX would read as NaN.

    Args:
        extent: The least and the greatest token of `input_ids`.
        sizes: Numbers of tokens of the embeddings.

    Raises:
        ValueError: If a token is negative, or an embedding has too few.
    """
    if sizes and not 0 <= extent[0] <= extent[1] < min(sizes):
        raise ValueError(
            f"Column 'input_ids' holds {extent[0]} to {extent[1]}, but the model's nnx.Embed has "
            f"the tokens 0 to {min(sizes) - 1}: give it as many as the tokenizer has, "
            "nnx.Embed(len(tokenizer), ...)."
        )
