"""How the tests are laid out: what two test files share stands in tests/helpers."""

import ast
import subprocess

from ..helpers.tools import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))


def imported_test_files(source):
    """The test files that a module imports, by the last part of their names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(alias.name for alias in node.names)]
        else:
            continue
        files = [module.rpartition(".")[2] for module in modules]
        found += [name for name in files if name.startswith("test_")]
    return found


def test_no_test_file_is_imported():
    assert len(FILES) > 80
    found = {str(file.relative_to(ROOT)): imported_test_files(file.read_text()) for file in FILES}
    assert {file: names for file, names in found.items() if names} == {}


def test_import_of_a_test_file_is_seen():
    sources = (
        "from .test_streams import Plain",
        "from ..training import test_streams",
        "import tests.training.test_streams",
        "def late():\n    from ..training.test_streams import Plain",
    )
    assert [imported_test_files(source) for source in sources] == [["test_streams"]] * 4


def test_numeric_tests_of_other_kernels_exist():
    done = subprocess.run(
        [ROOT / ".ci" / "kernels", "--files"], capture_output=True, text=True, check=True
    )
    files = done.stdout.splitlines()
    assert len(files) > 15 and all((ROOT / file).is_file() for file in files)
