"""Runs an example of `examples/` in this process, as a command line would."""

import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch, name, *arguments):
    """Runs the `main` of an example, such as `"mnist"`, and returns what it returns."""
    path = EXAMPLES / f"{name}.py"
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main()
