"""`transform=` of streams: what it is given, exact batches and states, bad rows, training."""

import dataclasses
import io
import json
import logging
import random
import threading

import datasets
import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from datarax import HFStreamingConfig, HFStreamingSource, Pipeline, prefetch_to_device
from datarax.stream.state import merge_states
from datarax.transforms import tokenize
from trainers import Trainer

FILES = 120, 7, 300, 41, 80  # rows of each


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of several kinds, in files of several lengths."""
    folder, begin = tmp_path_factory.mktemp("files"), 0
    for number, rows in enumerate(FILES):
        ids = range(begin, begin + rows)
        columns = {
            "row": list(ids),
            "text": [f"row {row}" for row in ids],
            "ragged": [[float(row)] * (row % 5) for row in ids],
            "huge": [row + 2**40 for row in ids],
        }
        datasets.Dataset.from_dict(columns).to_parquet(folder / f"{number}.parquet")
        begin += rows
    return str(folder)


def drawn(record, rng):
    """Numbers of the record, and some of the generator."""
    return {
        "row": np.int32(record["row"]),
        "padded": np.pad(record["ragged"], (0, 4 - len(record["ragged"]))).astype(np.float32),
        "noise": rng.integers(0, 2**31, 3).astype(np.int32),
    }


def plain(record):
    return {"row": record["row"]}


def source(folder, transform=drawn, **fields):
    config = {"name": folder, "split": "train", "streaming": True, "shuffle_buffer_size": 64}
    return HFStreamingSource(HFStreamingConfig(**config | fields, transform=transform))


def as_bytes(batch):
    return {name: np.asarray(column).tobytes() for name, column in batch.items()}


def noise_of(batches):
    """The draws of each record, by its row."""
    pairs = (pair for b in batches for pair in zip(b["row"], b["noise"], strict=True))
    return {int(row): noise.tobytes() for row, noise in pairs}


def test_it_is_given_what_hugging_face_gives():
    soundfile = pytest.importorskip("soundfile")
    files = {"image": io.BytesIO(), "sound": io.BytesIO()}
    PIL.Image.new("RGB", (300, 200)).save(files["image"], "JPEG")
    soundfile.write(files["sound"], np.zeros(100, np.float32), 8000, format="WAV")
    stored = {name: [{"bytes": f.getvalue(), "path": None}] * 3 for name, f in files.items()}
    rows = stored | {"text": ["a", "b", "c"], "list": [[1, 2], [], [2**40]]}
    table = datasets.Dataset.from_dict(rows)
    table = table.cast_column("image", datasets.Image()).cast_column("sound", datasets.Audio())
    seen = []

    def look(record):
        seen.append(record | {"tile": list(record["image"].tile)})
        return {"x": len(seen)}

    HFStreamingSource.from_dataset(table, transform=look, num_threads=1).get_batch(3)
    for record, text in zip(seen[-3:], "abc", strict=True):
        assert isinstance(record["image"], PIL.Image.Image)
        assert record["tile"]  # not decoded yet
        assert record["image"].size == (300, 200)
        assert (record["text"], record["sound"]["sampling_rate"]) == (text, 8000)
        assert record["sound"]["array"].shape == (100,)
    assert [record["list"].tolist() for record in seen[-3:]] == [[1, 2], [], [2**40]]


def test_draws_depend_on_seed_epoch_and_record_alone(folder):
    first = source(folder, seed=3, shuffle=True)
    epochs = [noise_of(first.epoch_batches(32)) for _ in range(2)]
    assert sorted(epochs[0]) == list(range(sum(FILES)))
    assert len(set(epochs[0].values()) | set(epochs[1].values())) == 2 * sum(FILES)
    assert noise_of(source(folder, seed=4, shuffle=True).epoch_batches(64)) == epochs[1]
    parts = [source(folder, seed=3, shuffle=True).split(4, n, 2) for n in range(2)]
    found = [noise_of(part.epoch_batches(10)) for part in parts]
    assert found[0] | found[1] == epochs[0]
    other = source(folder, seed=3, shuffle=True, shuffle_buffer_size=9)
    assert {int(r["row"]): np.asarray(r["noise"]).tobytes() for r in other} == epochs[0]


def test_batches_are_equal_for_any_threads_and_after_any_state(folder):
    sources = [source(folder, shuffle=True, num_threads=threads) for threads in (1, 2, 16)]
    states, batches = [], []
    for _ in range(24):  # over an epoch's end
        states.append(json.dumps(sources[0].get_state()))
        found = [as_bytes(one.get_batch(31)) for one in sources]
        assert found[0] == found[1] == found[2]
        batches.append(found[0])
    for at in random.Random(0).sample(range(24), 12):
        sources[at % 3].set_state(json.loads(states[at]))
        assert as_bytes(sources[at % 3].get_batch(31)) == batches[at]


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_any_state_gives_back_the_next_batch(folder, streams, shuffle):
    choose, cases = random.Random(streams), 0
    for buffer in (1, 64, 1000):
        whole = source(folder, shuffle=shuffle, shuffle_buffer_size=buffer).split(streams)
        states, batches = [], []
        for _ in range(60):
            states.append(json.dumps(whole.get_state()))
            batches.append(as_bytes(whole.get_batch(24)))
        for at in choose.sample(range(60), 20):
            threads = choose.choice((1, 2, 16))
            fresh = source(folder, shuffle=shuffle, num_threads=threads).split(streams)
            fresh.set_state(json.loads(states[at]))
            for expected in batches[at : at + 3]:
                assert as_bytes(fresh.get_batch(24)) == expected
            cases += 1
    assert cases == 60


def test_processes_read_the_batches_of_one(folder):
    def part(index, count):
        return source(folder, shuffle=True, seed=2).split(4, index, count)

    whole, halves = part(0, 1), [part(n, 2) for n in range(2)]
    for _ in range(2):
        want = whole.read_batches(4, 16).columns
        found = [half.read_batches(4, 8).columns for half in halves]
        for name, column in want.items():
            joined = np.concatenate([part[name] for part in found], axis=1)
            assert joined.tobytes() == column.tobytes()
    state = merge_states([half.get_state() for half in halves])
    assert state == whole.get_state()


def test_another_transform_is_a_warning_once_and_none_goes_on(folder, caplog):
    fields = {"shuffle": True, "exclude_keys": {"huge"}}  # without a transform, it is refused
    sources = [source(folder, one, **fields) for one in (drawn, plain, None)]
    for one in sources:
        one.get_batch(50)
    states = [one.get_state() for one in sources]
    assert [len(state.pop("transform")) for state in states[:2]] == [16, 16]
    assert states[0] == states[1] == states[2]
    sources[2].get_batch(20)
    state = sources[2].get_state()
    rows = sources[2].get_batch(40)["row"]
    with caplog.at_level(logging.WARNING, "datarax.sources"):
        for _ in range(2):
            sources[0].set_state(state)
    assert ["without a transform" in one.getMessage() for one in caplog.records] == [True]
    assert (sources[0].get_batch(40)["row"] == rows).all()


class Bad(Exception):
    pass


def broken(row):
    def transform(record):
        made = {"x": np.zeros(3, np.float32), "row": record["row"]}
        return row(made) if record["row"] == 150 else made

    return transform


def raising(made):
    raise Bad("too dark")


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        (raising, Bad, "too dark"),
        (lambda made: made | {"x": np.zeros(4, np.float32)}, ValueError, r"float32 of shape \(4,"),
        (lambda made: made | {"x": np.zeros(3)}, ValueError, "returned float64 of shape"),
        (lambda made: {"row": 1}, ValueError, "returned the columns"),
        (lambda made: None, TypeError, "returned None"),
    ],
)
def test_an_error_names_file_and_row_and_stands_in_its_place(folder, row, kind, words):
    reader = source(folder, broken(row))
    assert len(reader.get_batch(140)["row"]) == 140
    for _ in range(2):  # the position stays where it was
        with pytest.raises(kind, match=rf"row 23 of .*2.parquet: .*{words}"):
            reader.get_batch(20)
    assert reader.get_state()["index"] == 140
    skipping = source(folder, broken(row), on_bad_rows="skip")
    if kind is Bad:
        assert 150 not in np.asarray(skipping.get_batch(200)["row"])
        assert skipping.get_operation_stats() == {"applied_count": 200, "skipped_count": 1}
    else:  # the row can be read: the transform is wrong
        with pytest.raises(kind):
            skipping.get_batch(200)


def test_one_that_blocks_is_an_error_after_the_timeout(folder):
    never = threading.Event()

    def waiting(made):
        never.wait(60)
        return made

    reader = source(folder, broken(waiting), timeout=0.2)
    with pytest.raises(TimeoutError, match=r"row 23 of .*longer than 0.2 s.*timeout=0.4"):
        reader.get_batch(200)
    never.set()
    assert len(reader.get_batch(200)["row"]) == 200


def test_arguments_are_checked():
    for fields, kind, words in [
        ({"transform": 3}, TypeError, "transform=3: expected a function"),
        ({"num_threads": 0}, ValueError, "num_threads=0"),
    ]:
        with pytest.raises(kind, match=words):
            HFStreamingConfig(name="x", split="train", **fields)


def letters(text):
    return [ord(letter) % 32 for letter in text]


class Language(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(32, 8, rngs=nnx.Rngs(0))

    def __call__(self, input_ids):
        return self.embed(input_ids) @ self.embed.embedding[...].T


def test_texts_train_a_model_and_resume_exactly(folder, tmp_path):
    def trainer(workdir, steps):
        texts = source(folder, tokenize(letters, 12), include_keys={"text"}, shuffle=True)
        return Trainer(Language(), texts, batch_size=32, steps=steps, workdir=workdir, log_every=10)

    assert trainer(None, 1).batch_at(0)["input_ids"].shape == (32, 12)
    whole = trainer(None, 20).fit()
    trainer(tmp_path, 7).fit()
    parts = trainer(tmp_path, 20).fit()
    assert whole.history[-1]["train/loss"] < whole.history[0]["train/loss"]
    for one, two in zip(
        *(jax.tree.leaves(nnx.state(r.model)) for r in (whole, parts)), strict=True
    ):
        assert one.tobytes() == two.tobytes()


@dataclasses.dataclass
class Scaled:
    """A transform that cannot be hashed."""

    by: float

    def __call__(self, record, rng):
        return {"row": record["row"], "x": rng.normal() * self.by}


def test_a_pipeline_that_is_read_ahead_gives_the_same_batches(folder):
    def pipeline():
        rows = source(folder, Scaled(2.0), shuffle=True)
        return Pipeline(source=rows, stages=[], batch_size=50)

    expected = [as_bytes(batch) for batch in pipeline()]
    with prefetch_to_device(pipeline()) as batches:
        found = [as_bytes(batch) for batch in batches]
    assert found == expected
    assert len(found) == 11
