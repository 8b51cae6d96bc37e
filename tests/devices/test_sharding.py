"""Parameters and optimizer spread over devices: fully, by a function, by their own annotations."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from tests.support.devices import losses, mesh, trainer
from tests.support.models import MLP, Normed, called, memory, points
from tests.support.runs import said
from trainers.devices import memory as memory_of
from trainers.devices.layout import Layout
from trainers.devices.placement import described
from trainers.fit import Fit
from trainers.step.model import split

SLOW = pytest.mark.slow


class Wide(nnx.Module):
    """Layers that eight devices divide, and a last one of three classes that they do not."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(4, 64, rngs=rngs)
        self.inner = nnx.Linear(64, 32, rngs=rngs)
        self.out = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.inner(nnx.relu(self.hidden(x)))))


class Annotated(nnx.Module):
    """A model that says where its kernels are to be."""

    def __init__(self):
        rngs, normal = nnx.Rngs(0), nnx.initializers.lecun_normal()
        self.hidden = nnx.Linear(
            4, 64, kernel_init=nnx.with_partitioning(normal, (None, "tensor")), rngs=rngs
        )
        self.out = nnx.Linear(
            64, 3, kernel_init=nnx.with_partitioning(normal, ("tensor", None)), rngs=rngs
        )

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


def grid(shape, axes):
    """Returns a mesh of all eight devices."""
    return Mesh(np.array(jax.devices()).reshape(shape), axes)


def ended(trainer):
    """Returns the state of a run at its end, where it lies."""
    with Fit.opened(trainer._plan) as fit:
        assert fit() == "finished"
        return fit.state


def held(tree, device):
    """Returns the bytes of a pytree's arrays that lie on a device."""
    return sum(
        part.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for part in leaf.addressable_shards
        if part.device == device
    )


def specs(model):
    """Returns where the parameters of a model lie, by name, None for those on one device."""
    return {
        ".".join(map(str, path)): getattr(variable.get_value().sharding, "spec", None)
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }


@pytest.fixture(scope="module")
def replicated():
    """The loss of each step of a run on one device, by the number of shards."""
    return functools.cache(lambda shards: losses(trainer(Wide(), 1, shards=shards).fit()))


# --- fully sharded -------------------------------------------------------------------------------


def test_a_device_holds_its_share_of_parameters_and_optimizer(caplog):
    one = trainer(Wide(), 8, sharding="fsdp", ema=0.9, steps=3)
    state = ended(one)
    small = 3 * 4  # the bias of three classes, which each device holds whole
    parameters = 4 * (4 * 64 + 64 + 64 * 32 + 32 + 32 * 3 + 3)
    share = (parameters - small) // 8 + small
    for device in jax.devices():
        assert held(state.params, device) == share
        assert held(state.optimizer, device) == 2 * share + 4  # two moments and a counter
        assert held(state.ema, device) == share
    warnings = said(caplog, "trainers.devices.placement")
    assert warnings == [
        "out.bias (3,) cannot be spread evenly over 8 devices: each holds it whole."
    ]
    one.fit()
    one.predict(memory(points(9)), called)
    assert said(caplog, "trainers.devices.placement") == warnings  # once


@pytest.mark.parametrize(
    ("where", "arguments"),
    [
        pytest.param(
            [(8,), ("batch",)],
            {"data_axis": "batch", "accumulate": 2, "shards": 8, "ema": 0.9},
            marks=SLOW,
        ),
        pytest.param([(2, 4), ("data", "fsdp")], {"shards": 8}, marks=SLOW),
        pytest.param([(2, 4), ("data", "fsdp")], {"data_axis": ("data", "fsdp")}, marks=SLOW),
        pytest.param([(8,), ("data",)], {}, marks=SLOW),
        ([(2, 2, 2), ("replica", "rows", "tensor")], {"data_axis": ("replica", "rows")}),
    ],
)
def test_its_loss_follows_the_replicated_run_s(replicated, where, arguments):
    result = trainer(Wide(), grid(*where), sharding="fsdp", **arguments).fit()
    np.testing.assert_allclose(losses(result), replicated(arguments.get("shards", 1)), rtol=1e-6)
    (axis,) = specs(result.model)["hidden.bias"]
    assert axis == {"fsdp": "fsdp", "tensor": "rows"}.get(where[1][-1], where[1][-1])


def test_a_fully_sharded_model_evaluates_predicts_and_computes_afterwards():
    source = memory(points(37, seed=1))
    expected = trainer(Wide(), 1)
    one = trainer(Wide(), 8, sharding="fsdp", eval_source=source, eval_every=10)
    plain, result = expected.fit(), one.fit()
    assert result.metrics["eval/loss"] == pytest.approx(expected.evaluate(source)["loss"], rel=1e-5)
    np.testing.assert_allclose(
        one.predict(source, called), expected.predict(source, called), rtol=1e-4, atol=1e-5
    )
    x = points(8)["x"]
    np.testing.assert_allclose(result.model(x), plain.model(x), rtol=1e-4, atol=1e-5)
    again = one.fit()  # from where the model lies
    np.testing.assert_allclose(losses(again), losses(expected.fit()), rtol=1e-5)


