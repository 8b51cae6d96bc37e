"""A small model fine-tuned on conversations, of which it learns the answers only.

    python examples/chat.py                                  # sums, which it writes itself
    python examples/chat.py --workdir runs/chat
    python examples/chat.py --dataset HuggingFaceTB/everyday-conversations-llama3.1-2k \\
        --split train_sft --steps 2000                       # from the Hub

To expect, in two minutes on two CPU cores: the loss of held-out answers falls from 0.21 after the
first training to 0.03 after fine-tuning, that of the rest rises from 0.54 to 0.66, and 19 of 20
sums are right, word for word.

The model is trained on whole conversations first, as on any text, and then fine-tuned on the
answers. A chat template marks what the assistant says, and `datarax.tokens.chat` gives these tokens
the weight 1, all others 0: see the conversation that is printed, and the two losses. Fine-tuning
lowers that of the answers; that of the rest, which is not learned any more, rises. Where the Hub
cannot be reached, the conversations are the sums.
"""

import argparse
import random
import sys
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
import transformers
from flax import nnx
from lm import LENGTH, VOCABULARY, Transformer

from datarax import HFEagerSource
from datarax.hub.load import load_split
from datarax.tokens import Packer, chat
from trainers import Trainer

CONVERSATIONS, HELD_OUT = 4000, 200
SPECIAL = ["<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TEMPLATE = """{% for message in messages %}<|{{ message.role }}|>\
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}\
{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""

QUESTIONS = "What is {} plus {}?", "{} + {} = ?", "Add {} and {}, please.", "Can you add {} to {}?"
THANKS = ("Thank you!", "You are welcome."), ("Are you sure?", "Yes, it is {}."), ("Good.", "Yes.")


def sums(seed: int) -> datasets.Dataset:
    """Returns conversations of two turns: a sum, and a remark about its answer."""
    draw = random.Random(seed)

    def messages() -> list[dict[str, str]]:
        a, b = draw.randint(0, 12), draw.randint(0, 12)
        remark, reply = draw.choice(THANKS)
        said = draw.choice(QUESTIONS).format(a, b), f"{a} plus {b} is {a + b}."
        return [
            {"role": role, "content": content}
            for role, content in zip(
                ["user", "assistant"] * 2, [*said, remark, reply.format(a + b)], strict=True
            )
        ]

    return datasets.Dataset.from_dict({"messages": [messages() for _ in range(CONVERSATIONS)]})


def load(name: str | None, split: str, seed: int) -> datasets.Dataset:
    """Returns a dataset with a column `messages`."""
    if name is None:
        return sums(seed)
    try:
        return load_split(name, split).dataset.select_columns("messages")
    except ConnectionError as error:
        print(f"{error}\nThe Hub is out of reach: the conversations are sums.", file=sys.stderr)
        return sums(seed)


def train_tokenizer(conversations: datasets.Dataset) -> transformers.PreTrainedTokenizerFast:
    """Returns a tokenizer with a chat template, trained on what is said."""
    said = (m["content"] for talk in conversations["messages"] for m in talk)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(said, VOCABULARY, show_progress=False, special_tokens=SPECIAL)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer)
    fast.chat_template = TEMPLATE
    return fast


def rows(conversations: datasets.Dataset, tokenizer, which: str) -> HFEagerSource:
    """Returns packed rows in which `"all"` tokens count, the `"assistant"`'s, or the `"rest"`."""
    make = chat(tokenizer, train_on="all" if which == "all" else "assistant")
    tokens = conversations.map(make, batched=True, remove_columns=["messages"])
    if which == "rest":
        tokens = tokens.map(lambda row: {"weights": [1 - weight for weight in row["weights"]]})
    packer = Packer(LENGTH)
    packed = tokens.map(packer, batched=True, features=packer.features)
    return HFEagerSource.from_dataset(packed, shuffle=True)


def marked(messages: list[dict[str, str]], tokenizer) -> str:
    """Returns a conversation as the model sees it, with brackets around what it learns."""
    row = chat(tokenizer)({"messages": messages})
    text, inside = "", 0.0
    for token, weight in zip(row["input_ids"], row["weights"], strict=True):
        text += "[" * (weight > inside) + "]" * (weight < inside) + tokenizer.decode([token])
        inside = weight
    return text + "]" * (inside > 0)


def answer(model: Transformer, messages: list[dict[str, str]], tokenizer, most: int = 40) -> str:
    """Returns what the model answers: the likeliest token, again and again."""

    @jax.jit
    def following(model, window, place):
        positions = jnp.arange(LENGTH)[None]
        logits = model(window[None], jnp.ones_like(positions), positions)
        return logits[0, place - 1].argmax()

    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(prompt, add_special_tokens=False)[-LENGTH + most :]
    begun, end = len(tokens), tokenizer.convert_tokens_to_ids("<|end|>")
    while len(tokens) < begun + most:
        window = np.pad(np.int32(tokens), (0, LENGTH - len(tokens)))
        tokens.append(int(following(model, window, len(tokens))))
        if tokens[-1] == end:
            break
    return tokenizer.decode(tokens[begun:]).removesuffix("<|end|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="a Hub name or a folder with a column messages")
    parser.add_argument("--split", default="train", help="its split")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning; before it as many")
    parser.add_argument("--workdir", help="where to keep checkpoints and logs")
    parser.add_argument("--seed", type=int, default=0, help="of sums, parameters and order")
    args = parser.parse_args()

    conversations = load(args.dataset, args.split, args.seed)
    halves = conversations.train_test_split(HELD_OUT, seed=args.seed)
    tokenizer = train_tokenizer(halves["train"])
    everything, answers = (rows(halves["train"], tokenizer, on) for on in ("all", "assistant"))
    held_out = {
        "answers": rows(halves["test"], tokenizer, "assistant"),
        "the rest": rows(halves["test"], tokenizer, "rest"),
    }
    print(f"What is learned stands in brackets: {marked(halves['test'][0]['messages'], tokenizer)}")

    model = Transformer(width=128, depth=3, heads=4, rngs=nnx.Rngs(args.seed))
    for stage, source, rate in ("pretrained", everything, 3e-3), ("tuned", answers, 1e-3):
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, args.steps // 10, args.steps, 1e-5)
        result = Trainer(
            model,
            source,
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule)),
            eval_source=held_out,
            batch_size=4,
            steps=args.steps,
            eval_every=args.steps,
            workdir=None if args.workdir is None else str(Path(args.workdir) / stage),
            seed=args.seed,
        ).fit()
        print(f"{stage}: {result.status} after {result.step} of {args.steps} steps")
        if result.status != "finished":
            return
        for name in held_out:
            loss, accuracy = (result.metrics[f"eval/{name}/{key}"] for key in ("loss", "accuracy"))
            print(f"  {name}: loss {loss:.3f}, accuracy {accuracy:.3f}")

    right = 0
    talks = [row["messages"] for row in halves["test"].select(range(20))]
    for messages in talks:
        found = answer(model, messages[:1], tokenizer)
        right += found == messages[1]["content"]
    print(f"user: {talks[-1][0]['content']}\nassistant: {found}")
    print(f"first answers that are right, word for word: {right} of {len(talks)}")


if __name__ == "__main__":
    main()
