"""Signals: SIGTERM asks for saving and ending, Ctrl-C for stopping after the chunk."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Signals:
    """What signals have asked for since the run began.

    Attributes:
        preempted: Whether SIGTERM came: the machine is about to be taken away.
        interrupted: Whether Ctrl-C came.
    """

    def __init__(self):
        self.preempted = False
        self.interrupted = False

    def asked(self) -> bool:
        """Returns whether any signal has asked for an end."""
        return self.preempted or self.interrupted

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
        self.preempted = True

    def _interrupt(self, *_):
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
