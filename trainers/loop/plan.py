"""The plan of a run: the arguments of `Trainer`, checked and completed."""

import dataclasses

from etils import epath
from flax import nnx

from datarax import Pipeline
from trainers.callbacks import Callback
from trainers.checkpoints import Checkpoints
from trainers.data.eager import Batches
from trainers.data.stream import StreamBatches
from trainers.devices.layout import Layout
from trainers.loop.evaluation import Evaluator
from trainers.step.objective import Objective
from trainers.step.step import Update
from trainers.writers import Writer


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run does; the fields are as in `Trainer`."""

    model: nnx.Module
    pipeline: Pipeline
    batches: Batches | StreamBatches
    layout: Layout
    objective: Objective
    update: Update
    evaluators: dict[str, Evaluator]
    steps: int
    log_every: int
    eval_every: int
    callbacks: tuple[Callback, ...]
    checkpoint: Checkpoints
    workdir: epath.Path | None
    init_from: epath.Path | None
    writers: tuple[Writer, ...]
    resume_data: str
    profile: tuple[int, int] | None
