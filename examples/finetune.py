"""Weights of another library, fine-tuned with LoRA: a BERT-like or a Llama-like model.

    python examples/finetune.py                                  # digits, and weights of its own
    python examples/finetune.py --weights google/bert_uncased_L-2_H-128_A-2 \\
        --dataset stanfordnlp/imdb                               # from the Hub
    python examples/finetune.py --weights path/to/folder --dataset path/to/texts

To expect, in three minutes on two CPU cores: 96 % of the white digits after the first training; of
the black ones 9 % before and 91 % after LoRA, merged or not.

By default the model is a small BERT that reads the 64 pixels of a digit as tokens. It is trained on
white digits first, and its weights saved. The lesson is what follows: a model with LoRA takes the
weights of a safetensors file by a map of names (`models/bert.py`, `models/llama.py`), trains what
LoRA adds and nothing else, on black digits, and is exported merged, so that the file fits the model
without LoRA. Names in `--weights` are those of `transformers`: `config.json` says whether it is
BERT, for a dataset of `text` and `label`, or Llama, for one of `text`.
"""

import argparse
import tempfile
from pathlib import Path

import datasets
import jax
import numpy as np
import optax
import transformers
from flax import nnx
from models import bert, llama
from sklearn.datasets import load_digits

from datarax import HFEagerSource
from datarax.hub.load import load_split
from datarax.tokens import pad
from trainers import Trainer, export, load
from trainers.weights import load_safetensors

LENGTH = 128  # tokens of a text
RANK = 8  # of the matrices that LoRA adds
MODELS = {"bert": (bert.Bert, bert.NAMES), "llama": (llama.Llama, llama.NAMES)}
SMALL = transformers.BertConfig(
    vocab_size=17,  # grey values of a digit's pixels
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=64,
    num_labels=10,
)
Splits = tuple[HFEagerSource, HFEagerSource]


def adapted(model: nnx.Module, *, rngs: nnx.Rngs) -> nnx.Module:
    """Puts LoRA around the layers of a model that compute queries and values, and returns it."""
    for layer in model.layers:
        for name in ("query", "value"):
            linear = getattr(layer, name)
            shape = linear.in_features, RANK, linear.out_features
            setattr(layer, name, nnx.LoRA(*shape, base_module=linear, rngs=rngs))
    return model


def digits(*, inverted: bool, seed: int) -> Splits:
    """Returns digits as 64 tokens of 17 values, white on black or inverted: training and test."""
    data = load_digits()
    pixels = np.int32(16 - data.data if inverted else data.data)
    columns = {"input_ids": pixels, "attention_mask": np.ones_like(pixels), "label": data.target}
    whole = datasets.Dataset.from_dict(columns)
    parts = whole.cast_column("label", datasets.ClassLabel(num_classes=10)).train_test_split(
        0.2, seed=0
    )
    train = HFEagerSource.from_dataset(parts["train"], shuffle=True, seed=seed)
    return train, HFEagerSource.from_dataset(parts["test"])


def texts(
    name: str, tokenizer: transformers.PreTrainedTokenizerBase, kept: set[str], seed: int
) -> Splits:
    """Returns the training and the test split of texts as tokens, beside the columns `kept`."""

    def encode(rows):
        return {"input_ids": tokenizer(rows["text"], truncation=True, max_length=LENGTH).input_ids}

    def made(split: str, **fields) -> HFEagerSource:
        dataset = load_split(name, split).dataset
        columns = list(set(dataset.column_names) - kept)
        tokens = dataset.map(encode, batched=True, remove_columns=columns)
        return HFEagerSource.from_dataset(pad(tokens, LENGTH), **fields)

    return made("train", shuffle=True, seed=seed), made("test")


def pretrain(path: Path, steps: int, seed: int) -> None:
    """Trains a small BERT on white digits, and saves its weights."""
    train, test = digits(inverted=False, seed=seed)
    model = bert.Bert(SMALL, rngs=nnx.Rngs(seed))
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 2e-3))
    Trainer(model, train, optimizer=optimizer, eval_source=test, steps=steps, seed=seed).fit()
    export(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="a model on the Hub or a folder; default: made here")
    parser.add_argument("--dataset", help="with --weights: texts, a Hub name or a folder")
    parser.add_argument("--steps", type=int, default=600, help="of fine-tuning; before it as many")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and order")
    parser.add_argument("--workdir", type=Path, help="default: a temporary directory")
    args = parser.parse_args()
    if (args.weights is None) != (args.dataset is None):
        parser.error("--weights and --dataset go together")
    workdir = args.workdir or Path(tempfile.mkdtemp(prefix="finetune-"))
    workdir.mkdir(parents=True, exist_ok=True)

    if args.weights is None:
        config, weights, names = SMALL, workdir / "pretrained.safetensors", ()
        if not weights.exists():
            pretrain(weights, args.steps, args.seed)
        make, wrt = bert.Bert, nnx.LoRAParam
        train, test = digits(inverted=True, seed=args.seed)
    else:
        config, weights = transformers.AutoConfig.from_pretrained(args.weights), args.weights
        if config.model_type not in MODELS:
            parser.error(f"--weights is of a {config.model_type}, not of {' or '.join(MODELS)}")
        make, names = MODELS[config.model_type]
        # A classifier is new where the weights come from another task.
        wrt = nnx.Any(nnx.LoRAParam, nnx.PathContains("classifier"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.weights)
        kept = {"label"} if make is bert.Bert else set()
        train, test = texts(args.dataset, tokenizer, kept, args.seed)
        if kept:
            config.num_labels = train.features["label"].num_classes

    rngs = nnx.Rngs(args.seed)
    model = adapted(make(config, rngs=rngs), rngs=rngs)
    load_safetensors(model, weights, names, match=None if args.weights is None else "")
    trained, whole = (
        sum(x.size for x in jax.tree.leaves(nnx.state(model, kind))) for kind in (wrt, nnx.Param)
    )
    rate = optax.cosine_onecycle_schedule(args.steps, 1e-2)
    trainer = Trainer(
        model,
        train,
        optimizer=optax.adam(rate),
        wrt=wrt,
        eval_source=test,
        steps=args.steps,
        workdir=workdir / "lora",
        seed=args.seed,
    )
    before = trainer.evaluate()
    trainer.fit()
    after = trainer.evaluate()

    merged = workdir / "merged.safetensors"
    export(model, merged, merge_lora=True)
    plain = load(merged, make(config, rngs=rngs))
    told = Trainer(plain, train, eval_source=test, steps=1).evaluate()
    for name, value in before.items():
        print(f"{name}: {value:.4f} before, {after[name]:.4f} after, {told[name]:.4f} merged")
    print(f"trained {trained:,} of {whole:,} parameters; the merged model is in {merged}")


if __name__ == "__main__":
    main()
