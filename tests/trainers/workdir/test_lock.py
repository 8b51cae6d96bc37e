"""The lock on a workdir: one run at a time, and a killed one blocks nobody."""

import os
import subprocess
import sys
import time

import pytest
from etils import epath

from trainers.workdir.lock import leased, locked

HOLD = """
import sys
from etils import epath
from trainers.workdir.lock import leased, locked

workdir = epath.Path(sys.argv[1])
with locked(workdir) if sys.argv[2] == "lock" else leased(workdir, 0.1):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts processes that hold the workdir until their input ends."""
    processes = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


def test_a_second_run_is_refused_and_a_killed_one_blocks_nobody(tmp_path, hold):
    process, workdir = hold("lock"), epath.Path(tmp_path)
    message = rf"Another run uses workdir='.*' \(process {process.pid} on .*\): wait for it to end"
    with pytest.raises(RuntimeError, match=message), locked(workdir):
        pass
    process.kill()
    process.wait()
    with locked(workdir):
        pass


def test_where_there_are_no_locks_a_lease_that_is_renewed_is_respected(tmp_path, hold):
    process, workdir = hold("lease"), epath.Path(tmp_path)
    with pytest.raises(RuntimeError, match="Another run uses workdir="), leased(workdir, 0.3):
        pass
    process.kill()
    process.wait()
    begun = time.monotonic()
    with leased(workdir, 0.3):  # it is not renewed, so its run is dead
        assert 0.9 < time.monotonic() - begun < 3
        assert f"process {os.getpid()} on" in (workdir / "lease").read_text()
    assert not (workdir / "lease").exists()


@pytest.mark.slow
def test_a_lease_that_ended_is_free_at_once(tmp_path, hold):
    process, workdir = hold("lease"), epath.Path(tmp_path)
    process.stdin.close()
    process.wait()
    begun = time.monotonic()
    with leased(workdir, 30):
        assert time.monotonic() - begun < 1
    with leased(workdir, 30):
        pass
