"""Rows that go wrong during a run: the words of what `fit` raises, and how the run goes on."""

import io
import logging
import os
import re
import resource
import shutil
import subprocess
import threading

import datasets
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

from datarax import HFEagerSource, HFIndexedSource, HFStreamingConfig, HFStreamingSource
from datarax.columns import image_cache
from tests.support.models import MLP, assert_same, points
from trainers import Trainer

N, BAD = 40, 23
KINDS = HFEagerSource, HFIndexedSource, HFStreamingSource

pytestmark = pytest.mark.usefixtures("compiled_once")


def loss(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["label"])


def trainer(source, **arguments):
    arguments = {"loss": loss, "batch_size": 8, "steps": 12, "log_every": 4, **arguments}
    return Trainer(MLP(), source, **arguments)


def same(one, other):
    assert one.history == other.history
    assert_same(one.model, other.model)


def chosen(record):
    return {name: record[name] for name in ("x", "label")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The rows as an Arrow file, and as Parquet files."""
    folder, rows = tmp_path_factory.mktemp("rows"), datasets.Dataset.from_dict(points(N))
    rows.save_to_disk(folder / "arrow")
    (folder / "parquet").mkdir()
    for start in range(0, N, 10):
        rows.select(range(start, start + 10)).to_parquet(folder / f"parquet/train-{start}.parquet")
    return folder


def by_number(folder, **fields):
    rows = datasets.load_from_disk(folder / "arrow")
    return HFIndexedSource.from_dataset(rows, shuffle=True, seed=3, **fields)


def in_order(folder, **fields):
    fields = {"name": str(folder / "parquet"), "split": "train", "shuffle": True, **fields}
    return HFStreamingSource(HFStreamingConfig(streaming=True, shuffle_buffer_size=16, **fields))


# --- what a transform returns, or does not -------------------------------------------------------


class Faulty:
    """A transform that makes something else of record 23 where `fault` says of what."""

    fault = None

    def __call__(self, record):
        made = chosen(record)
        return self.fault(made) if self.fault and record["id"] == BAD else made


_NEVER = threading.Event()

FAULTS = {
    "another shape": (
        lambda made: made | {"x": np.zeros(5, np.float32)},
        ValueError,
        r"'x': the transform \S+ returned float32 of shape \(5,\), and float32 of shape \(4,\) "
        "for the first record. Pad, cut or resize it",
    ),
    "another dtype": (
        lambda made: made | {"x": made["x"].astype(np.float64)},
        ValueError,
        r"returned float64 of shape \(4,\), and float32 of shape \(4,\) for the first record",
    ),
    "other columns": (
        lambda made: {"x": made["x"]},
        ValueError,
        "returned the columns 'x', and 'x', 'label' for the first record: return the same",
    ),
    "None": (lambda made: None, TypeError, "returned None: return a dict of at least one column"),
    "an error": (lambda made: 1 / 0, ZeroDivisionError, "division by zero"),
    "nothing for ever": (
        lambda made: _NEVER.wait(),
        TimeoutError,
        r"took longer than 0.2 s. Let it wait for nothing, or give it longer: timeout=0.4",
    ),
}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (by_number, "record 23: "),
        pytest.param(in_order, r"row 3 of \S+train-20.parquet.*: ", marks=pytest.mark.slow),
    ],
    ids=["by number", "in order"],
)
def test_a_run_names_the_record_and_goes_on_where_it_was(folder, make, named, caplog):
    expected = trainer(make(folder, transform=chosen)).fit()
    transform = Faulty()
    run = trainer(make(folder, transform=transform, timeout=0.2))
    for transform.fault, kind, words in FAULTS.values():
        with pytest.raises(kind, match=named + ".*" + words):
            run.fit()
    transform.fault = lambda made: made | {"x": jnp.asarray(made["x"])}
    with caplog.at_level(logging.WARNING, "datarax"):
        same(expected, run.fit())
    (hint,) = caplog.messages
    assert "returns 'x' as a JAX array" in hint
    assert hint.endswith("compute it with NumPy.")


@pytest.mark.parametrize("name", FAULTS)
def test_an_eager_source_names_the_record_while_it_loads(folder, name):
    transform, rows = Faulty(), datasets.load_from_disk(folder / "arrow")
    transform.fault, kind, words = FAULTS[name]
    with pytest.raises(kind, match="record 23: .*" + words):
        HFEagerSource.from_dataset(rows, transform=transform, timeout=0.2)


# --- rows that cannot be decoded -----------------------------------------------------------------


def pictures(damaged):
    """Returns rows of small pictures, one of them cut off."""
    random, files = np.random.default_rng(0), []
    for row in range(N):
        file = io.BytesIO()
        PIL.Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(file, "PNG")
        encoded = file.getvalue()[: 60 if row == damaged else None]
        files.append({"bytes": encoded, "path": f"d/{row}.png"})
    features = {"image": datasets.Image(), "label": datasets.Value("int32")}
    columns = {"image": files, "label": [row % 3 for row in range(N)]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def first_pixels(record):
    return {"x": np.float32(np.asarray(record["image"])[0, :4]), "label": record["label"]}


def test_a_picture_that_cannot_be_decoded_ends_the_run_or_has_no_weight():
    def source(**fields):
        fields |= {"transform": first_pixels, "seed": 3}
        return HFIndexedSource.from_dataset(pictures(BAD), **fields)

    with pytest.raises(OSError, match=r"record 23 \(d/23.png\): image file is truncated") as raised:
        trainer(source()).fit()
    assert "Leave such rows out with on_bad_rows='skip'." in raised.value.__notes__[0]
    result = trainer(source(on_bad_rows="skip"), steps=15).fit()
    assert result.history[-1]["rows_seen"] == 3 * (N - 1)


# --- files ---------------------------------------------------------------------------------------


class Striking:
    """A transform that does something when it is given record 23 for the first time."""

    def __init__(self, strike):
        self.strike = strike

    def __call__(self, record):
        if record["id"] == BAD and self.strike is not None:
            strike, self.strike = self.strike, None
            strike()
        return chosen(record)


@pytest.mark.parametrize("transformed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_mapped_file_is_read_on_where_it_is_removed_and_named_where_it_is_cut_off(
    folder, tmp_path, transformed
):
    def copied(name):
        shutil.copytree(folder / "arrow", tmp_path / name)
        (file,) = (tmp_path / name).glob("*.arrow")
        return datasets.load_from_disk(tmp_path / name), file

    def run(rows, strike):
        fields = {"transform": Striking(strike)} if transformed else {"exclude_keys": {"id"}}
        fields |= {"shuffle": True, "seed": 3, "num_threads": 1}
        one = trainer(HFIndexedSource.from_dataset(rows, **fields))
        if not transformed:  # while nothing is read: a read that is under way would be killed
            one.fit(steps=4)
            strike()
        return one

    expected = trainer(by_number(folder, exclude_keys={"id"})).fit()
    rows, file = copied("removed")
    same(expected, run(rows, file.unlink).fit(steps=12))
    rows, file = copied("cut off")
    whole = file.read_bytes()
    one = run(rows, lambda: os.truncate(file, len(whole) // 2))
    words = r"\.arrow has \d+ bytes, and had \d+ when it was opened.*Write the dataset again"
    with pytest.raises(OSError, match=words):
        one.fit(steps=12)
    file.write_bytes(whole)  # it is still mapped
    same(expected, one.fit(steps=12))


@pytest.mark.parametrize(
    ("strike", "kind", "words"),
    [
        (lambda file: file.unlink(), FileNotFoundError, "No such file"),
        pytest.param(
            *(lambda file: os.truncate(file, 300), ValueError, "the rest cannot be read .*Repair"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["removed", "cut off"],
)
def test_a_file_of_a_stream_is_named_where_it_is_removed_or_cut_off(
    folder, tmp_path, strike, kind, words
):
    shutil.copytree(folder / "parquet", tmp_path / "parquet")
    file = tmp_path / "parquet" / "train-30.parquet"
    whole, fields = file.read_bytes(), {"shuffle": False}
    one = trainer(in_order(tmp_path, transform=Striking(lambda: strike(file)), **fields))
    with pytest.raises(kind, match=f"{file}, row 0: .*{words}"):
        one.fit()
    file.write_bytes(whole)
    same(trainer(in_order(folder, transform=chosen, **fields)).fit(), one.fit())


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 1 MB; where none can be mounted, of files of 1 MB at most."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") and not subprocess.run(mount, capture_output=True).returncode:
        yield tmp_path
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_no_pictures_and_the_run_goes_on_without(full_disk, caplog, monkeypatch):
    random = np.random.default_rng(0)
    images = [PIL.Image.fromarray(random.integers(0, 256, (160, 200), np.uint8)) for _ in range(N)]
    features = {"image": datasets.Image(), "label": datasets.Value("int32")}
    rows = {"image": images, "label": [row % 3 for row in range(N)]}  # 1.28 MB of pixels
    rows = datasets.Dataset.from_dict(rows, features=datasets.Features(features))

    def first(model, batch):
        return loss(model, batch | {"x": batch["image"][:, 0, :4] / 255})

    def result(kind):
        source = kind.from_dataset(rows, shuffle=True, seed=3)
        return trainer(source, loss=first, steps=7).fit()

    monkeypatch.setenv("DATARAX_CACHE_DIR", str(full_disk))
    monkeypatch.setenv("DATARAX_CACHE", "0")
    expected = result(HFEagerSource)
    monkeypatch.setenv("DATARAX_CACHE", "1")
    for kind in (HFEagerSource, HFIndexedSource):
        image_cache._warn_once.cache_clear()
        caplog.clear()
        same(expected, result(kind))
        assert len(caplog.messages) == 1
        assert re.search("not kept in .*(No space left|File too large).*every start", caplog.text)
        assert list((full_disk / "images").iterdir()) == []


# --- a dataset with a function of its own --------------------------------------------------------


def test_a_dataset_that_changes_rows_when_they_are_read_is_told_of_transform(folder):
    rows = datasets.load_from_disk(folder / "arrow")
    custom = rows.with_transform(lambda batch: batch)
    rows.set_transform(lambda batch: batch)
    for made in (
        lambda: trainer(custom),
        lambda: trainer(rows),
        lambda: trainer(by_number(folder), eval_source=custom),
        lambda: trainer(by_number(folder)).evaluate(custom),
        *(lambda kind=kind: kind.from_dataset(custom) for kind in KINDS),
    ):
        with pytest.raises(ValueError, match=r"from_dataset\(ds.with_format\(None\), transform="):
            made()
