"""Weights from elsewhere: names mapped, what does not fit listed, read one by one."""

import json
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from tests.support.hubserver import HubServer
from tests.support.models import MLP
from tests.support.runs import said
from trainers import export
from trainers.weights import load_safetensors

NAMES = [
    (r"^net\.", "", None),
    (r"^fc1\.", "hidden."),
    (r"^fc2\.", "out."),
    (r"\.weight$", ".kernel", np.transpose),
]


def torch_like(*, classes=3):
    """Returns an MLP's tensors as torch names and shapes them."""
    rng = np.random.default_rng(0)
    return {
        "net.fc1.weight": rng.normal(size=(8, 4)).astype(np.float32),
        "net.fc1.bias": rng.normal(size=8).astype(np.float32),
        "net.fc2.weight": rng.normal(size=(classes, 8)).astype(np.float32),
        "net.fc2.bias": rng.normal(size=classes).astype(np.float32),
    }


def assert_loaded(model, given=None):
    given = given or torch_like()
    np.testing.assert_array_equal(model.hidden.kernel[...], given["net.fc1.weight"].T)
    np.testing.assert_array_equal(model.hidden.bias[...], given["net.fc1.bias"])
    np.testing.assert_array_equal(model.out.kernel[...], given["net.fc2.weight"].T)
    np.testing.assert_array_equal(model.out.bias[...], given["net.fc2.bias"])


def write_shards(folder):
    """Writes the tensors into two files and an index of them."""
    given = torch_like()
    parts = {"model-1-of-2.safetensors": "fc1", "model-2-of-2.safetensors": "fc2"}
    places = {}
    for file, part in parts.items():
        own = {name: x for name, x in given.items() if part in name}
        save_file(own, folder / file)
        places |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def file(tmp_path):
    save_file(torch_like(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_names_are_mapped_and_tensors_transformed(file):
    model = MLP()
    assert load_safetensors(model, file, NAMES) is model
    assert_loaded(model)
    assert_loaded(load_safetensors(nnx.eval_shape(MLP), file, NAMES))


def test_shards_of_an_index_and_folders(tmp_path):
    write_shards(tmp_path)
    assert_loaded(load_safetensors(MLP(), tmp_path / "model.safetensors.index.json", NAMES))
    assert_loaded(load_safetensors(MLP(), tmp_path, NAMES))


def test_the_models_dtypes_count(tmp_path):
    half = {name: x.astype(jnp.bfloat16) for name, x in torch_like().items()}
    save_file(half, tmp_path / "half.safetensors")
    model = load_safetensors(MLP(), tmp_path / "half.safetensors", NAMES)
    assert model.out.kernel[...].dtype == jnp.float32
    assert_loaded(model, half)


def test_what_was_not_found_is_listed_on_both_sides(tmp_path):
    given = torch_like() | {"net.pooler.weight": np.zeros((8, 8), np.float16)}
    given["net.fc3.bias"] = given.pop("net.fc2.bias")
    save_file(given, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="does not fit this MLP") as caught:
        load_safetensors(MLP(classes=5), tmp_path / "net.safetensors", NAMES)
    lines = str(caught.value).splitlines()
    assert "  out.kernel: (8, 5) float32 in the model, (8, 3) float32 there" in lines
    assert "  out.bias (5,) float32; nearest there: 'fc3.bias' (3,) float32" in lines
    assert any(line.startswith("  pooler.kernel (8, 8) float16") for line in lines)
    near = "  fc3.bias (3,) float32; nearest in the model: 'out.bias' (5,) float32"
    assert near in lines


def test_nothing_is_changed_where_not_all_fits(file):
    model = MLP(classes=5)
    with pytest.raises(ValueError, match="Of another shape"):
        load_safetensors(model, file, NAMES)
    np.testing.assert_array_equal(model.hidden.kernel[...], MLP().hidden.kernel[...])


def test_another_head_keeps_its_first_weights(file, caplog):
    model = load_safetensors(MLP(classes=5), file, NAMES, match="")
    np.testing.assert_array_equal(model.hidden.bias[...], torch_like()["net.fc1.bias"])
    np.testing.assert_array_equal(model.out.kernel[...], MLP(classes=5).out.kernel[...])
    (warning,) = said(caplog, "trainers.weights.mapped")
    assert "out.kernel: (8, 5) float32 in the model, (8, 3) float32 there" in warning


def test_tensors_are_left_out_by_rule(tmp_path):
    save_file(torch_like() | {"net.position_ids": np.arange(4)}, tmp_path / "net.safetensors")
    rules = [*NAMES, (r"position_ids", None)]
    assert_loaded(load_safetensors(MLP(), tmp_path / "net.safetensors", rules))


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ([("a", "b", 3)], TypeError, r"names= holds \('a', 'b', 3\): expected \(pattern"),
        (["ab"], TypeError, "names= holds 'ab'"),
        ([("(", "b")], ValueError, r"pattern '\(', which re refuses"),
        ([(r".*bias", "b")], ValueError, "makes 'b' of both 'net.fc1.bias' and 'net.fc2.bias'"),
        (
            [("fc1.weight", "x", lambda x: x.reshape(3))],
            ValueError,
            r"transform of 'net.fc1.weight' fails on an array of shape \(8, 4\): ValueError",
        ),
    ],
)
def test_a_bad_rule_is_named(file, names, error, words):
    with pytest.raises(error, match=words):
        load_safetensors(MLP(), file, names)


