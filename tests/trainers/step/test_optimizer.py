"""Optimizers: what they need beside a gradient, what they are called, and their rate."""

import jax.numpy as jnp
import optax
import pytest

from tests.support.models import MLP, labelled
from trainers import Trainer
from trainers.step.optimizer import described, plain, rate_of

pytestmark = pytest.mark.usefixtures("compiled_once")

SCHEDULE = optax.linear_schedule(1.0, 0.0, 10)


def fit(optimizer, **arguments):
    """Returns the result of a short run."""
    return Trainer(MLP(), labelled(16), batch_size=8, optimizer=optimizer, **arguments).fit()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.lbfgs(), "optimizer chain of ScaleByLBFGSState.* needs more than a gradient"),
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), "optimizer lookahead needs more"),
        (
            optax.contrib.sam(
                optax.sgd(0.1), optax.contrib.normalize(), sync_period=2, opaque_mode=True
            ),
            "optimizer sam needs more",
        ),
    ],
)
def test_one_that_needs_more_than_a_gradient_is_refused_by_name(optimizer, message):
    with pytest.raises(ValueError, match=message):
        fit(optimizer)


def test_one_that_refuses_the_loss_s_value_is_not_given_it():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2)
    assert fit(sam, steps=4).status == "finished"


def test_one_that_asks_for_the_loss_s_value_is_given_it():
    seen = []

    def look(run):
        seen.append(float(run.optimizer_state()[1].avg_value))

    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=5))
    result = fit(plateau, steps=2, log_every=1, callbacks=[look])
    losses = [row["train/loss"] for row in result.history]
    assert seen[0] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(SCHEDULE),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(SCHEDULE, momentum=0.9)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=SCHEDULE),
    ],
)
def test_a_schedule_s_rate_is_logged_by_itself(optimizer):
    history = fit(optimizer, steps=6, log_every=2).history
    rates = [row["train/learning_rate"] for row in history]
    assert rates == pytest.approx([0.9, 0.7, 0.5])


def test_a_constant_rate_is_described_and_not_logged():
    assert described(plain(optax.adamw(1e-3))) == (
        "scale_by_adam, add_decayed_weights, scale (0.001)"
    )
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(SCHEDULE))
    assert described(clipped).endswith("scale_by_schedule (a schedule)")
    assert rate_of(optax.adamw(1e-3), optax.adamw(1e-3).init(jnp.ones(2)), jnp.int32(0)) is None
