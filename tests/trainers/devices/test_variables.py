"""The variables of a model by name: raw, whatever a Variable holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from trainers.devices import variables


class Holding(nnx.Module):
    """Variables that hold other things than an array, and arrays that no Variable holds."""

    def __init__(self):
        self.tree = nnx.Variable({"sum": jnp.zeros(2), "more": (jnp.ones(1), 3)})
        self.number, self.nothing = nnx.Variable(2.5), nnx.Variable(None)
        self.empty = nnx.Param(jnp.zeros((0, 3)))
        self.plain, self.key = np.ones(2), jax.random.key(1)
        self.layers = nnx.List([nnx.Linear(1, 1, rngs=nnx.Rngs(0))])
        self.value = nnx.Param(jnp.ones(()))


def test_each_leaf_has_one_name():
    found = variables.named(nnx.state(Holding()))
    assert sorted(found) == [
        "empty",
        "key",
        "layers.0.bias",
        "layers.0.kernel",
        "number",
        "plain",
        "tree.more.0",
        "tree.more.1",
        "tree.sum",
        "value",
    ]
    assert found["number"] == 2.5


def test_nested_leaves_lie_by_the_parts_of_their_names_without_those_that_are_empty():
    whole = variables.nested(nnx.state(Holding()))
    assert whole["tree"]["more"] == {0: jnp.ones(1), 1: 3}
    assert whole["layers"][0].keys() == {"bias", "kernel"}
    assert "empty" not in whole


@pytest.mark.filterwarnings("ignore:Variable hooks are deprecated")
def test_a_leaf_is_raw_whatever_its_hook_makes_of_it():
    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    model.scale = nnx.Param(jnp.float32(-3), on_get_value=lambda _, x: jax.nn.softplus(x))
    assert variables.named(nnx.state(model))["scale"] == -3
    doubled = variables.with_leaves(nnx.state(model), lambda name, x: 2 * x)
    nnx.update(model, doubled)
    assert model.scale.get_raw_value() == -6


def test_two_variables_of_one_name_are_refused():
    linear = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    model = nnx.Dict({"a.b": linear, "a": nnx.Dict({"b": nnx.clone(linear)})})
    with pytest.raises(ValueError, match=r"both called 'a\.b\.bias' .* a name without a dot"):
        variables.named(nnx.state(model))


def test_an_abstract_model_gets_zeros_and_keys():
    state = nnx.state(nnx.eval_shape(lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(3))))
    assert sorted(variables.without_value(state)) == ["rngs.count", "rngs.key"]
    filled = variables.named(variables.concrete(state))
    assert filled["rngs.count"] == 0
    assert filled["rngs.key"].dtype == jax.random.key(0).dtype
    assert not variables.without_value(variables.concrete(state))
