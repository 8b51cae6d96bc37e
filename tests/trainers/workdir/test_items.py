"""The items of a checkpoint: which of them a run goes on from."""

import jax.numpy as jnp

from trainers.workdir import items


def test_counters_of_stages_that_older_versions_saved_make_no_difference():
    arrays = {"model": {"w": jnp.zeros(2)}, "training": {"stages._modules.0.seen": jnp.zeros(())}}
    saved = items.kinds(arrays)
    former = {f"training.stages._modules.0.{n}.value": "int32()" for n in ("_applied", "_skipped")}
    assert items.differing(arrays, saved | former) == []
    other = {"training.stages._modules.0.other.value": "int32()"}
    assert items.differing(arrays, saved | other) == list(other)
