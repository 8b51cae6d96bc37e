"""What every test needs: no network, no user cache, one CPU device."""

import gc
import os
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compiling; JAX's own tests save it like this. 0 compiles as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0":
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    if version("jaxlib").startswith("0.10."):  # later ones do not know the flag and exit
        flags.append("--xla_cpu_use_fusion_emitters=false")  # saves a third of the time
    os.environ["XLA_FLAGS"] = " ".join(flags)
# Of JAX's many objects few are garbage: looking for it a hundredth as often saves 6 % of the time.
gc.set_threshold(50_000, 20, 20)
_home = tempfile.TemporaryDirectory(prefix="datarax-test-hf-", ignore_cleanup_errors=True)
os.environ["HF_HOME"] = _home.name  # never the user's cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def pytest_xdist_auto_num_workers(config):
    """Returns one worker more than there are cores: many tests wait for processes and servers."""
    return (os.cpu_count() or 1) + 1
