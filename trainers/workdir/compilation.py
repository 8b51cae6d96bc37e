"""The compilation cache: a second start of a run compiles nothing."""

import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath

from trainers.devices.private import reset_compilation_cache

logger = logging.getLogger(__name__)

_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # JAX skips what compiles within a second
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextmanager
def cached(workdir: epath.Path) -> Iterator[None]:
    """Keeps compiled programs under the workdir until the block ends.

    Where the user has set a cache already, that one serves.

    Args:
        workdir: The run's directory.
    """
    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    directory = workdir / "compilation"
    if jax.process_index() == 0:  # the one that writes entries
        _remove_truncated(directory)
    settings = {"jax_compilation_cache_dir": os.fspath(directory), **_SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_compilation_cache()  # it is opened once a process, at the first compilation
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_compilation_cache()


def _remove_truncated(directory: epath.Path) -> None:
    """Removes entries that a killed run left half written: JAX warns of them and keeps them."""
    for entry in directory.iterdir() if directory.exists() else ():
        if entry.name.endswith("-cache") and not _is_whole(entry.read_bytes()):
            logger.info("%s is truncated: it is removed and compiled anew.", entry)
            entry.unlink()


def _is_whole(entry: bytes) -> bool:
    """Returns whether a compressed program can be unpacked."""
    if entry.startswith(b"\x28\xb5\x2f\xfd"):  # JAX uses zstandard where that is installed
        try:
            import zstandard  # pyright: ignore[reportMissingImports]  # no dependency of ours
        except ImportError:
            return False
        try:
            zstandard.ZstdDecompressor().decompress(entry)
        except zstandard.ZstdError:
            return False
        return True
    try:
        zlib.decompress(entry)
    except zlib.error:
        return False
    return True
