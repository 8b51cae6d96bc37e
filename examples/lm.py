"""A small language model on a stream of text.

    python examples/lm.py                                    # stanfordnlp/imdb from the Hub
    python examples/lm.py --dataset roneneldan/TinyStories   # any other, of any size
    python examples/lm.py --dataset path/to/text --workdir runs/lm

Loss to expect on held-out reviews of IMDB: 5.28 nats a token, which is 2.36 bits a byte, in four
minutes on two CPU cores.

Nothing is downloaded beforehand: documents are read, tokenised, packed into rows and shuffled while
the model trains. The tokenizer is trained on the first thousand of them. The documents of a row do
not see each other, and each held-out document is validated by itself. With --workdir the same
command goes on at the row where the last one ended, in the middle of an epoch, too.
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
from datarax.tokens import Packer
from trainers import Trainer

LENGTH = 256  # tokens of a row
END = "<end>"  # the token behind each document
VOCABULARY = 2048
TOKENIZED = 1000  # documents that the tokenizer is trained on
HELD_OUT = 20  # one document in so many is for evaluation
EVALUATED = 256  # rows of held-out documents


class Block(nnx.Module):
    """Causal attention within segments and a multilayer perceptron, each added to its input.

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

    def __call__(self, x: jax.Array, same: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        parts = jnp.moveaxis(qkv, 2, 0)
        attended = jax.nn.dot_product_attention(*parts, mask=same, is_causal=True)
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

    def __call__(
        self, input_ids: jax.Array, segment_ids: jax.Array, positions: jax.Array
    ) -> jax.Array:
        x = self.tokens(input_ids) + self.places(positions)
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        for block in self.blocks:
            x = block(x, same)
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
    stream: datasets.IterableDataset,
    tokenizer: tokenizers.ByteLevelBPETokenizer,
    column: str,
    seed: int,
) -> tuple[HFStreamingSource, HFEagerSource]:
    """Returns the training rows as a stream, and rows of held-out documents as arrays."""
    packer = Packer(LENGTH, end_id=tokenizer.token_to_id(END))

    def tokens(texts: list[str]) -> dict[str, list]:
        return {"input_ids": [encoding.ids for encoding in tokenizer.encode_batch(texts)]}

    def rows(documents, together: int):
        """Packs `together` documents at a time; 1 gives each document rows of its own."""
        documents = documents.map(
            tokens, batched=True, input_columns=column, remove_columns=[column]
        )
        return documents.map(packer, batched=True, batch_size=together, features=packer.features)

    kept = rows(stream.filter(lambda text: not is_held_out(text), input_columns=column), 1000)
    held_out = rows(stream.filter(is_held_out, input_columns=column), 1)
    evaluated = list(itertools.islice(held_out, EVALUATED))
    if not evaluated:
        sys.exit(f"There are too few documents: one in {HELD_OUT} is for validation.")
    return (
        HFStreamingSource.from_dataset(kept, shuffle=True, seed=seed, shuffle_buffer_size=4096),
        HFEagerSource.from_dataset(datasets.Dataset.from_list(evaluated, packer.features)),
    )


def perplexities(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the perplexity of each row, float32 of shape `(batch,)`."""
    tokens, counts = batch["input_ids"], batch["weights"][:, 1:]
    logits = model(tokens, batch["segment_ids"], batch["positions"])[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return jnp.exp((losses * counts).sum(1) / jnp.maximum(counts.sum(1), 1))


def sample(model: Transformer, prompt: list[int], length: int = 100) -> list[int]:
    """Returns `prompt` and the tokens that the model makes up behind it."""

    @jax.jit
    def following(model, window, place, key):
        positions = jnp.arange(LENGTH)[None]
        logits = model(window[None], jnp.ones_like(positions), positions)[0, place - 1]
        return jax.random.categorical(key, logits / 0.8)

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
    parser.add_argument("--seed", type=int, default=0, help="of parameters and order")
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
    training, evaluation = load(stream, tokenizer, args.column, args.seed)
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, args.steps // 10, args.steps, 1e-4)
    model = Transformer(width=128, depth=4, heads=4, rngs=nnx.Rngs(args.seed))
    trainer = Trainer(
        model,
        training,
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.1)
        ),
        eval_source=evaluation,
        batch_size=8,
        steps=args.steps,
        eval_every=100,
        workdir=args.workdir,
        seed=args.seed,
    )
    result = trainer.fit()
    print(f"{result.status} after {result.step} of {args.steps} steps")
    if result.status != "finished":
        return
    print(tokenizer.decode(sample(model, tokenizer.encode("This").ids)))
    low, middle, high = np.percentile(trainer.predict(evaluation, perplexities), [25, 50, 75])
    print(f"perplexity of a document's rows: {middle:.0f}, of half of them {low:.0f} to {high:.0f}")
    loss = result.metrics["eval/loss"]
    rows = np.asarray(evaluation.data["input_ids"]), np.asarray(evaluation.data["segment_ids"])
    kept = [tokens[segments > 0].tolist() for tokens, segments in zip(*rows, strict=True)]
    text = "".join(tokenizer.decode_batch(kept)).replace(END, "")
    size = len(text.encode()) / sum(map(len, kept))
    print(f"loss: {loss:.2f} nats a token, {loss / np.log(2) / size:.2f} bits a byte")


if __name__ == "__main__":
    main()
