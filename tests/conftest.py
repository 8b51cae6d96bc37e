"""What every test needs: no network, no user cache, one CPU device."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compiling: JAX's own tests save it like this. To 0, and it is as users have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="datarax-test-hf-")  # never the user's cache
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
