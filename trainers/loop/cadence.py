"""The cadence of a run: at which steps it logs, evaluates, calls back and saves."""

from trainers import callbacks
from trainers.loop.plan import Plan, evaluation_interval
from trainers.loop.profile import bounds
from trainers.run import Run

_INNER = 50  # steps of an inner loop at most: a call takes 70 us, a small step 30 us on a GPU
_MANY = 10_000


def inner_steps(plan: Plan) -> int:
    """Returns how many steps an inner loop has: a part of those between two things that are due.

    Parts are as long as each other, so that few steps are left.
    """
    least = min(_intervals(plan))
    return least // -(-least // _INNER)


class Cadence:
    """Says what is due after a number of finished steps.

    Args:
        plan: What the run does.
        run: The run, which knows its last step, and the step at which its epoch began.
    """

    def __init__(self, plan: Plan, run: Run):
        self._plan, self._run, self._traced = plan, run, bounds(plan.profile)
        self._eval_every, self._intervals = evaluation_interval(plan), _intervals(plan)

    def logs(self, step: int) -> bool:
        """Returns whether a log is due: the last step always has one."""
        return self._is_last(step) or step % self._plan.log_every == 0

    def evaluates(self, step: int) -> bool:
        """Returns whether an evaluation is due: the last step always has one."""
        every = self._eval_every
        if every is None:  # once an epoch, of unknown length
            return self._is_last(step) or 0 < step == self._run.epoch_start
        return self._is_last(step) or step % every == 0

    def saves(self, step: int) -> bool:
        """Returns whether a checkpoint is due by the number of steps."""
        return (
            self._plan.workdir is not None and step > 0 and step % self._plan.checkpoint.every == 0
        )

    def calls(self, step: int, logged: bool) -> list[callbacks.Callback]:
        """Returns the callbacks that are due."""
        return [
            callback
            for callback in self._plan.callbacks
            if (step % callback.steps == 0 if isinstance(callback, callbacks.every) else logged)
        ]

    def uses(self, step: int) -> bool:
        """Returns whether an evaluation, a callback or a save looks at the parameters."""
        plan, best = self._plan, self._plan.checkpoint.best
        # A log may make this step the best one, which is saved.
        by_log = best is not None and best[0].startswith("train/")
        return (
            self._is_last(step)
            or self.saves(step)
            or bool(self.calls(step, self.logs(step)))
            or (bool(plan.evaluators) and self.evaluates(step))
            or (by_log and self.logs(step))
        )

    def only_logs(self, step: int) -> bool:
        """Returns whether a log is due and nothing else."""
        return self.logs(step) and not self.uses(step) and step not in self._traced

    def next(self, step: int) -> int:
        """Returns the first step after `step` at which something is due."""
        fixed = [n for n in self._traced if n > step]
        fixed += [] if self._run.steps is None else [self._run.steps]
        return min([*fixed, *(step - step % n + n for n in self._intervals)])

    def is_long(self, steps: int) -> bool:
        """Returns whether steps are quick, and many are left, so that a second program pays.

        Its compiling takes about a second; a GPU that asks the host at each step loses 13 us or
        more a step, and does nothing while a log is written.

        Args:
            steps: How many steps take two seconds.
        """
        left = steps if self._run.steps is None else self._run.steps - self._run.step
        return min(steps, left) >= _MANY

    def _is_last(self, step: int) -> bool:
        return self._run.is_last(step)


def _intervals(plan: Plan) -> list[int]:
    """Returns the numbers of steps after which something is due, again and again."""
    eval_every = evaluation_interval(plan)
    steps = [plan.log_every, *(c.steps for c in plan.callbacks if isinstance(c, callbacks.every))]
    steps += [eval_every] if plan.evaluators and eval_every else []
    return steps + ([plan.checkpoint.every] if plan.workdir is not None else [])
