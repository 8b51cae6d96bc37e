"""The length of a chunk: about two seconds of steps."""

SECONDS = 2.0


class Pace:
    """Chooses how many steps to run before looking up: few at first, then as the rate allows."""

    def __init__(self):
        self._steps = 8

    def steps(self) -> int:
        """Returns how many steps the next chunk may have."""
        return self._steps

    def note(self, steps: int, seconds: float) -> None:
        """Learns from a chunk of `steps` steps that took `seconds`."""
        fitting = int(steps * SECONDS / max(seconds, 1e-6))
        self._steps = max(1, min(fitting, 8 * self._steps))
