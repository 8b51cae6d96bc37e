"""The usage that people type, as they type it: short names, all classes, against a Hub."""

import io

import datasets
import numpy as np
import PIL.Image
import pytest

from tests.support.hubprocess import Failure
from tests.support.hubserver import HubServer

PRELUDE = """
import jax, jax.numpy as jnp, numpy as np
import flax.nnx as nnx
from datarax.sources import HFEagerSource, HFStreamingSource
from datarax.sources.hf_source import HFEagerConfig, HFStreamingConfig
from datarax import from_hf, prefetch_to_device
from datarax.pipeline import Pipeline
seen = []
process = train_step = seen.append
"""


def parquet(columns, features=None) -> bytes:
    file = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    return file.getvalue()


def mnist(n) -> bytes:
    rng = np.random.default_rng(0)
    images = [PIL.Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)) for _ in range(n)]
    label = datasets.ClassLabel(names=[str(i) for i in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    return parquet({"image": images, "label": [i % 10 for i in range(n)]}, features)


@pytest.fixture(scope="module")
def process():
    texts = {"text": [f"review {i}" for i in range(40)], "label": [0, 1] * 20}
    sst2 = {"sentence": ["so so"] * 6, "label": [0, 1] * 3, "idx": range(6)}
    glue = "---\nconfigs:\n- config_name: sst2\n  data_files: sst2.parquet\n"
    glue += "- config_name: cola\n  data_files: cola.parquet\n---\n"
    with HubServer() as hub:
        hub.add("stanfordnlp/imdb", {"train.parquet": parquet(texts)}, alias="imdb")
        hub.add("ylecun/mnist", {"train.parquet": mnist(70)}, alias="mnist")
        pages = [parquet({"text": [f"page {n} {i}" for i in range(n)]}) for n in (30, 20)]
        files = {f"train-0000{i}.parquet": page for i, page in enumerate(pages)}
        hub.add("allenai/c4", files, alias="c4")
        both = {"README.md": glue, "sst2.parquet": parquet(sst2), "cola.parquet": parquet(sst2)}
        hub.add("nyu-mll/glue", both, alias="glue")
        with hub.process() as child:
            child(PRELUDE)
            yield child


def test_a_first_source_and_its_loop(process):
    code = """
config = HFEagerConfig(name="imdb", split="train")
source = HFEagerSource(config, rngs=nnx.Rngs(0))
for item in source:
    text = item["text"]
    label = item["label"]
    process((text, int(label)))
batch = source.get_batch(32)
shapes = batch["text"].shape, batch["label"].shape
for step in range(1000):
    batch = source.get_batch(32)
    train_step(batch)
result = [len(seen), seen[3], shapes, source.name]
"""
    assert process(code) == [1040, ["review 3", 1], [[32], [32]], "HFEagerSource(imdb:train)"]


def test_streaming_is_a_field_away(process):
    code = """
config = HFEagerConfig(name="c4", split="train", streaming=True)
source = HFEagerSource(config)
seen.clear()
for item in source:
    process(item["text"])
result = [type(source).__name__, len(seen), len(set(seen))]
"""
    assert process(code) == ["HFStreamingSource", 50, 50]


def test_shuffling_and_fields(process):
    code = """
config = HFEagerConfig(
    name="mnist", split="train", shuffle=True, shuffle_buffer_size=10000, seed=42
)
source = HFEagerSource(config, rngs=nnx.Rngs(42))
labels = source.get_batch(70)["label"].tolist()
HFEagerConfig(name="glue", split="train", include_keys={"sentence", "label"})
some = HFEagerSource(
    HFEagerConfig(
        name="glue", split="train", config_name="sst2", include_keys={"sentence", "label"}
    )
)
other = HFEagerSource(HFEagerConfig(name="imdb", split="train", exclude_keys={"idx"}))
result = [sorted(labels) != labels, sorted(some.data), sorted(other.data)]
"""
    assert process(code) == [True, ["label", "sentence"], ["label", "text"]]


def test_glue_without_a_configuration_lists_them(process):
    code = "HFEagerSource(HFEagerConfig(name='glue', split='train'))"
    failure = process.run(code)
    assert isinstance(failure, Failure)
    assert "sst2" in failure.message
    assert "config_name=" in failure.message


def test_a_pipeline_with_stages(process):
    code = """
def normalize_op(batch):
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255}

def augment_op(batch, key):
    noise = jax.vmap(lambda k: jax.random.normal(k, (28, 28)))(key)
    return {**batch, "image": batch["image"] + 0.01 * noise}

config = HFEagerConfig(name="mnist", split="train")
source = HFEagerSource(config)
pipeline = (
    Pipeline(source=source, stages=[normalize_op, augment_op], batch_size=64, rngs=nnx.Rngs(0)))
seen.clear()
for batch in pipeline:
    train_step(batch)
result = [batch["image"].shape for batch in seen]
"""
    assert process(code) == [[64, 28, 28], [6, 28, 28]]


def test_what_is_known_of_the_dataset(process):
    code = """
source = HFEagerSource(HFEagerConfig(name="mnist", split="train"))
info = source.get_dataset_info()
result = [isinstance(info.description, str), sorted(info.features), len(source), source.length]
"""
    assert process(code) == [True, ["image", "label"], 70, 70]


def test_stateless_and_stateful_batches(process):
    code = """
config = HFEagerConfig(name="mnist", split="train", shuffle=True)
source = HFEagerSource(config, rngs=nnx.Rngs(0))
batch = source.get_batch(32)
same = [source.get_batch(32, key=jax.random.key(0))["label"].tolist() for _ in range(2)]
result = [same[0] == same[1], source.get_state()["index"], len(source.get_state()["revision"])]
"""
    assert process(code) == [True, 32, 40]


def test_a_stream_read_ahead(process):
    code = """
config = HFStreamingConfig(name="allenai/c4", split="train", streaming=True)
source = HFStreamingSource(config, rngs=nnx.Rngs(0))
seen.clear()
for batch in prefetch_to_device(source, size=2):
    train_step(batch["text"])
result = [len(seen), source.name, source.dataset_name, source.split_name,
          source.is_iterable_mode, source.random_order_buffer_depth, source.selected_keys,
          source.rejected_keys, source.is_random_order]
"""
    assert process(code) == [
        50,
        "HFStreamingSource(allenai/c4:train)",
        "allenai/c4",
        "train",
        True,
        1000,
        None,
        None,
        False,
    ]


def test_from_hf_chooses_and_says_so(process):
    code = """
import logging
records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
from datarax.sources import hf_source
hf_source.logger.addHandler(handler)
hf_source.logger.setLevel(logging.INFO)
sources = [from_hf("mnist", "train", shuffle=True), from_hf("c4", "train", streaming=True)]
result = [[type(source).__name__ for source in sources], records]
"""
    kinds, said = process(code)
    assert kinds[1] == "HFStreamingSource"
    assert said
    assert "mnist" in said[0]
