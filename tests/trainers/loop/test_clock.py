"""The clock of a run."""

import subprocess
import sys

SCRIPT = """
import time
begun = time.perf_counter()
from trainers.loop.clock import Clock
time.sleep(0.2)
print(Clock().before, time.perf_counter() - begun)
"""


def test_a_shell_that_becomes_the_program_does_not_count():
    waited = ["sh", "-c", 'sleep 1; exec "$@"', "sh", sys.executable, "-c", SCRIPT]
    done = subprocess.run(waited, capture_output=True, text=True, check=True)
    before, since_python_began = map(float, done.stdout.split())
    assert 0.2 <= before < since_python_began
