"""A Python process that has a given server as its Hub."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LOOP = """
import json, os, sys, traceback
wire = os.fdopen(os.dup(1), "w")
scope = {}
for line in sys.stdin:
    with open(json.loads(line)["log"], "w") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    scope["result"] = None
    try:
        exec(json.loads(line)["code"], scope)
        answer = {"result": scope["result"]}
    except BaseException as error:
        answer = {
            "type": type(error).__name__,
            "types": [kind.__name__ for kind in type(error).__mro__],
            "message": "\\n".join([str(error), *getattr(error, "__notes__", [])]),
            "traceback": traceback.format_exc(),
        }
    sys.stdout.flush(), sys.stderr.flush()
    wire.write(json.dumps(answer) + "\\n")
    wire.flush()
"""


@dataclass(frozen=True)
class Failure:
    """An exception that was raised in a `HubProcess`."""

    type: str
    types: list[str]
    message: str
    traceback: str


class HubProcess:
    """A Python process, warnings as errors, that runs pieces of code against a Hub.

    The Hugging Face libraries read their endpoint and their offline switch once, when they are
    imported; one process serves many pieces of code, so that the import is paid once.

    Args:
        endpoint: the Hub's address.
        home: the folder of the caches (`HF_HOME`); a fresh one when None.
        **env: environment variables beside those.
    """

    def __init__(self, endpoint: str, home: str | Path | None = None, **env: str):
        self._own = tempfile.TemporaryDirectory(prefix="hub-process-")
        self.home = Path(home or self._own.name)
        self._log = Path(self._own.name) / "log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "JAX_PLATFORMS": "cpu",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _LOOP],
            env=clean | settings | env,
            cwd=self._own.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, code: str) -> object:
        """Runs `code` and returns the variable `result` that it leaves, or a `Failure`."""
        line = json.dumps({"code": code, "log": str(self._log)})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process died: {self._log.read_text()}")
        answer = json.loads(answer)
        return answer["result"] if "result" in answer else Failure(**answer)

    def __call__(self, code: str) -> object:
        """Runs `code` as `run` does; an exception in it is one here."""
        answer = self.run(code)
        if isinstance(answer, Failure):
            raise RuntimeError(answer.traceback)
        return answer

    @property
    def output(self) -> str:
        """What the last piece of code printed and logged."""
        return self._log.read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()
        self._own.cleanup()

    def __enter__(self) -> "HubProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()
