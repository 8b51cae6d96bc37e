"""JAX's private and experimental names: each is still there, and still means what it did."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from trainers.devices import private


def test_looking_for_devices_makes_backends():
    code = (
        "import json, os, sys\n"
        "from trainers.devices.private import has_backends, is_in_cluster\n"
        "import jax; print(is_in_cluster()); os.environ.update(json.loads(sys.argv[1]))\n"
        "print(has_backends(), is_in_cluster()); jax.devices(); print(has_backends())"
    )
    cluster = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}
    cluster |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    command = [sys.executable, "-c", code, json.dumps(cluster)]
    told = subprocess.run(command, env=env, capture_output=True, text=True)
    assert told.stdout.split() == ["False", "False", "True", "True"], told.stderr


def test_gathering_stacks_the_arrays_of_the_processes():
    assert private.all_gather(np.arange(3)).tolist() == [[0, 1, 2]]
    assert private.all_gather(jnp.arange(3), tiled=True).tolist() == [0, 1, 2]


def test_without_a_platform_that_preempts_no_step_is_the_last():
    assert not private.preempts_at(3)


def test_only_what_was_placed_is_committed():
    free = jnp.zeros(2)
    assert not private.is_committed(free)
    assert not private.is_committed(np.zeros(2))
    assert private.is_committed(jax.device_put(free, jax.devices()[0]))


def test_the_programs_within_an_equation_are_found():
    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)

    (equation,) = jax.make_jaxpr(loop)(1.0).eqns
    inner = [e.primitive.name for jaxpr in private.inner_jaxprs(equation) for e in jaxpr.eqns]
    assert "sin" in inner


def test_a_program_says_its_operations_and_its_memory():
    matrix = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = jax.jit(lambda x, y: x @ y).lower(matrix, matrix).compile()
    assert private.flops(program) >= 64**3
    assert private.memory(program) >= 3 * 64 * 64 * 4


def test_a_reset_cache_is_opened_where_the_settings_say(tmp_path):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        private.reset_compilation_cache()
        jax.jit(lambda x: x * 3 + len(str(tmp_path)))(jnp.zeros(7)).block_until_ready()
        assert any(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        private.reset_compilation_cache()
