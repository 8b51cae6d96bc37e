"""The architecture that MAP.md tells of, read from the imports of both packages."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: each may import those before it.
FLOORS = {
    "datarax": [
        *("errors", "order", "hub", "columns"),
        *("tokens", "transforms", "stages", "stream", "sources", "pipeline"),
    ],
    "trainers": [
        *("run", "callbacks", "writers", "metrics", "devices", "step", "task", "data"),
        *("loop", "workdir", "report", "weights", "fit", "trainer", "sweeps"),
    ],
}
LONGEST = 300
ALSO_LONG = {"trainers/trainer.py"}  # two thirds of it are the docstring of `Trainer`

# What does not hold yet. An entry that is no longer needed fails, so this only shrinks.
PENDING: set[str] = set()


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {
    module_of(path): path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))
}
FACES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imports_of(module: str) -> set[str]:
    """Returns the modules of both packages that a module imports, wherever in its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {node.module}
    return {name for name in found if name.split(".")[0] in FLOORS}


IMPORTS = {module: imports_of(module) for module in MODULES}
ARROWS = [(module, other) for module in MODULES for other in sorted(IMPORTS[module])]


def room(module: str) -> tuple[str, str]:
    """Returns a module's package and its file or folder on the top level."""
    package, *inner = module.split(".")
    return package, inner[0] if inner else ""


def stands_below(lower: str, upper: str) -> bool:
    (package, one), (other, two) = room(lower), room(upper)
    if package != other:
        return package == "datarax"
    floors = FLOORS[package]
    known = one in floors and two in floors
    return known and floors.index(one) < floors.index(two)


def upward() -> set[str]:
    return {
        f"{module} imports {other}, which is not below it"
        for module, other in ARROWS
        if module not in FLOORS and room(module) != room(other) and not stands_below(other, module)
    }


def through_a_face() -> set[str]:
    return {
        f"{module} imports the face {other}"
        for module, other in ARROWS
        if module not in FACES and other in FACES and room(other)[0] == room(module)[0]
    }


def is_name(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        return names <= {"__all__", "__version__", "logger"} and len(node.targets) == 1
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_docstring or isinstance(node, ast.ImportFrom)


def faces_with_code() -> set[str]:
    bodies = {name: ast.parse(MODULES[name].read_text()).body for name in FACES}
    return {
        f"{name}, a face, has code in line {node.lineno}"
        for name, body in bodies.items()
        for node in body
        if not is_name(node)
    }


def rooms_without_a_floor() -> set[str]:
    rooms = {room(module) for module in MODULES if module not in FLOORS}
    floors = {(package, name) for package in FLOORS for name in FLOORS[package]}
    return {
        f"{'.'.join(one)} is in the packages or in FLOORS, not in both" for one in rooms ^ floors
    }


def too_long() -> set[str]:
    paths = {path.relative_to(ROOT).as_posix(): path for path in MODULES.values()}
    return {
        f"{name} has more than {LONGEST} lines"
        for name, path in paths.items()
        if len(path.read_text().splitlines()) > LONGEST and name not in ALSO_LONG
    }


RULES = upward, through_a_face, faces_with_code, rooms_without_a_floor, too_long


@pytest.mark.parametrize("rule", RULES)
def test_the_architecture_holds(rule):
    broken = rule()
    assert broken <= PENDING, "\n".join(sorted(broken - PENDING))


def test_nothing_is_pending_that_holds():
    broken = set().union(*(rule() for rule in RULES))
    assert not PENDING - broken, "\n".join(sorted(PENDING - broken))


def test_no_imports_run_in_a_circle():
    files = {module: IMPORTS[module] - {module} for module in MODULES if module not in FACES}
    graphlib.TopologicalSorter(files).prepare()  # raises CycleError, with the circle


def test_a_reader_sees_few_rooms():
    assert len(FLOORS["datarax"]) <= 10
    assert len(FLOORS["trainers"]) <= 15
