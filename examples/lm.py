"""A small language model on a stream of text.

    python examples/lm.py                                    # stanfordnlp/imdb from the Hub
    python examples/lm.py --dataset roneneldan/TinyStories   # any other, of any size
    python examples/lm.py --dataset path/to/text --workdir runs/lm

Loss to expect on held-out reviews of IMDB: 5.27 nats a token, which is 2.35 bits a byte, in two
minutes on two CPU cores; with --steps 1000, 4.82 nats or 2.15 bits in twice the time.

Nothing is downloaded beforehand: documents are read, tokenised, cut into rows and shuffled while
the model trains. The tokenizer is trained on the first thousand of them. With --workdir the same
command goes on at the row where the last one ended.
"""

import argparse
import itertools
import sys
import zlib
from collections.abc import Iterable

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from flax import nnx

from datarax import HFEagerSource, HFStreamingSource
from datarax.hub.load import load_split
from datarax.tokens import pack
from trainers import Trainer

LENGTH = 128  # tokens of a row
END = "<end>"  # the token behind each document
VOCABULARY = 2048
TOKENIZED = 1000  # documents that the tokenizer is trained on
HELD_OUT = 20  # one document in so many is for evaluation
EVALUATED = 512  # rows to evaluate on


class Block(nnx.Module):
    """Causal attention and a multilayer perceptron, each added to what it is given.

    Args:
        width: Numbers a token.
        heads: Number of attention heads.
        rngs: Stream `params`.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)
        x = x + self.out(attended.reshape(batch, length, width))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """A decoder-only transformer whose last layer is its embedding.

    Args:
        width: Numbers a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        rngs: Stream `params`.
    """

    def __init__(self, width: int, depth: int, heads: int, *, rngs: nnx.Rngs):
        scale = nnx.initializers.normal(0.02)
        self.tokens = nnx.Embed(VOCABULARY, width, embedding_init=scale, rngs=rngs)
        self.places = nnx.Embed(LENGTH, width, embedding_init=scale, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        x = self.tokens(input_ids) + self.places(jnp.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


def is_held_out(text: str) -> bool:
    """Returns whether a document is for evaluation: its hash decides, whatever the order."""
    return zlib.crc32(text.encode()) % HELD_OUT == 0


def train_tokenizer(texts: Iterable[str]) -> tokenizers.ByteLevelBPETokenizer:
    """Returns a tokenizer that knows the most frequent pieces of `texts`, and every byte."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, VOCABULARY, show_progress=False, special_tokens=[END])
    return tokenizer


def load(
    stream: datasets.IterableDataset, tokenizer: tokenizers.ByteLevelBPETokenizer, column: str
) -> tuple[HFStreamingSource, HFEagerSource]:
    """Returns the training rows as a stream, and rows of held-out documents as arrays."""

    def packed(texts):
        tokens = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        if sum(map(len, tokens)) + len(tokens) < LENGTH:  # the last few documents of a file
            return {"input_ids": []}
        documents = datasets.Dataset.from_dict({"input_ids": tokens})
        end = tokenizer.token_to_id(END)
        return {"input_ids": pack(documents, LENGTH, end_id=end)["input_ids"][:]}

    row = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"), LENGTH)})

    def rows(documents):
        return documents.map(
            packed, batched=True, input_columns=column, remove_columns=[column], features=row
        )

    kept = rows(stream.filter(lambda text: not is_held_out(text), input_columns=column))
    held_out = rows(stream.filter(is_held_out, input_columns=column))
    evaluated = list(itertools.islice(held_out, EVALUATED))
    if not evaluated:
        sys.exit(f"There are too few documents: one in {HELD_OUT} is for evaluation.")
    return (
        HFStreamingSource.from_dataset(kept, shuffle=True, shuffle_buffer_size=4096),
        HFEagerSource.from_dataset(datasets.Dataset.from_list(evaluated, features=row)),
    )


def sample(model: Transformer, prompt: list[int], length: int = 100) -> list[int]:
    """Returns `prompt` and the tokens that the model makes up behind it."""

    @jax.jit
    def following(model, window, place, key):
        return jax.random.categorical(key, model(window[None])[0, place - 1] / 0.8)

    tokens = list(prompt)
    for key in jax.random.split(jax.random.key(0), length):
        last = np.int32(tokens[-LENGTH:])
        window = np.pad(last, (0, LENGTH - len(last)))  # what comes later is not attended to
        tokens.append(int(following(model, window, len(last), key)))
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="stanfordnlp/imdb", help="a Hub name or a folder")
    parser.add_argument("--config", help="the dataset's configuration, where it has several")
    parser.add_argument("--column", default="text", help="the column of the documents")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workdir", help="where to keep checkpoints and logs")
    args = parser.parse_args()
    try:
        split = load_split(args.dataset, "train", config_name=args.config, streaming=True)
    except (ConnectionError, FileNotFoundError) as error:
        sys.exit(
            f"{error}\nThe text is not at hand. With a network connection the Hub's is read by "
            "itself; otherwise write --dataset FOLDER, a folder of parquet or JSON files with a "
            "column text."
        )

    stream = split.dataset.select_columns(args.column)
    tokenizer = train_tokenizer(row[args.column] for row in stream.take(TOKENIZED))
    training, evaluation = load(stream, tokenizer, args.column)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, args.steps // 10, args.steps, 1e-4)
    model = Transformer(width=128, depth=4, heads=4, rngs=nnx.Rngs(0))
    result = Trainer(
        model,
        training,
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1)
        ),
        eval_source=evaluation,
        batch_size=16,
        steps=args.steps,
        eval_every=100,
        workdir=args.workdir,
    ).fit()
    print(f"{result.status} after {result.step} of {args.steps} steps")
    if result.status != "finished":
        return
    print(tokenizer.decode(sample(model, tokenizer.encode("This").ids)))
    loss = result.metrics["eval/loss"]
    rows = np.asarray(evaluation.data["input_ids"]).tolist()
    size = sum(len(text.encode()) for text in tokenizer.decode_batch(rows)) / np.size(rows)
    print(f"loss: {loss:.2f} nats a token, {loss / np.log(2) / size:.2f} bits a byte")


if __name__ == "__main__":
    main()
