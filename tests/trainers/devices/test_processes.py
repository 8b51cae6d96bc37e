"""One run of several real processes: the same as one of a single process, whatever ends them."""

import functools
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys

import datasets
import numpy as np
import PIL.Image
import pytest

from tests.support import worker
from tests.support.processes import ROOT, Group, free_port
from tests.support.runs import rows
from trainers import load

pytestmark = pytest.mark.usefixtures("compiled_once")

# Processes, and devices of each.
GRID = [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)]


@pytest.fixture(scope="module")
def whole(compiled_once):
    """The records of each step of an uninterrupted run, and its losses."""
    result = worker.diary().fit()
    return worker.records(result.model), worker.losses(result)


_alone = functools.cache(worker.layout)  # on one device


def _assert_layout(group, *arguments):
    """Asserts that a group does the same as one device, to the bit the same each time."""
    n, shards, _, steps = arguments
    expected = _alone(n, shards, "replicate", steps)
    found, *others = group.results(worker.layout, *arguments)
    assert all(one == found for one in others)
    epoch = sum(found["ids"][: len(found["ids"]) // 2], [])
    assert sorted(epoch) == list(range(n))
    for name in ("batches", "ids", "records"):
        assert found[name] == expected[name], name
    assert len(found["losses"]) == steps
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-6)
    assert found["evaluate"] == pytest.approx(expected["evaluate"], rel=1e-6)
    np.testing.assert_allclose(found["predict"], expected["predict"], rtol=1e-5, atol=1e-6)
    return found


# --- the same on all layouts ---------------------------------------------------------------------


@pytest.mark.slow  # so does, below, a run that goes from two to one and back
def test_two_processes_do_what_one_does(two):
    _assert_layout(two, 101, 8, "fsdp", 20)


@pytest.mark.slow  # so do two
def test_four_processes_do_what_one_does(images):
    with Group(4) as group:
        _assert_layout(group, 101, 8, "replicate", 20)
        _assert_decoded(group, images)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), GRID)
def test_every_layout_does_what_one_device_does(processes, devices, images):
    with Group(processes, devices) as group:
        for n, shards in itertools.product((96, 101), (1, 8)):
            found = _assert_layout(group, n, shards, "replicate", 100)
        assert _assert_layout(group, n, shards, "replicate", 100) == found  # bit for bit
        _assert_layout(group, 96, 1, "fsdp", 100)
        _assert_layout(group, 101, 8, "fsdp", 100)
        _assert_decoded(group, images)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A dataset of 101 PNG images on disk."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (101, 6, 6, 3)).astype(np.uint8)
    return _saved([_png(image) for image in pixels], tmp_path_factory.mktemp("images"))


def _png(pixels):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _saved(files, folder):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
    rows = {"image": [{"bytes": file} for file in files], "label": list(range(len(files)))}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return str(folder)


_decoded_alone = functools.cache(worker.decoded)


def _assert_decoded(group, images):
    """Asserts that each process reads and decodes its share, up to the number of shards."""
    alone, share = _decoded_alone(images), 101 / len(group.processes)
    replies = group.results(worker.decoded, images)
    for found in replies:
        assert abs(found["decoded"] - share) <= 8
        assert abs(found["held"] - share) <= 8
        assert found["seen"] == alone["seen"]
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert sum(found["held"] for found in replies) == 101


@pytest.mark.slow
def test_a_process_decodes_only_the_rows_of_its_shards(two, images):
    """So it is on one, on two and, above, on more processes."""
    alone = _decoded_alone(images)
    assert sorted(alone["seen"]) == list(range(101))
    assert (alone["decoded"], alone["held"]) == (101, 101)
    _assert_decoded(two, images)


def test_what_one_process_cannot_read_all_raise(two, images, tmp_path):
    dataset = datasets.load_from_disk(images).cast_column("image", datasets.Image(decode=False))
    files = [row["image"]["bytes"] for row in dataset]
    files[33] = files[33][:60]
    replies = two.call(worker.broken, _saved(files, tmp_path / "broken"))
    assert sorted(reply.error for reply in replies) == ["RuntimeError", "ValueError"]
    for reply in replies:
        assert "row 33" in reply.message
        assert "Process" in reply.message or reply.error == "ValueError"


@pytest.mark.slow
def test_a_record_that_is_not_finite_is_named_on_every_process(two):
    for found in two.results(worker.diverge):
        (t, row), (said,) = found["at"], found["said"]
        assert found["found"] == ["diverged", t]
        assert f"By itself, so is row {row} (record 33)" in said
        assert f"batch_at({t})" in said


# --- preempted, damaged, killed ------------------------------------------------------------------


