"""What every test needs: no network, no user cache, one CPU device."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compiling; JAX's own tests save it like this. 0 compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
_home = tempfile.TemporaryDirectory(prefix="datarax-test-hf-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _home.name  # never the user's cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def pytest_xdist_auto_num_workers(config):
    """Returns one worker more than there are cores: many tests wait for processes and servers."""
    return (os.cpu_count() or 1) + 1
