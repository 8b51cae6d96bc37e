"""Several Python processes that make up one run of JAX, on this machine."""

import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds, after which processes count as hanging


@dataclass(frozen=True)
class Reply:
    """What a process answered: what a function returned, or what it raised."""

    result: Any = None
    error: str | None = None
    message: str = ""
    traceback: str = ""


class Group:
    """Processes that have found each other, and call functions together when told to.

    To start them takes seconds, most of it imports: one group serves many calls.

    Args:
        processes: How many.
        devices: Simulated devices of each.
        lost_after: Seconds without a sign of life after which a process counts as lost.
    """

    def __init__(self, processes: int, devices: int = 1, *, lost_after: int = 60):
        self._folder = tempfile.TemporaryDirectory(prefix="process-group-")
        flags = os.environ.get("XLA_FLAGS", "")
        env = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_COMPILATION_CACHE_DIR": self._folder.name,  # each program is compiled once
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-W", "error", "-m", __name__, str(lost_after)]
        self.processes = []
        for index in range(processes):
            with self._log(index).open("w") as log:
                process = subprocess.Popen(
                    command,
                    env={**env, "JAX_PROCESS_ID": str(index)},
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self.processes.append(process)

    def call(self, function, *arguments: Any) -> list[Reply]:
        """Returns what a function of a test module does on each process.

        Args:
            function: A function at the top of a module.
            *arguments: JSON-able.
        """
        self.begin(function, *arguments)
        return [self._reply(index) for index in range(len(self.processes))]

    def results(self, function, *arguments: Any) -> list[Any]:
        """Returns what a function returns on each process; raises where one raised."""
        replies = self.call(function, *arguments)
        for index, reply in enumerate(replies):
            assert reply.error is None, f"process {index}: {reply.traceback}"
        return [reply.result for reply in replies]

    def begin(self, function, *arguments: Any) -> None:
        """Has a function called, and does not wait."""
        request = [function.__module__, function.__name__, arguments]
        for process in self.processes:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()

    def ended(self, index: int) -> tuple[int, str]:
        """Waits until a process ends by itself; returns its exit status and what it said."""
        status = self.processes[index].wait(PATIENCE)
        return status, self.log(index)

    def log(self, index: int) -> str:
        """Returns what a process has said so far."""
        return self._log(index).read_text()

    def _log(self, index):
        return Path(self._folder.name) / f"{index}.log"

    def _reply(self, index):
        process = self.processes[index]
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if ready else ""
        if not line:
            what = "has ended" if ready else "hangs"
            raise RuntimeError(f"Process {index} {what}:\n{self.log(index)[-3000:]}")
        return Reply(**json.loads(line))

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.stdin.close()
        deadline = time.monotonic() + 10
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._folder.cleanup()


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _serve(lost_after: int) -> None:
    wire = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed goes to the log
    from trainers import initialize

    initialize(lost_after=lost_after)
    for line in sys.stdin:
        module, function, arguments = json.loads(line)
        try:
            result = getattr(importlib.import_module(module), function)(*arguments)
            reply = Reply(result)
        except Exception as error:
            reply = Reply(None, type(error).__name__, str(error), traceback.format_exc())
        wire.write(json.dumps(vars(reply)) + "\n")
        wire.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
