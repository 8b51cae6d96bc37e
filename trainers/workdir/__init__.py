"""The workdir: checkpoints, the lock, and the compilation cache of a run."""

from trainers.workdir.store import Store

__all__ = ["Store"]
