"""The processes of a run: one line at the start of a script, before anything else of JAX."""

import logging
import os

import jax

logger = logging.getLogger(__name__)

_MISSING = "coordinator_address should be defined", "Number of processes must be defined"


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
        RuntimeError: If the others cannot be reached, or JAX has run something already.
        ValueError: If only some of the three arguments are known.

    Example:
        >>> initialize()  # on one process
    """
    if jax.distributed.is_initialized():
        return
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _number(num_processes, "JAX_NUM_PROCESSES")
    index = _number(process_id, "JAX_PROCESS_ID")
    if count == 1:
        return
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=lost_after,
        )
    except ValueError as error:
        known = [address, count, index]
        if any(value is not None for value in known) and None in known:
            raise ValueError(
                f"coordinator_address={address!r}, num_processes={count} and process_id={index}: "
                "give all three, or none where the platform tells JAX."
            ) from error
        if str(error).startswith(_MISSING):
            return  # nothing says that there are others
        raise
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error) and "UNAVAILABLE" not in str(error):
            raise
        raise RuntimeError(
            f"Process {index} of {count} did not find the others at {address} within {timeout} s. "
            "Is process 0 running, is its address right, does a firewall let the port through, "
            "and were as many processes started as num_processes says?"
        ) from error
    logger.info("Process %d of %d.", jax.process_index(), jax.process_count())


def _number(value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    return int(text) if value is None and text else value
