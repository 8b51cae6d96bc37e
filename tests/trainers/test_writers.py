"""Writers: where the metrics of a run go, and what a broken one does."""

import collections
import json

import numpy as np
import pytest

from tests.support.runs import rows, said, trainer
from trainers import every
from trainers.writers import JsonLines, TensorBoard, Writers, _records

pytestmark = pytest.mark.usefixtures("compiled_once")


class Recorder:
    """A writer that keeps what it is given, and may raise."""

    def __init__(self, fails=None):
        self.fails, self.calls = fails, []

    def _note(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name == self.fails:
            raise OSError("no")

    def write_scalars(self, step, scalars):
        self._note("write_scalars", step, dict(scalars))

    def write_hparams(self, hparams):
        self._note("write_hparams", dict(hparams))

    def flush(self):
        self._note("flush")

    def close(self):
        self._note("close")


def test_a_run_writes_each_row_to_every_writer_and_closes_them(tmp_path):
    writer = Recorder()
    result = trainer(tmp_path, writers=[writer]).fit()
    (first, configuration), *calls = writer.calls
    assert (first, configuration["steps"]) == ("write_hparams", 20)
    written = [{"step": step, **scalars} for _, step, scalars in calls[:-1]]
    assert written == rows(tmp_path) == result.history
    assert writer.calls[-1] == ("close",)


def test_a_writer_that_raises_is_left_out_and_that_is_said_once(caplog):
    broken, whole = Recorder("write_scalars"), Recorder()
    writers = Writers([broken, whole])
    for step in (1, 2):
        writers.write_scalars(step, {"loss": 0.5})
    writers.close()
    (warning,) = said(caplog, "trainers.writers")
    assert "Recorder.write_scalars raised OSError: no. Training goes on without" in warning
    assert [call[0] for call in broken.calls] == ["write_scalars", "close"]
    assert [call[0] for call in whole.calls] == ["write_scalars", "write_scalars", "close"]


@pytest.mark.parametrize(
    "left",
    [
        '{"step": 1, "loss": 1.0, "time": 5}\n{"step": 2, "lo',
        '{"step": 1, "loss": 1.0, "time": 5}\n{"step": 2, "loss": 9}\n{"step": 3, "loss": 9}\n',
        '{"step": 2, "loss": 0.5, "time": 5}\nnonsense\n[1]\n',
        "",
    ],
)
def test_the_file_holds_what_the_history_says_however_it_was_left(tmp_path, left):
    path = tmp_path / "metrics.jsonl"
    path.write_text(left)
    history = [{"step": 1, "loss": 1.0}]
    writer = JsonLines(path, history)
    writer.write_scalars(2, {"loss": 0.5})
    writer.close()
    assert rows(tmp_path) == [*history, {"step": 2, "loss": 0.5}]
    assert ("time" in json.loads(path.read_text().splitlines()[0])) == left.startswith('{"step": 1')


def test_a_new_run_leaves_no_rows_of_an_old_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    JsonLines(tmp_path / "metrics.jsonl").close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_configuration_is_written_beside_it(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.write_hparams({"steps": 3, "path": tmp_path})
    writer.close()
    assert json.loads((tmp_path / "config.json").read_text()) == {"steps": 3, "path": str(tmp_path)}


def test_a_writer_needs_only_write_scalars(tmp_path, caplog):
    class Least:
        def __init__(self):
            self.steps = []

        def write_scalars(self, step, scalars):
            self.steps.append(step)

    least = Least()
    result = trainer(tmp_path, writers=[least]).fit()
    assert least.steps == [row["step"] for row in result.history]
    assert said(caplog, "trainers.writers") == []


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    def note(run):
        run.log({"nan": np.nan, "infinite": -np.inf, "whole": 1})

    trainer(tmp_path, callbacks=[note]).fit()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    last = rows(tmp_path)[-1]
    assert (last["nan"], last["infinite"], last["whole"]) == (None, None, 1)


def events(directory):
    """Returns the steps of each tag in TensorBoard's files, in order."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = collections.defaultdict(list)
    for path in sorted(directory.glob("*tfevents*")):
        for record in _records(path.read_bytes()):
            event = event_pb2.Event.FromString(record[12:-4])
            for value in event.summary.value:
                found[value.tag].append(event.step)
    return found


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoard(tmp_path)
    writer.write_scalars(3, {"train/loss": 0.5})
    writer.write_hparams({"steps": 3})
    writer.flush()
    writer.close()
    assert events(tmp_path)["train/loss"] == [3]


def test_tensorboard_files_of_one_second_are_two(tmp_path):
    pytest.importorskip("tensorboardX")
    for step in 1, 2, 3:
        writer = TensorBoard(tmp_path)
        writer.write_scalars(step, {"train/loss": 0.5})
        writer.close()
    assert events(tmp_path)["train/loss"] == [1, 2, 3]


def test_tensorboard_has_each_step_once_however_often_the_run_is_cut(tmp_path):
    pytest.importorskip("tensorboardX")

    def run(*callbacks):
        board = TensorBoard(tmp_path / "board")
        return trainer(tmp_path / "run", writers=[board], callbacks=list(callbacks)).fit()

    def fail(run):
        raise SystemExit  # at a step that is no checkpoint

    for step in (7, 11):
        with pytest.raises(SystemExit):
            run(every(step, fail))
    (*_, last) = sorted((tmp_path / "board").iterdir())
    last.write_bytes(last.read_bytes()[:-3])  # cut off by the kill
    expected = [row["step"] for row in run().history if "train/loss" in row]
    assert events(tmp_path / "board")["train/loss"] == expected