def test_statistics_and_random_streams_stay_whole_on_each_device():
    result = trainer(Normed(), 8, sharding="fsdp", steps=3).fit()
    rest = nnx.state(result.model, nnx.Not(nnx.Param))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(rest))
    assert not result.model.norm.scale[...].is_fully_replicated


@pytest.mark.slow
def test_preflight_counts_what_a_device_holds():
    whole = trainer(Wide(), 8, shards=1).preflight()
    share = trainer(Wide(), 8, sharding="fsdp", shards=8).preflight()
    assert share.parameters == whole.parameters
    assert share.state_bytes < whole.state_bytes / 6
    assert share.data_bytes < whole.data_bytes / 6
    assert share.step_bytes > share.state_bytes + share.data_bytes


class Huge(nnx.Module):
    """A parameter of twice a device's memory, which takes none itself."""

    def __init__(self):
        rows = memory_of.limit() // (4 * 1024 * 4) * 8
        self.kernel = nnx.Param(np.broadcast_to(np.float32(0), (rows, 1024)))

    def __call__(self, x):
        return x @ self.kernel[:4, :3]


def test_devices_that_do_not_hold_the_state_are_refused_and_how_many_do_is_said():
    """As where a run that eight devices shared goes on with two."""
    words = r'number of devices: {}\), .* write sharding="fsdp" and take 6 devices or more'
    for devices, sharding in ((1, "fsdp"), (2, "fsdp"), (8, "replicate")):
        with pytest.raises(MemoryError, match=words.format(devices)):
            trainer(Huge(), devices, sharding=sharding).fit()
    params, rest = split(Huge(), nnx.Param)[1:]
    share, _ = Layout(mesh(8), rule="fsdp").placement.model(params, rest, described)
    assert memory_of.nbytes(share) * 8 == memory_of.nbytes(params)


def test_data_counts_as_far_as_a_device_holds_it():
    rows = memory_of.limit() // 4096 * 4
    data = {"x": np.broadcast_to(np.float32(1), (rows, 1024)), "label": np.zeros(rows, np.int32)}
    with pytest.raises(MemoryError, match=r"on each of 2 devices.* over more devices with"):
        trainer(MLP(), 2, memory(data), shards=8)


# --- a function ----------------------------------------------------------------------------------


def _by_name(path, shape):
    names = {
        "hidden.kernel": PartitionSpec(None, "tensor"),
        "inner.kernel": PartitionSpec("tensor", None),
    }
    return names.get(path)


def test_a_function_says_where_parameters_lie(replicated):
    where = grid((4, 2), ("data", "tensor"))
    result = trainer(Wide(), where, sharding=_by_name, shards=8).fit()
    np.testing.assert_allclose(losses(result), replicated(8), rtol=1e-6)
    found = specs(result.model)
    assert found["hidden.kernel"] == PartitionSpec(None, "tensor")
    assert found["inner.kernel"] == PartitionSpec("tensor", None)
    assert found["out.kernel"] == PartitionSpec()
    state = ended(trainer(Wide(), where, sharding=_by_name, steps=2))
    moment = state.optimizer[0].mu["hidden"]["kernel"].get_value()
    assert moment.sharding.spec == PartitionSpec(None, "tensor")


def test_what_a_function_cannot_spread_evenly_is_said_once(caplog):
    def last(path, shape):
        return PartitionSpec(*[None] * (len(shape) - 1), "data")

    one = trainer(Wide(), 8, sharding=last, steps=2)
    one.fit()
    one.fit()
    assert [text.split()[0] for text in said(caplog, "trainers.devices.placement")] == [
        "out.bias",
        "out.kernel",
    ]


