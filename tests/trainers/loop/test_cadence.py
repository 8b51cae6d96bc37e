"""What is due at which step, and where a chunk of steps ends."""

import pytest

from tests.support.models import MLP, labelled
from trainers import Checkpoints, Trainer, every
from trainers.loop.cadence import Cadence, inner_steps
from trainers.run import Run


def schedule(tmp_path=None, **arguments):
    trainer = Trainer(MLP(), labelled(40), batch_size=8, steps=50, workdir=tmp_path, **arguments)
    return Cadence(trainer._plan, Run(50, MLP, dict))


def ends(one):
    """Returns the steps at which the chunks of a run end."""
    step, found = 0, []
    while step < 50:
        step = one.next(step)
        found.append(step)
    return found


def test_a_chunk_ends_where_something_is_due_and_nowhere_else(tmp_path):
    assert ends(schedule(log_every=20, eval_every=7)) == [20, 40, 50]  # nothing to evaluate on
    one = schedule(
        tmp_path,
        log_every=20,
        eval_every=25,
        eval_source=labelled(8),
        callbacks=[every(15, lambda run: None), lambda run: None],
        checkpoint=Checkpoints(every=32),
        profile=(10, 12),
    )
    assert ends(one) == [9, 12, 15, 20, 25, 30, 32, 40, 45, 50]


def test_a_log_alone_waits_for_nobody(tmp_path):
    one = schedule(tmp_path, log_every=10, checkpoint=Checkpoints(every=20), profile=(1, 10))
    alone = [step for step in range(1, 51) if one.only_logs(step)]
    assert alone == [30]  # 10 ends the profile, 20 and 40 are saved, 50 is the last
    best = schedule(log_every=10, checkpoint=Checkpoints(best=("train/loss", "min")))
    assert not any(best.only_logs(step) for step in range(1, 51))
    told = schedule(log_every=10, callbacks=[lambda run: None])
    assert [step for step in range(1, 51) if told.uses(step)] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"log_every": 100}, 50),
        ({"log_every": 101}, 33),
        ({"log_every": 100, "eval_every": 30}, 50),  # nothing to evaluate on
        ({"log_every": 100, "callbacks": [every(7, lambda run: None)]}, 7),
        ({"log_every": 1}, 1),
    ],
)
def test_inner_loops_are_equal_parts_of_the_steps_between_logs(arguments, steps):
    trainer = Trainer(MLP(), labelled(40), batch_size=8, steps=50, **arguments)
    assert inner_steps(trainer._plan) == steps


def test_a_second_program_pays_where_many_quick_steps_are_left():
    trainer = Trainer(MLP(), labelled(40), batch_size=8, steps=50_000)
    run = Run(50_000, MLP, dict)
    one = Cadence(trainer._plan, run)
    assert one.is_long(20_000)
    assert not one.is_long(2_000)  # of a millisecond each
    run.step = 45_000
    assert not one.is_long(20_000)
    run.steps = None  # a stream's end
    assert one.is_long(20_000)


def test_the_last_step_is_logged_and_evaluated():
    one = schedule(log_every=20, eval_every=20)
    assert [step for step in range(1, 51) if one.logs(step)] == [20, 40, 50]
    assert [step for step in range(1, 51) if one.evaluates(step)] == [20, 40, 50]
