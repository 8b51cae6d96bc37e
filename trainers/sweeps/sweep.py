"""`sweep`: several learning rates, seeds and the like trained together in one program."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import optax
from flax import nnx

from trainers.devices.layout import outside_mesh
from trainers.loop.arguments import Checkpoints
from trainers.loop.plan import Plan
from trainers.report.result import Result
from trainers.run import Status
from trainers.step.average import averaged
from trainers.step.optimizer import plain
from trainers.sweeps import program
from trainers.sweeps.result import SweepResult, best_of
from trainers.sweeps.run import SweepRun
from trainers.sweeps.settings import Settings, members_of, model_of, optimizer_of
from trainers.trainer import Trainer
from trainers.weights.export import export

BEST = "best.safetensors"
"""What the best member's parameters are called in the workdir."""

_REFUSED = {
    "callbacks": "a callback sees one model, and there are several",
    "init_from": "load the weights in make_model",
    "profile": "profile one run of a Trainer",
    "skip": "leave the records out with source.select(...)",
}


@outside_mesh
def sweep(
    make_model: Callable[..., nnx.Module],
    source: Any,
    *,
    optimizer: Callable[..., optax.GradientTransformation] = optax.adamw,
    **arguments: Any,
) -> SweepResult:
    """Trains one model with several settings together, in one compiled program.

    There is a member for every combination of the lists. All see the same batches, which are formed
    once; a member's losses are those of its own run, `Trainer(make_model(seed), source,
    optimizer=optimizer(learning_rate=...), ...)`, but for rounding. A member whose loss or gradient
    is not finite is frozen before that batch; the others go on.

    With `workdir=` the sweep is saved and goes on as a run does, bit for bit; `report.html` there
    has all curves, `best.safetensors` the best member's parameters.

    Args:
        make_model: Makes a member's model: `make_model(rngs=nnx.Rngs(seed))` or
            `make_model(seed=seed)` where a parameter is called so, `make_model(seed)` where it
            needs another argument, else `make_model()`. All have one structure.
        source: As for `Trainer`.
        optimizer: Makes an optimizer of what is swept, by name, such as `optax.adamw`, or
            `lambda learning_rate: optax.adamw(optax.cosine_decay_schedule(learning_rate, 1000))`.
        arguments: Lists of numbers, by name: `learning_rate=[...]` and other parameters of the
            optimizer, `seed=[...]` of `make_model`; one number is the same for all. Beside them the
            arguments of `Trainer`. `checkpoint=Checkpoints(best=(metric, mode))` says by which
            last value the best is chosen; else it is the least `eval/loss`, or `train/loss`.

    Returns:
        Each member's result, a table of all, and which is the best.

    Raises:
        TypeError: If an argument is of neither the optimizer nor the trainer.
        ValueError: If there is nothing to sweep, the models are of several structures, or the
            workdir is of a sweep with other members.

    Example:
        >>> x = np.arange(8.0)[:, None]
        >>> source = MemorySource(MemorySourceConfig(), {"x": x, "target": 2 * x[:, 0]})
        >>> found = sweep(
        ...     lambda seed: nnx.Linear(1, 1, rngs=nnx.Rngs(seed)),
        ...     source, loss=lambda model, batch: (model(batch["x"])[:, 0] - batch["target"]) ** 2,
        ...     learning_rate=[0.1, 0.0], steps=50,
        ... )  # doctest: +ELLIPSIS
        step 50/50 ...
        >>> found.settings[found.best]
        {'learning_rate': 0.1}
    """
    shared = set(inspect.signature(Trainer).parameters) - {"model", "source", "seed"}
    for name in _REFUSED.keys() & arguments.keys():
        raise TypeError(f"sweep() takes no {name}=: {_REFUSED[name]}.")
    own = {name: arguments.pop(name) for name in list(arguments) if name not in shared}
    if not callable(optimizer):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: expected the function that makes one, as "
            "optimizer=optax.adamw, since its arguments are what is swept."
        )
    settings = members_of(own, optimizer, shared)
    models = [model_of(make_model, one) for one in settings]
    first = Trainer(models[0], source, optimizer=optimizer_of(optimizer, settings[0]), **arguments)
    planned = first._plan
    if callable(planned.update.ema):
        raise TypeError("sweep() takes no function as ema=: write a decay, such as ema=0.999.")
    checkpoint = dataclasses.replace(planned.checkpoint, best=None)
    plan = dataclasses.replace(planned, checkpoint=checkpoint)
    plans = [
        dataclasses.replace(
            plan,
            model=model,
            update=dataclasses.replace(plan.update, optimizer=plain(optimizer_of(optimizer, one))),
        )
        for model, one in zip(models, settings, strict=True)
    ]
    run = SweepRun(plans, settings)
    status = run()
    return _ended(run, plans, settings, planned.checkpoint, status)


def _ended(
    run: SweepRun,
    plans: list[Plan],
    settings: list[Settings],
    checkpoint: Checkpoints,
    status: Status,
) -> SweepResult:
    """Puts the members' variables into their models, and returns what came of the sweep."""
    alive, steps = run.going_on(), program.steps_of(run.state)
    results = []
    for i, plan in enumerate(plans):
        state = program.member(run.state, i)
        params, rest, average = plan.layout.unplaced((state.params, state.rest, state.ema))
        nnx.update(plan.model, params, rest)
        ema = averaged(plan.model, average, plan.update.wrt)
        history = _history(run, i)
        metrics = {k: v for row in history for k, v in row.items() if "/" in k}
        own: Status = status if i in alive else "diverged"
        results.append(Result(steps[i], plan.model, ema, metrics, history, None, own))
    metric = checkpoint.best or _metric(plans[0])
    best = best_of(results, metric)
    run.page.write(best, closed=True)
    if best is not None and plans[0].workdir is not None and status == "finished":
        export(results[best].ema or results[best].model, plans[0].workdir / BEST)
    return SweepResult(settings, results, metric, best, status)


def _metric(plan: Plan) -> tuple[str, str]:
    names = [f"eval/{name}/loss" if name else "eval/loss" for name in plan.evaluators]
    return [*names, "train/loss"][0], "min"


def _history(run: SweepRun, number: int) -> list[dict[str, Any]]:
    """Returns a member's rows of the history, as a run of its own has them."""
    prefix, found = f"{number}/", []
    for row in run.run.history:
        own = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        if own:
            found.append({k: v for k, v in row.items() if "/" not in k} | own)
    return found
