"""Orbax, as the store uses it: every name of it that is private or has no promise lies here."""

import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import args
from orbax.checkpoint.options import MultiprocessingOptions

from trainers.devices.arrays import without_keys
from trainers.devices.private import is_committed

UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of a directory's name while Orbax writes into it."""

_SPECIAL = set("[]*?")


def manager(
    directory: epath.Path, keep: int | None, items: tuple[str, ...], *, alone: bool
) -> ocp.CheckpointManager:
    """Returns what writes and lists the checkpoints of a directory.

    Args:
        directory: Where they are.
        keep: How many of the newest to keep; None: all.
        items: Names of the pytrees of arrays in a checkpoint.
        alone: Whether this process reads without the others.
    """
    # Barriers are named by the step: without a prefix, the best step and the newest, which may be
    # written at the same time, would wait at one another's.
    options = MultiprocessingOptions(barrier_sync_key_prefix=directory.name)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            multiprocessing_options=_alone() if alone else options,
        ),
        item_handlers=_handlers(directory, items),
    )


def _handlers(directory: epath.Path, items: tuple[str, ...]) -> dict[str, Any] | None:
    """Returns handlers that write one file an array, where the path has a pattern's characters.

    Orbax gathers the files of its usual format by a pattern that holds the whole path, and finds
    none below `run[lr=0.1]` (orbax-checkpoint 0.12, `merge_ocdbt_per_process_files`). Both formats
    are read alike.
    """
    if not _SPECIAL & set(os.fspath(directory)):
        return None
    handlers: dict[str, Any] = {
        name: ocp.StandardCheckpointHandler(use_ocdbt=False) for name in items
    }
    return handlers | {"data": ocp.JsonCheckpointHandler(), "run": ocp.JsonCheckpointHandler()}


def reader() -> ocp.Checkpointer:
    """Returns what reads a checkpoint on this process alone.

    Where one process finds damage, others that read together with it would wait for ever.
    """
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=_alone())


def _alone() -> MultiprocessingOptions:
    own = jax.process_index()
    alone = MultiprocessingOptions(primary_host=own, active_processes={own})
    alone.barrier_sync_key_prefix = f"process{own}"  # its constructor refuses one beside processes
    return alone


def written(arrays: dict[str, Any], data: Any, run: Any) -> args.Composite:
    """Returns a checkpoint's items as Orbax saves them."""
    items = {name: args.StandardSave(tree) for name, tree in arrays.items()}
    return args.Composite(**items, data=args.JsonSave(data), run=args.JsonSave(run))


def texts(names: tuple[str, ...]) -> args.Composite:
    """Returns what restores JSON items."""
    return args.Composite(**{name: args.JsonRestore() for name in names})


def trees(like: dict[str, Any]) -> args.Composite:
    """Returns what restores pytrees of arrays with the shapes, dtypes and shardings of `like`.

    Arrays that JAX may place as it likes come back as NumPy's: for others Orbax asks for the
    devices that saved them. So a run begins as it began, and finds its compiled programs again.
    """

    def target(x):
        if is_committed(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    return args.Composite(
        **{
            name: args.StandardRestore(jax.tree.map(target, without_keys(tree)))
            for name, tree in like.items()
        }
    )


def saved_shapes(path: epath.Path) -> Any:
    """Returns shapes and dtypes of a saved pytree, without the devices that it was on."""
    return ocp.StandardCheckpointHandler().metadata(path).tree
