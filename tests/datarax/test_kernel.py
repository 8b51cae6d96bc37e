"""The kernel that walks on a GPU gives the order that the loop gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from datarax import order
from datarax.cipher import round_keys
from datarax.kernel import records


@pytest.mark.parametrize("num_records", [300, 1797, 60_000, 2**16 + 1, 2**31 - 1])
@pytest.mark.parametrize("size", [5, 32, 100])
def test_the_kernel_gives_the_order_of_the_loop(num_records, size):
    width = (max((num_records - 1).bit_length(), 16) + 1) // 2
    position = jnp.arange(num_records - size, num_records, dtype=jnp.uint32)
    keys = round_keys(jnp.uint32(7), order.ROUNDS, width)
    found = records(position, *keys, width=width, largest=num_records - 1, interpret=True)
    expected = order.index_shuffle(position, num_records=num_records, seed=7)
    np.testing.assert_array_equal(found, expected)
