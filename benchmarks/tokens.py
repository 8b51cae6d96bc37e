"""Tokens: how full packed rows are, how fast packing is, and what packing and slices give a run.

    python -m benchmarks.tokens [--dataset FOLDER]

About three minutes on two CPU cores. `FOLDER` holds documents as `datasets.load_dataset` reads
them, with a column `text`, and a tokenizer is trained on them; without it the documents have
log-normal lengths and random tokens. What is compared runs in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from flax import nnx
from grain.experimental import BestFitPackIterDataset
from grain.python import MapDataset

from benchmarks.timing import seconds, summary, versions
from datarax import HFEagerSource, MemorySource, MemorySourceConfig
from datarax.tokens import Packer, pad
from trainers import Trainer, every

LENGTH, WINDOW = 1024, 1000  # tokens of a row; documents that are packed together
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a folder of documents; default: random ones")
    parser.add_argument("--quick", action="store_true", help="few documents: only to try it")
    args = parser.parse_args()
    count = 400 if args.quick else 6000
    print(versions("datarax", "jax", "datasets", "grain"))
    corpora = {f"log-normal, median {m}": log_normal(m, count) for m in (90, 245, 665)}
    if args.dataset is not None:
        corpora = {"the corpus": tokenized(args.dataset, count), **corpora}
    print(f"Packing into rows of {LENGTH}, {WINDOW:,} documents at a time:")
    for name, documents in corpora.items():
        print(f"  {name:24} {packing(documents, 3 if args.quick else 15)}")
    documents = next(iter(corpora.values()))
    print("Tokens that count a second, fit on packed rows over fit on padded rows:")
    print(f"  {'':24} {summary(packed_or_padded(documents, 2 if args.quick else 5))}")
    print("Logits in slices over logits at once, vocabulary 32,768, 8 rows of 512:")
    for name, value in slices(2 if args.quick else 5).items():
        print(f"  {name:24} {value}")


# --- documents -----------------------------------------------------------------------------------


def log_normal(median: int, count: int) -> list[np.ndarray]:
    """Returns documents whose lengths are heavy-tailed: the median, and a sigma of 1."""
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(median), 1.0, count).astype(int) + 1
    return [rng.integers(1, VOCABULARY, n).astype(np.int32) for n in lengths]


def tokenized(folder: str, count: int) -> list[np.ndarray]:
    """Returns the tokens of a folder's documents."""
    split = datasets.load_dataset(folder, split="train")
    texts = split["text"][: min(count, len(split))]
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, VOCABULARY, show_progress=False)
    return [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(texts)]


# --- packing -------------------------------------------------------------------------------------


def packing(documents: list[np.ndarray], turns: int) -> str:
    """Returns fill, Grain's fill and speed as text; Grain is given pieces that fit, all at once."""
    packer, tokens = Packer(LENGTH), sum(map(len, documents))
    windows = [documents[i : i + WINDOW] for i in range(0, len(documents), WINDOW)]

    def run() -> list[dict[str, np.ndarray]]:
        return [packer({"input_ids": window}) for window in windows]

    rows = sum(len(packed["input_ids"]) for packed in run())
    rate = tokens / statistics.median(seconds(run) for _ in range(turns))
    lists = [{"input_ids": [doc.tolist() for doc in window]} for window in windows]
    from_lists = tokens / statistics.median(
        seconds(lambda: [packer(batch) for batch in lists]) for _ in range(turns)
    )
    pieces = [
        {"input_ids": doc[i : i + LENGTH]}
        for doc in documents
        for i in range(0, len(doc), LENGTH)
        if len(doc)
    ]
    grains = 0
    for start in range(0, len(pieces), WINDOW):
        part = pieces[start : start + WINDOW]
        packed = BestFitPackIterDataset(
            MapDataset.source(part).to_iter_dataset(),
            length_struct={"input_ids": LENGTH},
            num_packing_bins=len(part),
        )
        grains += sum(1 for _ in packed)
    return (
        f"fill {tokens / (rows * LENGTH):.4f}, Grain's {tokens / (grains * LENGTH):.4f}; "
        f"{rate / 1e6:.0f}M tokens a second, of Python's lists {from_lists / 1e6:.0f}M"
    )


