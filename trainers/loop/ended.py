"""The end of a run without a workdir, from which the next `fit` of the same trainer goes on."""

import dataclasses
from typing import Any

from trainers.devices.arrays import Snapshot
from trainers.run import Run
from trainers.step.state import State


class Ended:
    """Keeps what a run without a workdir would have saved, in host memory.

    The variables of the model are not among it: they are in the model, as whoever changes them
    there expects.

    Args:
        run: The run.
        state: Its state.
        data_state: The source's state at the same step.
    """

    def __init__(self, run: Run, state: State, data_state: dict[str, Any]):
        self._run = run
        self._training = Snapshot(dataclasses.replace(state, params=None, rest=None))
        self._data_state = data_state

    def taken_up(self, run: Run, state: State) -> tuple[State, dict[str, Any] | None]:
        """Returns the state and that of the data, from which a run goes on.

        Args:
            run: Gets the step and the history.
            state: A state of a run that begins, with the model's variables.
        """
        run.takes(self._run)
        training = self._training.restored()
        state = dataclasses.replace(training, params=state.params, rest=state.rest)
        return state, self._data_state if run.data_start < run.step else None
