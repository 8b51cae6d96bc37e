"""A run on a stream by several real processes: the same as one of a single process."""

import signal

import numpy as np
import pytest

from tests.support import streamworker
from tests.support.processes import Group

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight files of different lengths, some of them empty or of one row."""
    return streamworker.save(tmp_path_factory.mktemp("stream"))


def _assert_layout(found, expected):
    for name in ("batches", "ids", "epochs"):
        assert found[name] == expected[name], name
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    assert found["evaluate"] == pytest.approx(expected["evaluate"], rel=1e-5)
    np.testing.assert_allclose(found["predict"], expected["predict"], rtol=1e-5, atol=1e-6)


def test_two_processes_read_a_stream_as_one_does(two, folder):
    expected = streamworker.layout(folder, 4)
    assert len(expected["predict"]) == sum(streamworker.ROWS)
    # Their readers wait, one longer than the other.
    one, other = two.results(streamworker.layout, folder, 4, 0.01)
    assert one == other
    _assert_layout(one, expected)


@pytest.mark.slow
def test_a_stream_goes_from_two_processes_to_one_and_back(two, folder, tmp_path):
    expected = streamworker.diary(folder, shards=4).fit()
    workdir = str(tmp_path)
    for found in two.results(streamworker.go_on, folder, workdir, 7, signal.SIGTERM, 1, 4):
        assert (found["status"], found["step"]) == ("preempted", 7)
    found = streamworker.go_on(folder, workdir, 13, process=0, shards=4)
    assert (found["status"], found["step"]) == ("preempted", 13)
    for found in two.results(streamworker.go_on, folder, workdir, None, None, None, 4):
        assert found["status"] == "finished"
        np.testing.assert_allclose(found["losses"], streamworker.losses(expected), rtol=1e-5)


def test_what_one_process_cannot_read_all_raise(two, tmp_path):
    folder = streamworker.save(tmp_path, rows=[20] * 8)
    file = tmp_path / "5.parquet"
    file.write_bytes(file.read_bytes()[:200])
    replies = two.call(streamworker.layout, folder, 4)
    for reply in replies:
        assert reply.error is not None
        assert "5.parquet" in reply.message, reply.traceback


def test_streams_that_are_not_a_multiple_of_the_processes_are_refused(two, tmp_path):
    folder = streamworker.save(tmp_path, rows=[20] * 8)
    for reply in two.call(streamworker.of_three, folder):
        assert reply.error == "ValueError", reply.traceback
        assert "3 streams cannot be dealt to 2 processes" in reply.message


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (1, 8), (2, 4), (4, 1), (4, 2)])
def test_every_layout_reads_a_stream_as_one_device_does(folder, processes, devices):
    with Group(processes, devices) as group:
        for shards in (1, 4):
            expected = streamworker.layout(folder, shards)
            found = group.results(streamworker.layout, folder, shards)
            assert all(one == found[0] for one in found)
            # Readers that wait hand over other blocks: the same run, bit for bit, and so are the
            # records that fill its batches up.
            assert group.results(streamworker.layout, folder, shards, 0.01) == found
            _assert_layout(found[0], expected)


@pytest.mark.slow
def test_a_stream_goes_from_four_processes_to_two_to_one_to_four(folder, tmp_path):
    workdir, expected = str(tmp_path), streamworker.diary(folder, shards=4).fit()
    for processes, devices, step in ((4, 2, 6), (2, 1, 11), (1, 4, 17)):
        with Group(processes, devices) as group:
            arguments = folder, workdir, step, signal.SIGTERM, processes - 1, 4
            for found in group.results(streamworker.go_on, *arguments):
                assert (found["status"], found["step"]) == ("preempted", step)
    with Group(4, 1) as group:
        for found in group.results(streamworker.go_on, folder, workdir, None, None, None, 4):
            assert found["status"] == "finished"
            np.testing.assert_allclose(found["losses"], streamworker.losses(expected), rtol=1e-5)