def test_arrays_go_where_the_sharding_says(file):
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    seen = []

    def rule(name, shape):
        seen.append((name, shape))
        return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), "model"))

    model = load_safetensors(MLP(), file, NAMES, sharding=rule)
    assert_loaded(model)
    assert ("hidden.kernel", (4, 8)) in seen
    assert model.hidden.kernel[...].sharding == rule("", (4, 8))
    # The next load leaves them there.
    again = load_safetensors(model, file, NAMES)
    assert again.out.bias[...].sharding == rule("", (3,))


def test_damaged_files_are_named(file, tmp_path):
    whole = file.read_bytes()
    for content in (whole[:-8], whole[:20], b"\xff" * 100, b""):
        file.write_bytes(content)
        with pytest.raises(RuntimeError, match=r"net.safetensors is damaged: .* again"):
            load_safetensors(MLP(), file, NAMES)
    (tmp_path / "x.safetensors.index.json").write_text("{}")
    with pytest.raises(RuntimeError, match="no index of safetensors files"):
        load_safetensors(MLP(), tmp_path / "x.safetensors.index.json", NAMES)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="a model's name on the Hub"):
        load_safetensors(MLP(), tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no safetensors file"):
        load_safetensors(MLP(), tmp_path)


class Adapted(nnx.Module):
    """An MLP with both forms of LoRA."""

    def __init__(self, seed=0):
        rngs = nnx.Rngs(seed)
        hidden = nnx.Linear(4, 8, rngs=rngs)
        self.hidden = nnx.LoRA(4, 2, 8, base_module=hidden, rngs=rngs)
        self.out = nnx.LoRALinear(8, 3, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.tanh(self.hidden(x)))


def test_layers_within_lora_get_their_weights_and_are_merged_again(file, tmp_path):
    model = load_safetensors(Adapted(), file, NAMES)
    plain = load_safetensors(MLP(), file, NAMES)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(model(x), plain(x), atol=1e-6)
    for layer in (model.hidden, model.out.lora):
        layer.lora_b[...] = jnp.full(layer.lora_b.shape, 0.1)
    export(model, tmp_path / "merged.safetensors", merge_lora=True)
    merged = load_safetensors(MLP(), tmp_path / "merged.safetensors")
    np.testing.assert_allclose(merged(x), model(x), atol=1e-5)
    assert not np.allclose(model(x), plain(x), atol=1e-3)
    alone = nnx.LoRA(4, 2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no kernel for nnx.LoRA .*base_module=nnx.Linear"):
        export(alone, tmp_path / "alone.safetensors", merge_lora=True)


def test_our_files_are_read_by_the_library(tmp_path):
    model = MLP()
    export(model, tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {"hidden.kernel", "hidden.bias", "out.kernel", "out.bias"}
    np.testing.assert_array_equal(found["out.kernel"], model.out.kernel[...])


def test_weights_of_the_hub(tmp_path):
    (tmp_path / "sharded").mkdir()
    write_shards(tmp_path / "sharded")
    save_file(torch_like(), tmp_path / "net.safetensors")
    whole = (tmp_path / "net.safetensors").read_bytes()
    code = """
import numpy as np
from tests.trainers.weights.test_mapped import MLP, NAMES, assert_loaded
from trainers.weights import load_safetensors
def tried(name, **arguments):
    try:
        assert_loaded(load_safetensors(MLP(), name, NAMES, **arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""
    is_down = threading.Event()
    with HubServer(lambda _: "reset" if is_down.is_set() else None) as hub:
        hub.add("org/whole", {"model.safetensors": whole}, tag="v1")
        hub.add("org/sharded", tmp_path / "sharded")
        hub.add("org/other", {"weights.safetensors": whole})
        with hub.process() as client:
            client(code)
            assert client("result = tried('org/whole')") is None
            assert client("result = tried('org/whole', revision='v1')") is None
            assert client("result = tried('org/sharded')") is None
            assert client("result = tried('org/other/weights.safetensors')") is None
            told = client("result = tried('org/other')")
            assert told.startswith("FileNotFoundError: 'org/other' has none of")
            told = client("result = tried('org/nothing')")
            assert told.startswith("FileNotFoundError: 'org/nothing' is no model at http")
            told = client("result = tried('org/whole', revision='v2')")
            assert told == "FileNotFoundError: 'org/whole' has no branch, tag or commit 'v2'."
            is_down.set()
            assert client("result = tried('org/whole')") is None  # of the cache
            told = client("result = tried('org/else')")
            assert told.startswith("ConnectionError: The Hub at http")


MEMORY = """
import resource, sys
import jax.numpy as jnp
from flax import nnx
from trainers.weights import load_safetensors

model = nnx.Dict({f"w{i}": nnx.Param(jnp.full((1024, 10240), 0.5)) for i in range(8)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
load_safetensors(model, sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
assert float(model["w3"][0, 0]) == 3
print(after - before)
"""


@pytest.mark.slow
def test_host_memory_holds_one_tensor_beside_the_model(tmp_path):
    # 40 MB each: what is so large goes back to the system when it is freed.
    arrays = {f"w{i}": np.full((1024, 10240), i, np.float32) for i in range(8)}
    save_file(arrays, tmp_path / "large.safetensors")
    command = [sys.executable, "-c", MEMORY, tmp_path / "large.safetensors"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 130  # MB: a tensor, its copy and the array before; not 320
