"""Starts the tests that need several devices with eight simulated ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.name for path in (ROOT / "tests" / "devices").glob("test_*.py"))


def run(place, which, cache):
    """Runs tests in a process that has eight devices, which compiles each program once."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    options = ["-m", which, "-n", "0", "-q", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", f"tests/devices/{place}", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": flags,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_what_needs_eight_devices(tmp_path):
    run("", "not slow", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_what_needs_eight_devices_and_takes_long(tmp_path, file):
    run(file, "slow", tmp_path)
