"""Checksums: any change of an array changes its sum; how it is laid out does not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainers.devices.checksum import checksums

OFTEN = ["bool", "int4", "uint16", "bfloat16", "float32", "complex64"]
SELDOM = ["uint4", "int8", "uint8", "int16", "int32", "uint32", "float16", "float8_e4m3fn"]
DTYPES = [*OFTEN, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in SELDOM)]


def _bytes(dtype):
    """Any bits at all, NaNs too."""
    return hnp.arrays(np.uint8, st.integers(1, 40).map(lambda n: n * jnp.dtype(dtype).itemsize))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_one_changed_bit_changes_the_sum(dtype, data):
    raw = data.draw(_bytes(dtype))
    bits = {"bool": 1, "int4": 4, "uint4": 4}.get(dtype, 8)
    raw &= 2**bits - 1
    place = data.draw(st.integers(0, raw.size - 1))
    other = raw.copy()
    other[place] ^= 1 << data.draw(st.integers(0, bits - 1))
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    sums = [checksums({"x": jnp.array(one.view(dtype))}) for one in (raw, raw.copy(), other)]
    assert sums[0] == sums[1] != sums[2]


@settings(deadline=None, max_examples=20)
@given(hnp.arrays(np.float32, 12, elements=st.floats(width=32)), st.permutations(range(12)))
def test_swapped_values_change_the_sum(values, order):
    one, other = checksums({"x": values}), checksums({"x": values[order]})
    assert (one == other) == (values.tobytes() == values[order].tobytes())


def test_the_shape_and_the_dtype_are_part_of_it():
    x = jnp.arange(6, dtype=jnp.int32)
    forms = [x, x.reshape(2, 3), x.reshape(3, 2), x.astype(jnp.uint32), jnp.append(x, 0)]
    assert len({checksums({"x": form})["x"] for form in forms}) == len(forms)


def test_the_names_are_paths():
    tree = {"linear": {"kernel": jnp.ones((2, 3))}, "none": None, "empty": jnp.zeros((0, 2))}
    sums = checksums(tree)
    assert list(sums) == ["empty", "linear.kernel"]
    assert sums["linear.kernel"].startswith("float32(2, 3) ")


def test_numpy_and_jax_agree_at_64_bits_too():
    for dtype in (np.float64, np.int64, np.uint64):
        x = np.linspace(0, 1e9, 7).astype(dtype)
        with jax.enable_x64(True):
            wide = checksums({"x": jnp.array(x), "y": jnp.array(x)[3]})
        assert checksums({"x": x, "y": x[3:4].reshape(())}) == wide
