"""The compilation cache in the workdir: a second start compiles nothing."""

import logging
import re

import jax
import pytest

from tests.support.models import assert_same
from tests.support.runs import at, trainer

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def misses(caplog):
    """Returns the names of the programs that JAX did not find in its cache."""
    caplog.set_level(logging.DEBUG, logger="jax._src.compiler")

    def names():
        found = [
            re.match(r"PERSISTENT COMPILATION CACHE MISS for 'jit_(\w+)'", r.getMessage())
            for r in caplog.records
        ]
        caplog.clear()
        return [match.group(1) for match in found if match]

    return names


def _settings():
    return [getattr(jax.config, name) for name in SETTINGS]


def test_a_second_start_compiles_nothing(tmp_path, misses):
    before = _settings()
    jax.clear_caches()
    trainer(tmp_path, callbacks=[at(6)]).fit()
    assert _settings() == before
    assert {"_chunk", "_sum"} <= set(misses())
    jax.clear_caches()
    again = trainer(tmp_path)
    misses()
    assert again.fit().status == "finished"
    # What moves single arrays to the device, in a millisecond each, does not count.
    assert set(misses()) <= {"convert_element_type", "stage", "broadcast_in_dim", "copy", "_empty"}


@pytest.mark.slow
def test_a_truncated_entry_is_removed_and_written_anew(tmp_path, misses):
    jax.clear_caches()
    trainer(tmp_path / "a", steps=3).fit()
    entries = sorted((tmp_path / "a" / "compilation").glob("*-cache"))
    whole = {entry: entry.read_bytes() for entry in entries}
    for i, (entry, text) in enumerate(whole.items()):
        entry.write_bytes(text[: i % 2 * len(text) // 2])
    jax.clear_caches()
    result = trainer(tmp_path / "a", steps=6).fit()  # warnings are errors here
    for entry, text in whole.items():
        if "_chunk" in entry.name:
            assert len(entry.read_bytes()) > len(text) // 2
    assert_same(result.model, trainer(None, steps=6).fit().model)


def test_the_users_own_cache_serves(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    try:
        trainer(tmp_path / "run", steps=2).fit()
        assert not (tmp_path / "run" / "compilation").exists()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_the_setting_is_put_back_after_an_exception(tmp_path):
    before = _settings()

    def fail(run):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compilation")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, callbacks=[fail]).fit()
    assert _settings() == before