@pytest.mark.parametrize(
    ("sharding", "error", "words"),
    [
        ("zero", ValueError, r"sharding='zero': expected \"replicate\", \"fsdp\" or a function"),
        (lambda p, s: ("data",), TypeError, r"\('data',\) for hidden.bias: expected a jax.*Spec"),
        (lambda p, s: PartitionSpec("model"), ValueError, "'model' for .*: the mesh has 'data'"),
        (
            lambda p, s: PartitionSpec("data", "data"),
            ValueError,
            r"\('data', 'data'\) for hidden.bias: expected each axis of the mesh once, as in Part",
        ),
        (
            lambda p, s: PartitionSpec(None, "data"),
            ValueError,
            r"\(None, 'data'\) for hidden.bias, which has the shape \(64,\)",
        ),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(sharding, error, words):
    with pytest.raises(error, match=words):
        trainer(Wide(), 8, sharding=sharding).fit()


# --- annotations ---------------------------------------------------------------------------------


def _annotated(where):
    with jax.set_mesh(where):  # nnx builds an annotated model only so
        return Annotated()


@pytest.mark.parametrize(
    ("sharding", "explicit"), [pytest.param("replicate", True, marks=SLOW), ("fsdp", False)]
)
def test_a_model_s_own_annotations_are_respected(caplog, sharding, explicit):
    where = grid((4, 2), ("data", "tensor"))
    if explicit:
        where = jax.make_mesh((4, 2), ("data", "tensor"))
    result = trainer(_annotated(where), where, sharding=sharding).fit()
    found = specs(result.model)
    assert found["hidden.kernel"] == PartitionSpec(None, "tensor")
    assert found["out.kernel"] == PartitionSpec("tensor", None)
    assert found["hidden.bias"] == PartitionSpec(*["data"] * (sharding == "fsdp"))
    # Where the mesh has no such axis, they say nothing, which is said once.
    plain = trainer(_annotated(where), 8).fit()
    assert said(caplog, "trainers.devices.placement")[-2:] == [
        f"{name}.kernel names the axis 'tensor', the mesh has 'data': it says nothing."
        for name in ("hidden", "out")
    ]
    np.testing.assert_allclose(losses(result), losses(plain), rtol=1e-5)
    assert plain.model(points(8)["x"]).shape == (8, 3)


@pytest.mark.slow
def test_an_annotated_model_may_be_built_and_trained_within_its_mesh():
    where = grid((4, 2), ("data", "tensor"))
    with jax.set_mesh(where):
        result = trainer(Annotated(), where, steps=3).fit()
    assert specs(result.model)["out.kernel"] == PartitionSpec("tensor", None)


# --- meshes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "shards"), [pytest.param("Auto", 1, marks=SLOW), ("Explicit", 8)]
)
def test_a_mesh_of_make_mesh_will_do(replicated, types, shards):
    kind = getattr(jax.sharding.AxisType, types)
    where = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    result = trainer(Wide(), where, shards=shards).fit()
    np.testing.assert_allclose(losses(result), replicated(shards), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "sharding"), [pytest.param(1, "fsdp", marks=SLOW), (8, "replicate")]
)
def test_any_devices_in_any_order_will_do(replicated, shards, sharding):
    where = Mesh(np.array(jax.devices()[:3:-1]), ("data",))  # the last four, the last first
    source = memory(points(101), shuffle=True)
    _ = source.data  # which is on the first
    one = trainer(Wide(), where, source, shards=shards, sharding=sharding)
    np.testing.assert_allclose(losses(one.fit()), replicated(shards), rtol=1e-5)
    assert one.predict(source, called).shape == (101, 3)
    assert one.evaluate(source)["loss"] > 0


@pytest.mark.slow
def test_an_axis_that_is_no_data_axis_computes_the_same_rows():
    """So four parts, which 4 shards and a batch of 12 can be spread over."""
    arguments = {"batch_size": 12, "shards": 4, "steps": 5}
    expected = trainer(MLP(), 1, **arguments)
    found = trainer(MLP(), grid((4, 2), ("data", "tensor")), **arguments)
    np.testing.assert_allclose(losses(found.fit()), losses(expected.fit()), rtol=1e-5)
    for t in (0, found.steps_per_epoch - 1):
        np.testing.assert_array_equal(found.batch_at(t)["id"], expected.batch_at(t)["id"])


@pytest.mark.parametrize(
    ("where", "arguments", "error", "words"),
    [
        ("devices", {}, TypeError, r"mesh is a list: .* jax.make_mesh\(\(8,\), \(\"data\",\)\)"),
        ([(8,), ("batch",)], {}, ValueError, "has the axes 'batch', not data_axis='data': write d"),
        (
            [(4, 2), ("data", "tensor")],
            {"data_axis": ("data", "model")},
            ValueError,
            "has the axes 'data', 'tensor', not data_axis='model'",
        ),
        (None, {"data_axis": ("data", "fsdp")}, ValueError, "several axes: give the mesh that has"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(where, arguments, error, words):
    where = jax.devices() if where == "devices" else where and grid(*where)
    with pytest.raises(error, match=words):
        trainer(Wide(), where, **arguments)


@pytest.mark.parametrize(
    "kind",
    [jax.sharding.AxisType.Explicit, pytest.param(jax.sharding.AxisType.Auto, marks=SLOW)],
)
def test_a_mesh_that_the_user_has_set_is_no_hindrance(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    source = memory(points(24, seed=1))
    with jax.set_mesh(mesh):
        one = trainer(MLP(), mesh, source, eval_source=source)
        assert one.fit().status == "finished"
        assert one.evaluate()["loss"] > 0
        assert one.predict(source, called).shape == (24, 3)
        assert jax.sharding.get_abstract_mesh() == mesh.abstract_mesh
