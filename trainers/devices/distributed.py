"""The processes of a run: one line at the start of a script, before anything else of JAX."""

import logging
import os
import socket
import threading
import time

import jax

from trainers.devices.private import has_backends, is_in_cluster

logger = logging.getLogger(__name__)

_GRACE = 2  # seconds that JAX waits longer than we do
_COUNTS = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"  # what a launcher says of its processes


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    lost_after: int = 60,
) -> None:
    """Joins the processes of a run; on one process, or called again, it does nothing.

    Cloud TPU, Slurm, Open MPI and GKE tell JAX what it needs. Elsewhere it comes from the arguments
    or from the environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`.

    Args:
        coordinator_address: `host:port` of process 0.
        num_processes: How many processes there are.
        process_id: Which of them this is, from 0.
        timeout: Seconds to wait for the others to start.
        lost_after: Seconds without a sign of life after which a process counts as lost: then the
            others end, too, and the next start goes on from the last checkpoint.

    Raises:
        RuntimeError: If process 0 cannot be reached, or there are other processes and JAX has run
            something already. If another process is missing, JAX ends this one; why is logged
            before.
        ValueError: If only some of the three arguments are known, or one makes no sense.

    Example:
        >>> initialize()  # on one process  # doctest: +SKIP
    """
    if jax.distributed.is_initialized():
        return
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    index = _number(process_id, "JAX_PROCESS_ID")
    if count == 1:
        return
    if has_backends():  # before anything waits for the others
        others = _others(address, count, index)
        if others is None:
            logger.debug(
                "JAX has run already; nothing names other processes, so this one is alone."
            )
            return
        raise RuntimeError(
            f"{others} says that there are other processes, but JAX has run something already, so "
            "this one cannot join them: write trainers.initialize() before the script's first "
            "array, jax.devices() or model."
        )
    known = [value is not None for value in (address, count, index)]
    if not is_in_cluster() and not all(known):
        if not any(known):
            return  # nothing says that there are others
        raise ValueError(
            f"coordinator_address={address!r}, num_processes={count} and process_id={index}: give "
            "all three, or none where the platform tells JAX."
        )
    lost = (
        f"Process {index} of {count} did not find the others at {address} within {timeout} s. "
        "Is process 0 running, is its address right, does a firewall let the port through, "
        "and were as many processes started as num_processes says?"
    )
    if address is not None and count is not None and index is not None and 0 < index < count:
        _reach(address, timeout, lost)
    # Where it waits for longer, JAX ends the process without a word of all this.
    speaks = threading.Timer(timeout, logger.error, [lost])
    speaks.daemon = True
    speaks.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=timeout + _GRACE,
            heartbeat_timeout_seconds=lost_after,
        )
    finally:
        speaks.cancel()
    logger.info("Process %d of %d.", jax.process_index(), jax.process_count())


def _others(address: str | None, count: int | None, index: int | None) -> str | None:
    """Returns what says that there are other processes, None where nothing does."""
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    said = [f"{name}={value}" for name, value in given.items() if value is not None]
    said += [name for name in _COUNTS if os.environ.get(name, "1") != "1"]
    said += ["TPU_WORKER_HOSTNAMES"] if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") else []
    said += ["jax.process_count()"] if jax.process_count() > 1 else []
    return said[0] if said else None


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if value is not None or not text:
        return value
    if not text.isdigit():
        raise ValueError(f"{variable}={text!r}: expected a number.")
    return int(text)


def _reach(address: str, timeout: int, lost: str) -> None:
    """Waits until process 0 listens; what JAX itself does not reach, it ends the process for."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator_address={address!r}: expected host:port.")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(lost) from error
        time.sleep(0.2)