def test_a_run_goes_from_two_processes_to_one_and_back(two, whole, tmp_path):
    records, losses = whole
    workdir = str(tmp_path)
    for found in two.results(worker.go_on, workdir, 7):  # of which one gets SIGTERM
        assert (found["status"], found["step"]) == ("preempted", 7)
    found = worker.go_on(workdir, 13, process=0)
    assert (found["status"], found["step"]) == ("preempted", 13)
    one, other = two.results(worker.go_on, workdir, 19, signal.SIGTERM, 0)
    assert (other["status"], other["step"]) == ("preempted", 19)
    assert (one["writes"] > 0, other["writes"]) == (True, 0)  # only the first process writes
    # The newest checkpoint is damaged: all take the one before.
    for found in two.results(worker.mend, workdir):
        assert found["status"] == "finished"
        assert found["records"] == records
        (said,) = found["said"]
        assert "checkpoints/19 is damaged" in said
        assert "Step 16 before it is taken" in said
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, worker.STEPS + 1))
    np.testing.assert_allclose([r["train/loss"] for r in rows(tmp_path)], losses, rtol=1e-5)
    assert len(list((tmp_path / "checkpoints").glob("damaged-19-*"))) == 1


@pytest.mark.slow
def test_weights_load_on_other_processes_and_devices(two, tmp_path):
    workdir = str(tmp_path / "two")
    one, other = two.results(worker.spread, workdir)
    assert one == other
    assert not one["whole"]
    assert one["best"] == [5, 0]
    assert os.listdir(tmp_path / "two" / "best") == ["5"]
    assert worker.loaded(workdir) == [one["loaded"]] * 2
    assert one["exported"] == one["loaded"]
    assert len(load(workdir)["inner"]["hidden"]["kernel"]) == 4
    alone = str(tmp_path / "one")
    result = worker.diary(alone, steps=8).fit()
    np.testing.assert_allclose(worker.losses(result), one["losses"], rtol=1e-6)
    assert two.results(worker.loaded, alone) == [worker.loaded(alone)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(whole, tmp_path, victim):
    with Group(2, lost_after=10) as group:
        group.begin(worker.go_on, str(tmp_path), 10, signal.SIGKILL, victim)
        assert group.ended(victim)[0] == -signal.SIGKILL
        status, said = group.ended(1 - victim)
        assert status != 0
        assert "another task died" in said
    found = worker.go_on(str(tmp_path))
    assert found["status"] == "finished"
    assert found["records"] == whole[0]
    np.testing.assert_allclose(found["losses"], whole[1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 8])
def test_from_four_processes_to_two_to_one_to_four(tmp_path, shards):
    workdir, expected = str(tmp_path), worker.diary(shards=shards).fit()
    with Group(4, 2) as group:
        for found in group.results(worker.go_on, workdir, 6, signal.SIGTERM, 2, shards):
            assert (found["status"], found["step"]) == ("preempted", 6)
    with Group(2, 1, lost_after=10) as group:
        group.begin(worker.go_on, workdir, 11, signal.SIGKILL, 1, shards)
        assert all(group.ended(index)[0] != 0 for index in range(2))
    with Group(1, 4) as group:
        (found,) = group.results(worker.go_on, workdir, 17, signal.SIGTERM, 0, shards)
        assert (found["status"], found["step"]) == ("preempted", 17)
    with Group(4, 1) as group:
        for found in group.results(worker.go_on, workdir, None, None, None, shards):
            assert found["status"] == "finished"
            assert found["records"] == worker.records(expected.model)
            np.testing.assert_allclose(found["losses"], worker.losses(expected), rtol=1e-5)


# --- what differs from process to process --------------------------------------------------------

DIFFERENT = {
    "data": "the data's fingerprint",
    "length": "the data's fingerprint",
    "seed": "the order",
    "shards": "the order",
    "batch_size": "batch_size: process 0 has 16, process 1 has 32",
    "steps": "steps: process 0 has 4, process 1 has 5",
    "accumulate": "accumulate: process 0 has 1, process 1 has 2",
    "log_every": "log_every: process 0 has 100, process 1 has 2",
    "ema": "ema: process 0 has 0.9, process 1 has 0.99",
    "parameters": "the model's first parameters",
    "loss": 'loss: process 0 has "loss"',
    "callbacks": "callbacks",
    "evaluation data": "the data's fingerprint",
    "evaluation names": "the names of what to evaluate on",
}


OFTEN = {"data", "seed", "batch_size", "parameters", "loss", "callbacks"}


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=[] if what in OFTEN else pytest.mark.slow) for what in DIFFERENT],
)
def test_what_differs_is_named_on_every_process_before_step_0(two, what):
    for reply in two.call(worker.disagree, what):
        assert reply.error == "ValueError", reply.traceback
        assert f"The processes disagree on {DIFFERENT[what]}" in reply.message
        assert "Start the same script with the same data on each." in reply.message


