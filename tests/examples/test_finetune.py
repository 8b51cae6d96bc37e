"""The example of fine-tuning: its models have the numbers of `transformers`, and LoRA is merged."""

import re

import datasets
import numpy as np
import pytest

from tests.support.examples import EXAMPLES, run
from tests.support.hubserver import HubServer

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
    if "bert" in kind:
        config = transformers.BertConfig(**SIZES, num_labels=3)
        is_pretrained = kind == "pretrained bert"
        name = "BertForPreTraining" if is_pretrained else "BertForSequenceClassification"
    else:
        tied = kind == "tied llama"
        config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=tied)
        name = "LlamaForCausalLM"
    model = getattr(transformers, name)(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():  # they begin as 1 and 0, which ours are without weights
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch warns of is its own
@pytest.mark.parametrize("kind", ["bert", "old bert", "llama", "tied llama"])
def test_logits_are_those_of_transformers(monkeypatch, tmp_path, kind):
    import jax.numpy as jnp
    from flax import nnx
    from safetensors.torch import save_file

    from trainers.weights import load_safetensors

    theirs = reference(kind)
    torch = pytest.importorskip("torch")
    if kind == "old bert":  # as the file of `bert-base-uncased` calls them
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        pattern = re.compile("|".join(map(re.escape, old)))
        state = {pattern.sub(lambda m: old[m[0]], k): v for k, v in theirs.state_dict().items()}
        assert any(name.endswith("gamma") for name in state)
        save_file(state, tmp_path / "model.safetensors")
    else:
        theirs.save_pretrained(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from models import bert, llama

    make, names = (bert.Bert, bert.NAMES) if "bert" in kind else (llama.Llama, llama.NAMES)
    ours = load_safetensors(make(theirs.config, rngs=nnx.Rngs(0)), tmp_path, names)
    tokens = np.random.default_rng(0).integers(0, 40, (3, 20))
    mask = (np.arange(20) < np.array([[20], [13], [1]])).astype(np.int64)
    with torch.no_grad():
        arguments = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        expected = theirs(**arguments).logits.numpy()
    found = np.asarray(ours(jnp.asarray(tokens), jnp.asarray(mask)))
    if "llama" in kind:  # a token of padding has no logits worth comparing
        found, expected = found[mask > 0], expected[mask > 0]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def losses(told):
    """Returns the losses that the example tells of: before, after, and of the merged model."""
    return map(float, re.search(r"loss: (\S+) \w+, (\S+) \w+, (\S+) m", told).groups())


def test_only_lora_is_trained_and_merged(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "finetune", "--steps", 2, "--workdir", tmp_path)
    told = capsys.readouterr().out
    before, after, merged = losses(told)
    assert before != after
    assert abs(merged - after) < 1e-3
    assert "trained 4,096 of" in told
    assert (tmp_path / "merged.safetensors").exists()


def write_texts(folder):
    """Writes two splits of films that are called good or bad."""
    labels = np.random.default_rng(0).integers(0, 2, 64)
    said = [f"a film that is {('good', 'bad')[label]}" for label in labels]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    dataset = datasets.Dataset.from_dict({"text": said, "label": labels}, features=features)
    for split in ("train", "test"):
        dataset.to_parquet(folder / f"{split}.parquet")


WORDS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "that", "is", "good", "bad"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_weights_of_transformers_are_tuned(monkeypatch, capsys, tmp_path, kind):
    tokenizers = pytest.importorskip("tokenizers")
    reference(kind).save_pretrained(tmp_path / "weights")
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")
    fast.save_pretrained(tmp_path / "weights")
    write_texts(tmp_path / "texts")
    arguments = "--weights", tmp_path / "weights", "--dataset", tmp_path / "texts", "--steps", 30
    run(monkeypatch, "finetune", *arguments, "--workdir", tmp_path / "run")
    before, after, merged = losses(capsys.readouterr().out)
    assert after < before / 2
    assert abs(merged - after) < 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_bert_of_the_hub_is_tuned(tmp_path):
    reference("pretrained bert").save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(WORDS))  # which is all of its tokenizer
    write_texts(tmp_path / "texts")
    arguments = ["finetune.py", "--weights", "me/bert", "--dataset", "me/films", "--steps", "30"]
    code = f"""
import runpy, sys
sys.path.insert(0, {str(EXAMPLES)!r})
sys.argv = {[*arguments, "--workdir", str(tmp_path / "run")]}
runpy.run_path({str(EXAMPLES / "finetune.py")!r}, run_name="__main__")
"""
    with HubServer() as hub:
        hub.add("me/bert", tmp_path / "bert")
        hub.add("me/films", tmp_path / "texts")
        with hub.process() as client:
            client(code)
            told = client.output
    assert sum("-of-" in request.path and request.method == "GET" for request in hub.requests) > 2
    before, after, merged = losses(told)
    assert after < before / 2
    assert abs(merged - after) < 1e-3
