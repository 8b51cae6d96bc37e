"""The order on the host is the compiled one, bit for bit."""

import numpy as np
import pytest

from datarax.order.host import host_index_shuffle
from datarax.order.permutation import index_shuffle


@pytest.mark.parametrize(
    "num_records",
    [
        *(1, 2, 180, 1797, 60_000, 65_537, 2**31),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 1_000_003)),
    ],
)
def test_the_hosts_order_is_the_compiled_one(num_records):
    index = np.arange(2 * min(num_records, 150))
    for seed in (0, 42, 2**32 - 1):
        got = host_index_shuffle(index, num_records=num_records, seed=seed)
        want = index_shuffle(index % num_records, num_records=num_records, seed=seed)
        np.testing.assert_array_equal(got, want)
