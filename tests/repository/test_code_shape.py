"""benchmarks/code_shape.py: the import graph of the repository, and of a made-up one."""

import runpy

import pytest

from ..helpers.tools import ROOT


@pytest.fixture(scope="module")
def shape():
    return runpy.run_path(str(ROOT / "benchmarks" / "code_shape.py"))


def test_shape_of_the_repository_has_no_cycle_and_no_upward_import(shape):
    graph = shape["graph_of"](ROOT / "harness")
    assert len(graph) > 200 and sum(map(len, graph.values())) > 1000
    assert shape["cycles"](graph) == [] and shape["upward"](graph) == []
    packages = shape["by_package"](graph)
    assert set(packages) == {*shape["PACKAGES"], "__main__"}
    assert shape["levels"](packages) <= len(packages)


def test_shape_finds_cycles_levels_and_upward_imports(shape, tmp_path):
    files = {
        "core/__init__.py": "",
        "core/low.py": "def late():\n    from ..api.high import x\n",
        "api/__init__.py": "",
        "api/high.py": "from ..core import low\nfrom harness.core.alone import y\n",
        "core/alone.py": "y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = shape["graph_of"](tmp_path)
    assert graph["api.high"] == {"core.low", "core.alone"}
    assert shape["cycles"](graph) == [{"core.low", "api.high"}]
    assert shape["levels"](graph) is None
    assert shape["upward"](graph) == [("core.low", "api.high")]
    graph["core.low"] = set()
    assert shape["levels"](graph) == 2 and shape["cycles"](graph) == []
    assert shape["upward"](graph) == []


def test_shape_prints_the_graph_of_packages(shape, tmp_path):
    for package in shape["PACKAGES"]:
        (tmp_path / "harness" / package).mkdir(parents=True)
        (tmp_path / "harness" / package / "__init__.py").write_text("")
    (tmp_path / "harness" / "cli" / "app.py").write_text("from ..core import *\n")
    for folder in ("harness", "plugins", "suites"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "one.py").write_text("def f():\n    pass\n\n\nx = 1\n")
    lines = list(shape["lines"](tmp_path, True))
    assert "upward imports 0" in lines and "cli -> core" in lines and "core -> nothing" in lines
    assert "plugins: 1 functions, lines: median 2, p90 2, longest 2" in lines
    assert "suites: 1 files, lines: median 5, p90 5, longest 5" in lines
