"""The task: what a model is trained for, inferred from the features or given."""

from trainers.task.task import infer

__all__ = ["infer"]
