"""Runs a script as several processes on this machine, each with simulated devices.

    python examples/pod/local.py --processes 2 --devices 4 examples/pod/train.py --workdir runs/pod

What a scheduler does with a run on a pod can be tried so: Ctrl-C stops it; SIGTERM to this process
preempts it; with --restarts it is started again, with the next of the numbers of --processes:

    python examples/pod/local.py --processes 2 4 --restarts 1 --preempt-after 30 \\
        examples/pod/train.py

Process 0 writes to this terminal; of the others the last lines are shown if they fail.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

ASKED = 0, 75, 130  # exit status of a process that finished, was preempted, or had Ctrl-C
LINES = 30  # shown of a process that failed


class Processes:
    """The processes of one start.

    Args:
        command: A script and its arguments.
        count: Number of processes.
        devices: Simulated devices of each.
    """

    def __init__(self, command: list[str], count: int, devices: int):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
        self._outputs = [tempfile.TemporaryFile("w+") for _ in range(1, count)]  # noqa: SIM115
        self._processes = []
        for index in range(count):
            output = None if index == 0 else self._outputs[index - 1]
            environment = {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags.strip(),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
            process = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                # Or the terminal's Ctrl-C would reach it too, and a second one ends it at once.
                start_new_session=True,
            )
            self._processes.append(process)

    def codes(self) -> list[int | None]:
        """Returns the exit status of each process, None of one that is running."""
        return [process.poll() for process in self._processes]

    def send(self, number: int) -> None:
        """Sends a signal to those that are running."""
        for process in self._processes:
            process.send_signal(number)

    def close(self) -> None:
        """Ends those that are running, and shows the last lines of those that failed."""
        self.send(signal.SIGKILL)
        for index, process in enumerate(self._processes):
            code = process.wait()
            if index and code not in ASKED:
                output = self._outputs[index - 1]
                output.seek(0)
                print(f"--- process {index}, exit status {code}:", file=sys.stderr)
                sys.stderr.writelines(output.readlines()[-LINES:])


def run(processes: Processes, heard: list[int], grace: float, preempt_after: float | None) -> int:
    """Waits for the processes, passes signals on, and returns the exit status of the first to fail.

    As a scheduler does, it ends all when one has failed.

    Args:
        processes: The processes.
        heard: Signals to pass on; it grows while this runs.
        grace: Seconds between a signal, or a failure, and SIGKILL.
        preempt_after: Seconds until a SIGTERM, or None.
    """
    begun, deadline, passed, failed = time.monotonic(), float("inf"), 0, 0
    while None in (codes := processes.codes()):
        now = time.monotonic()
        if preempt_after is not None and now > begun + preempt_after:
            heard.append(signal.SIGTERM)
            preempt_after = None
        for number in heard[passed:]:
            processes.send(number)
            passed, deadline = passed + 1, min(deadline, now + grace)
        failed = failed or next(filter(None, codes), 0)
        if failed:
            deadline = min(deadline, now + grace)
        if now > deadline:
            break
        time.sleep(0.05)
    return failed or next(filter(None, processes.codes()), 0) or int(None in codes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2], help="one number, or one of each start"
    )
    parser.add_argument("--devices", type=int, default=1, help="simulated devices of a process")
    parser.add_argument("--restarts", type=int, default=0, help="times to start it again")
    parser.add_argument("--preempt-after", type=float, help="seconds until SIGTERM, once")
    parser.add_argument("--grace", type=float, default=60, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("script", help="a Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    args = parser.parse_args()

    heard: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: heard.append(number))
    for start in range(args.restarts + 1):
        heard.clear()
        count = args.processes[min(start, len(args.processes) - 1)]
        processes = Processes([args.script, *args.arguments], count, args.devices)
        try:
            preempt_after = None if start else args.preempt_after
            code = run(processes, heard, args.grace, preempt_after)
        finally:
            processes.close()
        if code == 0 or signal.SIGINT in heard or start == args.restarts:
            break
        print(f"--- exit status {code}: starting again", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
