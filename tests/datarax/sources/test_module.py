"""What every data module shares: statistics that do as their names say, and a strict state."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from datarax import DataraxModule, DataraxModuleConfig


def module(**fields):
    return DataraxModule(DataraxModuleConfig(batch_stats_fn=lambda x: {"mean": x.mean()}, **fields))


def test_configured_statistics_go_before_computed_ones_and_those_set_before_both():
    known = module(precomputed_stats={"mean": -1.0})
    assert known.compute_statistics(np.ones(3)) == {"mean": 1.0}
    assert known.get_statistics() == {"mean": -1.0}
    known.set_statistics({"mean": 5.0})
    assert known.get_statistics() == {"mean": 5.0}


@pytest.mark.parametrize("cacheable", [False, True])
def test_a_reset_forgets_all_until_new_ones_are_set_or_computed(cacheable):
    known = module(precomputed_stats={"mean": -1.0}, cacheable=cacheable)
    known.reset_statistics()
    known.reset_cache()
    assert known.get_statistics() is None
    known.compute_statistics(np.ones(3))
    assert known.get_statistics() == {"mean": 1.0}
    known.reset_statistics()
    known.set_statistics({"mean": 5.0})
    known.reset_cache()
    assert known.get_statistics() == {"mean": 5.0}


def test_a_cacheable_module_computes_once_until_its_cache_is_reset():
    known = module(cacheable=True, precomputed_stats={"mean": -1.0})
    for each in (known, known.clone(), known.copy()):
        assert each.compute_statistics(np.ones(3)) == {"mean": 1.0}
        assert each.compute_statistics(np.zeros(3)) == {"mean": 1.0}
        each.reset_cache()
        assert each.compute_statistics(np.zeros(3)) == {"mean": 0.0}
    assert module().get_statistics() is None


def test_a_state_of_other_shapes_or_dtypes_is_refused():
    own = module()
    own.weight = nnx.Param(jnp.zeros(3))
    state = own.get_state()
    own.set_state({**state, "weight": np.ones(3, np.float32)})
    assert own.weight[...].tolist() == [1, 1, 1]
    for other in (np.zeros(4, np.float32), np.zeros(3, np.int8)):
        with pytest.raises(ValueError, match=r"'weight'.*shape and dtype"):
            own.set_state({**state, "weight": other})
    assert own.weight[...].tolist() == [1, 1, 1]


class Counting(DataraxModule):
    def __init__(self):
        super().__init__(DataraxModuleConfig(), rngs=nnx.Rngs(0))
        self.losses = nnx.Variable([])
        self.names = nnx.Variable({})
        self.count = nnx.Variable(0)
        self.inner = nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))])


def test_a_state_restores_lists_dicts_and_numbers_of_any_length():
    module, fresh = Counting(), Counting()
    module.losses.set_value([0.5, 0.25])
    module.names.set_value({"a": [1, 2], "b": {"c": 3}})
    module.count.set_value(7)
    module.inner[0].bias[...] = jnp.ones(2)
    fresh.set_state(module.get_state())
    assert fresh.losses.get_value() == [0.5, 0.25]
    assert fresh.names.get_value() == {"a": [1, 2], "b": {"c": 3}}
    assert fresh.count.get_value() == 7
    assert fresh.inner[0].bias[...].tolist() == [1, 1]


def test_a_state_of_another_structure_is_refused_and_named():
    state = Counting().get_state()
    for other in ({**state, "more": 1}, {**state, "inner": {0: {}}}, {**state, "inner": 3}, {}):
        with pytest.raises(ValueError, match=r"The state has the structure .*Counting"):
            Counting().set_state(other)


def test_states_of_the_time_when_counters_were_variables_are_read():
    state = Counting().get_state()
    fresh = Counting()
    fresh.set_state({**state, "count": 3, "_applied": 5, "_skipped": 1})
    assert fresh.count.get_value() == 3
