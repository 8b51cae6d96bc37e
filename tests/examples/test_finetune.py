"""The example of fine-tuning: its models have the numbers of `transformers`, and LoRA is merged."""

import re

import datasets
import numpy as np
import pytest

from tests.support.examples import EXAMPLES, run

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def reference(kind):
    """Returns a small model of `transformers` with random weights."""
    torch = pytest.importorskip("torch")  # of the extra `reference`
    torch.manual_seed(0)
    if kind == "bert":
        config = transformers.BertConfig(**SIZES, num_labels=3)
        return transformers.BertForSequenceClassification(config).eval()
    tied = kind == "tied llama"
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch warns of is its own
@pytest.mark.parametrize("kind", ["bert", "llama", "tied llama"])
def test_logits_are_those_of_transformers(monkeypatch, tmp_path, kind):
    import jax.numpy as jnp
    from flax import nnx

    from trainers.weights import load_safetensors

    theirs = reference(kind)
    torch = pytest.importorskip("torch")
    theirs.save_pretrained(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from models import bert, llama

    make, names = (bert.Bert, bert.NAMES) if kind == "bert" else (llama.Llama, llama.NAMES)
    ours = load_safetensors(make(theirs.config, rngs=nnx.Rngs(0)), tmp_path, names)
    tokens = np.random.default_rng(0).integers(0, 40, (3, 20))
    mask = (np.arange(20) < np.array([[20], [13], [1]])).astype(np.int64)
    with torch.no_grad():
        arguments = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        expected = theirs(**arguments).logits.numpy()
    found = np.asarray(ours(jnp.asarray(tokens), jnp.asarray(mask)))
    if kind != "bert":  # a token of padding has no logits worth comparing
        found, expected = found[mask > 0], expected[mask > 0]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_only_lora_is_trained_and_merged(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "finetune", "--steps", 2, "--workdir", tmp_path)
    told = capsys.readouterr().out
    before, after, merged = map(
        float, re.search(r"loss: (\S+) \w+, (\S+) \w+, (\S+) m", told).groups()
    )
    assert before != after
    assert abs(merged - after) < 1e-3
    assert "trained 4,096 of" in told
    assert (tmp_path / "merged.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_of_transformers_are_tuned(monkeypatch, capsys, tmp_path, kind):
    tokenizers = pytest.importorskip("tokenizers")
    reference(kind).save_pretrained(tmp_path / "weights")
    words = ["[UNK]", "[PAD]", "a", "film", "that", "is", "good", "bad"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")
    fast.save_pretrained(tmp_path / "weights")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    said = [f"a film that is {words[6 + label]}" for label in labels]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    dataset = datasets.Dataset.from_dict({"text": said, "label": labels}, features=features)
    for split in ("train", "test"):
        dataset.to_parquet(tmp_path / "texts" / f"{split}.parquet")
    arguments = "--weights", tmp_path / "weights", "--dataset", tmp_path / "texts", "--steps", 30
    run(monkeypatch, "finetune", *arguments, "--workdir", tmp_path / "run")
    told = capsys.readouterr().out
    before, after, merged = map(
        float, re.search(r"loss: (\S+) \w+, (\S+) \w+, (\S+) m", told).groups()
    )
    assert after < before / 2
    assert abs(merged - after) < 1e-3
