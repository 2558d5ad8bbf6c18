"""Floors of the house: imports point downwards, and no files import one another in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the lowest floor to the highest; `import mulosd._C` is csrc, below all of them.
FLOORS = {"mulosd.kernels": "kernels", "mulosd.engine": "engine", "mulosd": "python/mulosd"}


def modules() -> dict[str, Path]:
    """Every file of the three floors by its module's name."""
    found = {}
    for package, folder in FLOORS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules out of `known` that a file imports, wherever: in functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) + (path.name == "__init__.py") - node.level]
            source = ".".join([*(base if node.level else []), *([node.module] if node.module else [])])
            for alias in node.names:
                found.add(f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source)
    return (found & known.keys()) - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach one another (Tarjan's strongly connected components of two and more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in graph[node]:
            if after not in index:
                visit(after)
            if after in stack:
                low[node] = min(low[node], low[after])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: imports(module, path, known) for module, path in known.items()}


def test_the_reading_of_imports_sees_what_it_should(graph: dict[str, set[str]]) -> None:
    assert "mulosd.engine.engine" in graph["mulosd"], "for type checkers"
    assert "mulosd.engine.scheduler" in graph["mulosd.engine.engine"]
    assert "mulosd.kernels.philox" in graph["mulosd.engine.sampling"], "from a package"
    assert "mulosd.engine.calibrate" in graph["mulosd.cli.calibrate"], "in a function"
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_no_files_import_one_another_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == []


def test_imports_point_downwards(graph: dict[str, set[str]]) -> None:
    def floor(module: str) -> int:
        return next(i for i, package in enumerate(FLOORS) if module == package or module.startswith(package + "."))

    assert [(a, b) for a, after in graph.items() for b in after if floor(b) > floor(a)] == []
