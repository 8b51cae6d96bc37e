"""Sentiment of film reviews with a bag of word and word-pair embeddings.

    python examples/imdb.py                          # stanfordnlp/imdb from the Hub
    python examples/imdb.py --dataset path/to/imdb   # a local folder

Test accuracy to expect: 89 %, in a minute on two CPU cores. The tokenizer is trained on the
training split; nothing else is downloaded. A tenth of that split decides when to stop.
"""

import argparse
import sys
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from flax import nnx

from datarax import HFEagerSource
from datarax.hub.load import load_split
from datarax.tokens import pad
from trainers import Trainer
from trainers.callbacks import best_so_far, early_stopping

LENGTH = 400  # tokens of a review; most are shorter
WORDS = 20_000
PAIRS = 2**17  # buckets that pairs of neighbouring words are hashed to


class Bag(nnx.Module):
    """The mean of a review's word and word-pair embeddings, and a linear layer.

    Args:
        width: Numbers in an embedding.
        rngs: Streams `params` and `dropout`.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        scale = nnx.initializers.normal(0.1)
        self.words = nnx.Embed(WORDS, width, embedding_init=scale, rngs=rngs)
        self.pairs = nnx.Embed(PAIRS, width, embedding_init=scale, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        mask = attention_mask.astype(jnp.float32)[..., None]
        hashed = input_ids[:, :-1].astype(jnp.uint32) * np.uint32(0x9E3779B1) ^ input_ids[:, 1:]
        pairs = self.pairs((hashed % PAIRS).astype(jnp.int32)) * mask[:, 1:]
        words = self.words(input_ids) * mask
        mean = (words.sum(1) + pairs.sum(1)) / jnp.maximum(mask.sum(1), 1)
        return self.linear(self.dropout(mean))


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
    """Returns a tokenizer whose words are the most frequent ones of `texts`."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Replace("<br />", " "), tokenizers.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=WORDS, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def source(tokenizer: tokenizers.Tokenizer, texts: datasets.Dataset, **fields) -> HFEagerSource:
    """Returns tokenised texts as a source of `input_ids`, `attention_mask` and `label`."""

    def encode(rows):
        return {"input_ids": [e.ids for e in tokenizer.encode_batch_fast(rows["text"])]}

    tokens = texts.map(encode, batched=True, remove_columns="text", desc="tokenising")
    return HFEagerSource.from_dataset(pad(tokens, LENGTH), **fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="stanfordnlp/imdb", help="a Hub name or a folder")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, help="in place of epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the model and of the order")
    parser.add_argument("--workdir", type=Path, help="where to keep checkpoints and logs")
    args = parser.parse_args()
    try:
        train, test = (load_split(args.dataset, split).dataset for split in ("train", "test"))
    except (ConnectionError, FileNotFoundError) as error:
        sys.exit(
            f"{error}\nThe reviews are not at hand. With a network connection the Hub's are loaded "
            "by themselves; otherwise write --dataset FOLDER, a folder of parquet or JSON files "
            "with the columns text and label."
        )

    # The rows come sorted by label: the split shuffles them.
    parts = train.train_test_split(test_size=0.1, seed=args.seed)
    tokenizer = train_tokenizer(parts["train"]["text"][:])
    training = source(tokenizer, parts["train"], shuffle=True, seed=args.seed)
    trainer = Trainer(
        Bag(32, rngs=nnx.Rngs(params=args.seed, dropout=args.seed + 1)),
        training,
        optimizer=optax.adam(2e-3),
        eval_source=source(tokenizer, parts["test"]),
        steps=args.steps,
        epochs=None if args.steps else args.epochs,
        workdir=args.workdir,
        callbacks=[best_so_far("eval/accuracy"), early_stopping("eval/loss", patience=2)],
    )
    result = trainer.fit()
    accuracy = trainer.evaluate(source(tokenizer, test))["accuracy"]
    print(f"test accuracy: {accuracy:.2%}  ({result.status} after {result.step} steps)")


if __name__ == "__main__":
    main()
