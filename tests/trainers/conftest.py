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


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The folder of the compiled programs."""
    return tmp_path_factory.mktemp("compilation")


@pytest.fixture(scope="module")
def compiled_once(programs):
    """Compiles each program once for all modules that ask for it, whatever workdirs runs have."""
    settings = {
        "jax_compilation_cache_dir": str(programs),
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
