"""Signals: SIGTERM asks for saving and ending, Ctrl-C for stopping after the chunk."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from trainers.devices import agreement
from trainers.devices.private import preempts_at

logger = logging.getLogger(__name__)


class Signals:
    """What signals have asked for since the run began: each process hears its own, all agree.

    Attributes:
        preempted: Whether SIGTERM came: the machine is about to be taken away.
        interrupted: Whether Ctrl-C came.
    """

    def __init__(self):
        self.preempted = False
        self.interrupted = False
        self._heard_terminate = False
        self._heard_interrupt = False

    def asked(self) -> bool:
        """Returns whether any signal has asked for an end; all processes ask together."""
        self.settle(*agreement.least(*self.votes()))
        return self.preempted or self.interrupted

    def votes(self) -> tuple[int, int]:
        """Returns what this process has heard, such that the least of all processes' counts."""
        return -self._heard_terminate, -self._heard_interrupt

    def settle(self, terminate: int, interrupt: int) -> None:
        """Notes the least votes of all processes."""
        self.preempted = self.preempted or terminate < 0
        self.interrupted = self.interrupted or interrupt < 0

    def platform_preempts(self, start: int, stop: int) -> bool:
        """Notes whether the platform takes the machines away before one of some steps.

        JAX agrees on one step with all processes, and says so at that step alone: each is asked
        for, once.

        Args:
            start: The next step.
            stop: The end of the steps.
        """
        if jax.process_count() > 1:
            answers = [preempts_at(step) for step in range(start, stop)]
            self.preempted = self.preempted or True in answers
        return self.preempted

    @contextmanager
    def watched(self) -> Iterator["Signals"]:
        """Handles SIGTERM and SIGINT until the block ends, and puts the old handlers back.

        The first Ctrl-C is noted, a second one raises `KeyboardInterrupt`. Outside the main thread
        Python allows no handlers; that is said once, and the signals do what they did before.
        """
        if threading.current_thread() is not threading.main_thread():
            logger.warning(
                "fit() runs outside the main thread, where Python allows no signal handlers: "
                "SIGTERM and Ctrl-C will not save a checkpoint first."
            )
            yield self
            return
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._terminate),
            signal.SIGINT: signal.signal(signal.SIGINT, self._interrupt),
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                # A handler that was not set from Python reads as None and cannot be set again.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _terminate(self, *_):
        self._heard_terminate = True

    def _interrupt(self, *_):
        if self._heard_interrupt:
            raise KeyboardInterrupt
        self._heard_interrupt = True