# --- training ------------------------------------------------------------------------------------


class Decoder(nnx.Module):
    """Blocks of causal attention within segments, whose last layer is the embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(length, width, rngs=rngs)
        linear = lambda n, m: nnx.Linear(n, m, rngs=rngs)  # noqa: E731
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2 * depth)])
        self.qkv = nnx.List([linear(width, 3 * width) for _ in range(depth)])
        self.up = nnx.List([linear(width, 4 * width) for _ in range(depth)])
        self.down = nnx.List([linear(4 * width, width) for _ in range(depth)])

    def __call__(self, input_ids, positions=None, segment_ids=None):
        batch, length = input_ids.shape
        x = self.tokens(input_ids)
        x += self.places(jnp.arange(length) if positions is None else positions)
        mask = None
        if segment_ids is not None:
            mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        for i in range(len(self.qkv)):
            qkv = self.qkv[i](self.norms[2 * i](x)).reshape(batch, length, 3, 4, -1)
            parts = jnp.moveaxis(qkv, 2, 0)
            attended = jax.nn.dot_product_attention(*parts, mask=mask, is_causal=True)
            x += attended.reshape(x.shape)
            x += self.down[i](nnx.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return self.tokens.attend(x)


class Rate:
    """A callback that notes tokens and time, from its first call on."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, float]] = []

    def __call__(self, run) -> None:
        self._marks.append((time.perf_counter(), run.history[-1]["tokens_seen"]))

    @property
    def tokens(self) -> float:
        """Tokens that counted, a second."""
        (begun, before), (ended, after) = self._marks[0], self._marks[-1]
        return (after - before) / (ended - begun)


def rate(model: nnx.Module, source: object, **arguments) -> float:
    """Returns the tokens that count a second of a run, from its second step on."""
    noted = Rate()
    Trainer(model, source, log_every=1, callbacks=[every(1, noted)], **arguments).fit()
    return noted.tokens


def packed_or_padded(documents: list[np.ndarray], turns: int) -> list[float]:
    """Returns the rate of tokens that count on packed rows over that on padded rows."""
    dataset = datasets.Dataset.from_dict({"input_ids": documents[:WINDOW]})
    packed = HFEagerSource.from_dataset(dataset.map(Packer(LENGTH), batched=True), shuffle=True)
    padded = HFEagerSource.from_dataset(pad(dataset, LENGTH), shuffle=True)

    def run(source: object) -> float:
        model = Decoder(VOCABULARY, LENGTH, 64, 2, nnx.Rngs(0))
        return rate(model, source, batch_size=8, steps=8)

    return [run(packed) / run(padded) for _ in range(turns)]


def slices(turns: int) -> dict[str, str]:
    """Returns memory and time of a step, those of the inferred loss over those of an own one."""
    vocabulary, length = 2**15, 512
    tokens = np.random.default_rng(0).integers(0, vocabulary, (64, length)).astype(np.int32)
    source = MemorySource(MemorySourceConfig(), {"input_ids": tokens})

    def whole(model: nnx.Module, batch: dict[str, jax.Array]):
        tokens = batch["input_ids"]
        logits = model(tokens)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses, {"logits": logits, "labels": tokens[:, 1:]}

    def trainer(loss: Callable | None) -> dict:
        return {"loss": loss, "batch_size": 8, "steps": 6}

    def model() -> Decoder:
        return Decoder(vocabulary, length, 256, 4, nnx.Rngs(0))

    told = [Trainer(model(), source, **trainer(loss)).preflight() for loss in (None, whole)]
    needed = [one.step_bytes or 0 for one in told]
    times = [
        rate(model(), source, **trainer(whole)) / rate(model(), source, **trainer(None))
        for _ in range(turns)
    ]
    return {
        "memory of a step": f"{needed[0] / needed[1]:8.3f}   ({needed[0]:,} : {needed[1]:,} bytes)",
        "time of a step": summary(times),
        "the inferred loss": str(told[0].logits),
    }


if __name__ == "__main__":
    main()