OTHER = {
    "data": "The processes disagree on the data's fingerprint",
    "parameters": "The processes disagree on the model's parameters",
    "a stage": r"The processes disagree on the (evaluation|prediction)'s program: the code of the",
    "a stage that fails": "ZeroDivisionError: in a stage|^in a stage",
    "a type": "source is a int: expected a source",
    "no source": "The processes disagree on the names of what|source is a NoneType: expected",
    "names": r"The processes disagree on the names of what to evaluate on|source is a dict: exp",
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("evaluate", "data"),
        ("predict", "a stage"),
        *(
            pytest.param(kind, what, marks=pytest.mark.slow)
            for kind in ("evaluate", "predict")
            for what in OTHER
            if (kind, what) not in (("evaluate", "data"), ("predict", "a stage"))
        ),
    ],
)
def test_what_differs_in_an_evaluation_is_named_on_every_process(two, kind, what):
    for reply in two.call(worker.evaluate_other, kind, what):
        assert reply.error is not None, reply
        assert re.search(OTHER[what], reply.message), reply.traceback


def test_a_callback_of_one_process_stops_all(two):
    expected = ["stopped", 6, ["epoch", "eval/loss", "rows_seen", "step", "train/loss"]]
    assert two.results(worker.stopped) == [expected] * 2


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("raises", "ZeroDivisionError", "in a callback"),
        pytest.param("answers", "TypeError", "returned a ndarray: return True to stop", marks=SLOW),
        pytest.param(
            "history", "TypeError", "A callback put a str into run.history[-1]['mine']", marks=SLOW
        ),
    ],
)
def test_a_callback_of_one_process_fails_all(two, what, error, words):
    one, other = two.call(worker.failing, what)
    assert other.error == error
    assert words in other.message
    assert one.error == "RuntimeError"
    assert one.message.startswith(f"Process 1 of 2 failed: {error}: ")
    assert words in one.message


# --- initialize ----------------------------------------------------------------------------------


_CODE = """
import jax, json, os, sys, trainers
said, (has_run, calls) = [], json.loads(sys.argv[1])
if has_run:
    jax.devices()
for arguments, env in calls:
    os.environ.update(env)
    try:
        trainers.initialize(**arguments)
        said.append(None)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    for name in env:
        del os.environ[name]
print(json.dumps(said))
"""


def _begun(*calls, has_run=False):
    """Begins a process that calls `initialize` with some arguments in some environments."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "SLURM_", "OMPI_"))}
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, json.dumps([has_run, calls])],
        env={**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _call(address=None, count=None, index=None, env=None, **more):
    arguments = {"coordinator_address": address, "num_processes": count, "process_id": index}
    return {**arguments, **more}, env or {}


def test_one_process_joins_nothing_and_what_makes_no_sense_is_refused():
    expected = [
        (_call(), None),
        (_call("localhost:1", 1, 0), None),
        (_call(env={"JAX_NUM_PROCESSES": "1"}), None),
        (_call("localhost:1"), "num_processes=None and process_id=None: give all three, or none"),
        (_call(None, 2, 0), "coordinator_address=None, num_processes=2 and process_id=0: give"),
        (_call(env={"JAX_NUM_PROCESSES": "2"}), "coordinator_address=None, num_processes=2 and"),
        (_call(env={"JAX_PROCESS_ID": "x"}), "JAX_PROCESS_ID='x': expected a number"),
        (_call("localhost", 2, 1), "coordinator_address='localhost': expected host:port"),
        (_call("localhost:1", 2, 2), "process_id < num_processes"),
    ]
    _assert_said(expected, "ValueError")


def test_after_a_computation_one_process_is_alone_and_one_of_many_an_error():
    late = "says that there are other processes, but JAX has run something already"
    here = f"localhost:{free_port()}"
    expected = [
        (_call(), None),
        (_call(env={"JAX_NUM_PROCESSES": "1"}), None),
        (_call(env={"SLURM_STEP_NUM_TASKS": "1"}), None),
        (_call(here, 2, 1), f"coordinator_address={here} {late}"),  # where nobody listens
        (_call(env={"JAX_NUM_PROCESSES": "2"}), f"num_processes=2 {late}"),
        (_call(env={"SLURM_STEP_NUM_TASKS": "4"}), f"SLURM_STEP_NUM_TASKS {late}"),
        (_call(env={"TPU_WORKER_HOSTNAMES": "a,b"}), f"TPU_WORKER_HOSTNAMES {late}"),
    ]
    _assert_said(expected, "RuntimeError", has_run=True)


def _assert_said(expected, error, **how):
    out, errors = _begun(*[call for call, _ in expected], **how).communicate()
    for said, (call, words) in zip(json.loads(out), expected, strict=True):
        assert (said is None) == (words is None), (call, said)
        assert words is None or (words in said and said.startswith(error)), said
    assert not errors


@pytest.mark.slow
def test_processes_that_do_not_find_each_other_say_so():
    here, there = (f"localhost:{free_port()}" for _ in range(2))
    waits, asks = _begun(_call(here, 2, 0, timeout=2)), _begun(_call(there, 2, 1, timeout=2))
    out, _ = asks.communicate()
    words = "of 2 did not find the others at {} within 2 s. Is process 0 running"
    (said,) = json.loads(out)
    assert said.startswith(f"RuntimeError: Process 1 {words.format(there)}")
    # Process 0 waits for others that do not come. JAX ends it.
    _, errors = waits.communicate()
    assert waits.returncode != 0
    assert f"Process 0 {words.format(here)}" in errors
