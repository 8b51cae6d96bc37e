"""Fixtures of the trainer's tests."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.support.processes import Group


@pytest.fixture(scope="session")
def two():
    """Two processes of two devices each."""
    with Group(2, 2) as group:
        yield group


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Compiles each program once in a module, however many workdirs its runs have."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compilation")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
