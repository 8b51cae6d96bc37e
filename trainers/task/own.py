"""A task with the user's own loss."""

from collections.abc import Callable
from typing import Any

import jax
from clu import metrics as clu
from flax import nnx

from datarax.errors import listed
from trainers.step.objective import Objective
from trainers.task.default_metrics import Found, expect_computable
from trainers.task.inputs import Columns
from trainers.task.task import Task, infer, labels

_CALL = 'predict(source, lambda model, batch: model(batch["x"]))'


class OwnLoss:
    """A task with the user's own loss.

    Args:
        loss: `(model, batch) -> losses | (losses, outputs)`.
        columns: The columns of the training source.
        chosen: Class of the metrics; None: accuracy where the loss returns `logits` and integer
            `labels`, else nothing but the loss.
        precision: Dtype in which the model computes, or None for its parameters' own.

    Attributes:
        label: Column of the labels, or None.
        precision: As given.
        has_tokens: Whether there is a loss a token, not a record; known once the loss is traced.
    """

    def __init__(
        self,
        loss: Callable[[nnx.Module, dict], Any],
        columns: Columns,
        chosen: type[clu.Collection] | None = None,
        precision: Any = None,
    ):
        if chosen is not None:
            expect_computable(chosen)
        found = labels(columns.features, columns.spec)
        self.label = found[0] if len(found) == 1 else None
        self._loss, self._chosen, self.precision = loss, chosen, precision
        self._has_accuracy = False  # known once the loss is traced
        self.has_tokens = False

    @property
    def name(self) -> str:
        """What the loss is called."""
        name = getattr(self._loss, "__qualname__", type(self._loss).__qualname__)
        return name if name != "<lambda>" else "a lambda"

    @property
    def inferred(self) -> str:
        """What is inferred, in one line, known once the loss is traced."""
        return "accuracy of the loss's logits and labels" if self._has_accuracy else ""

    def objective(self, columns: Columns, *, seed: int | None = None) -> Objective:
        """Returns the objective over batches of a source; `columns` and `seed` do not matter."""

        def loss(model: nnx.Module, batch: dict) -> Any:
            result = self._loss(model, batch)
            has_two = isinstance(result, tuple) and len(result) == 2
            losses, outputs = result if has_two else (result, {})
            self.has_tokens = isinstance(losses, jax.Array) and losses.ndim == 2
            self._has_accuracy = self._chosen is None and Found.fits(outputs)
            return result

        if self._chosen is None:
            return Objective(loss, Found, None, self.precision)
        return Objective(loss, self._chosen, self.label, self.precision)

    def predicts(self, model: nnx.Module, columns: Columns) -> Callable[[nnx.Module, dict], Any]:
        """Returns `(model, batch) -> outputs`: the loss's, without weights.

        Raises:
            ValueError: When it is traced, if the loss returns no outputs, or reads a column that is
                not there.
        """

        def outputs(model: nnx.Module, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            try:
                result = self._loss(model, batch)
            except KeyError as error:
                if error.args[0] in batch:
                    raise
                raise ValueError(
                    f"The loss reads the column {error.args[0]!r}, but this source has "
                    f"{listed(columns.spec)}: write {_CALL}."
                ) from error
            found = result[1] if isinstance(result, tuple) and len(result) == 2 else {}
            found = {name: value for name, value in found.items() if name != "weight"}
            if not found:
                raise ValueError(
                    "The loss returns nothing beside the losses, so there is nothing to predict: "
                    f'return losses, {{"logits": logits}}, or write {_CALL}.'
                )
            return found

        return outputs


def task_of(
    loss: Callable[[nnx.Module, dict], Any] | None,
    model: nnx.Module,
    columns: Columns,
    chosen: type[clu.Collection] | None = None,
    precision: Any = None,
) -> Task | OwnLoss:
    """Returns the task of an own loss; where there is none, the one that fits the columns."""
    if loss is None:
        return infer(model, columns, chosen, precision)
    return OwnLoss(loss, columns, chosen, precision)
