"""The shape of the code: import graph of packages and modules, and the size of functions and files.

    python benchmarks/code_shape.py [CHECKOUT] [--graph]

Imports inside functions and for typing count too. It imports no code of the checkout.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGES = (  # a package imports only from those before it
    "core statistics models api training evaluation experiments report check cli"
).split()
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return the modules below a package folder: {dotted name: file}; the package itself is ""."""
    names = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports_of(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the known modules that a module imports, by relative or absolute names."""
    parts = module.split(".") if module else []
    package = parts if file.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        name = (node.module or "").split(".") if node.module else []
        if node.level:
            base = [*package[: len(package) - node.level + 1], *name]
        elif name[0] == "harness":
            base = name[1:]
        else:
            continue
        for alias in node.names:
            whole, short = ".".join([*base, alias.name]), ".".join(base)
            target = whole if whole in known else short
            if target in known and target != module and target:
                yield target


def graph_of(root: Path) -> Graph:
    """Return {module: the modules that it imports}; the package itself is left out."""
    known = modules(root)
    return {m: set(imports_of(m, file, known)) for m, file in known.items() if m}


def cycles(graph: Graph) -> list[set[str]]:
    """Return the sets of modules that import one another by way of others."""
    reached = {m: _reachable(graph, m) for m in graph}
    found: list[set[str]] = []
    for m in graph:
        ring = {n for n in reached[m] if m in reached.get(n, ())}
        if len(ring) > 1 and ring not in found:
            found.append(ring)
    return found


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        if (m := waiting.pop()) not in seen:
            seen.add(m)
            waiting += graph.get(m, ())
    return seen


def by_package(graph: Graph) -> Graph:
    """Return the graph of packages; a module that is directly in the root is its own package."""
    found: Graph = {}
    for m, targets in graph.items():
        here = m.split(".")[0]
        found.setdefault(here, set()).update(t.split(".")[0] for t in targets)
        found[here].discard(here)
    return found


def levels(graph: Graph) -> int | None:
    """Return the number of modules on the longest chain of imports; None if there is a cycle."""
    if cycles(graph):
        return None
    depth: dict[str, int] = {}

    def below(m: str) -> int:
        if m not in depth:
            depth[m] = 1 + max(map(below, graph.get(m, ())), default=0)
        return depth[m]

    return max(map(below, graph), default=0)


def upward(graph: Graph) -> list[tuple[str, str]]:
    """Return the imports of a package by one before it in the order of PACKAGES."""
    rank = {name: i for i, name in enumerate(PACKAGES)}
    return [
        (a, b)
        for a, targets in graph.items()
        for b in targets
        if rank.get(a.split(".")[0], -1) < rank.get(b.split(".")[0], -1) and a.split(".")[0] in rank
    ]


def sizes(root: Path) -> tuple[list[int], list[int]]:
    """Return the lines of all functions, and of all files, in order of size."""
    functions, files = [], []
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        files.append(len(text.splitlines()))
        functions += [
            (node.end_lineno or node.lineno) - node.lineno + 1
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    return sorted(functions), sorted(files)


def spread(numbers: list[int]) -> str:
    """Return median, 90th percentile and largest of sorted numbers."""
    return (
        f"median {numbers[len(numbers) // 2]}, p90 {numbers[int(0.9 * len(numbers))]},"
        f" longest {numbers[-1]}"
    )


def lines(checkout: Path, drawn: bool) -> Iterator[str]:
    """Yield the report on a checkout."""
    graph = graph_of(checkout / "harness")
    packages = by_package(graph)
    yield f"modules {len(graph)}, imports {sum(map(len, graph.values()))}"
    yield f"packages {len(packages)}, imports between them {sum(map(len, packages.values()))}"
    rings = sorted(map(len, cycles(graph)), reverse=True)
    yield f"cycles of modules {len(rings)} {rings or ''}".rstrip()
    yield f"levels of modules {levels(graph) or 'none: there are cycles'}"
    yield f"levels of packages {levels(packages) or 'none: there are cycles'}"
    if set(PACKAGES) <= set(packages):
        yield f"upward imports {len(upward(graph))}"
    for folder in ("harness", "plugins", "suites"):
        functions, files = sizes(checkout / folder)
        yield f"{folder}: {len(functions)} functions, lines: {spread(functions)}"
        yield f"{folder}: {len(files)} files, lines: {spread(files)}"
    if drawn:
        for name in sorted(packages, key=lambda n: (PACKAGES.index(n) if n in PACKAGES else 99, n)):
            yield f"{name} -> {', '.join(sorted(packages[name])) or 'nothing'}"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, nargs="?", default=REPOSITORY)
    parser.add_argument("--graph", action="store_true", help="Draw the packages and their imports.")
    args = parser.parse_args()
    print("\n".join(lines(args.checkout, args.graph)))


if __name__ == "__main__":
    main()
