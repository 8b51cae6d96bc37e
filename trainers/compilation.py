"""The compilation cache: a second start of a run compiles nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

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
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    directory = workdir / "compilation"
    settings = {"jax_compilation_cache_dir": os.fspath(directory), **_SETTINGS}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it is opened once a process, at the first compilation
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
