"""The documents are accurate: hooks and their arguments, the tree, the example, the commands."""

import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest

from harness.api import hookspecs
from harness.api.contracts import Method
from harness.api.registry import installed
from harness.cli.app import cli

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLUGINS = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = {
    name: f
    for name, f in vars(hookspecs).items()
    if inspect.isfunction(f) and hasattr(f, "harness_spec")
}


def test_every_hook_is_documented_with_its_arguments():
    assert len(HOOKS) == 12
    for name, hook in HOOKS.items():
        assert f"`{name}({', '.join(inspect.signature(hook).parameters)})`" in PLUGINS


def test_every_part_of_the_lab_is_documented():
    from harness.training.lab import Lab

    public = [name for name in dir(Lab) if not name.startswith("_")]
    quiet = {"tokens", "device", "texts"}  # found by reading
    assert [name for name in public if name not in quiet and f"lab.{name}" not in PLUGINS] == []


def test_example_in_the_readme_is_the_file():
    assert (ROOT / "examples" / "hinge.py").read_text(encoding="utf-8").strip() in README


def packages_in_architecture():
    """Return the names of the packages in the table of docs/architecture.md, in its order."""
    return re.findall(r"^\| \d+ \| `(\w+)` \|", ARCHITECTURE, re.MULTILINE)


def test_packages_in_the_architecture_page_are_the_packages():
    there = {
        folder.name for folder in (ROOT / "harness").iterdir() if (folder / "__init__.py").is_file()
    }
    assert sorted(packages_in_architecture()) == sorted(there)


@pytest.mark.parametrize("folder", ["plugins/harness_plugins", "suites/harness_suites"])
def test_every_built_in_plugin_is_named_in_the_architecture_page(folder):
    there = {path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
    assert [name for name in sorted(there) if f"`{name}`" not in ARCHITECTURE] == []


def unknown_options(line):
    """Return the options of a `harness` command line that this command does not have."""
    words = shlex.split(line, comments=True)
    command = cli.commands[words[1]]
    options = {o for p in command.params for o in [*p.opts, *getattr(p, "secondary_opts", [])]}
    return [
        word for word in words[2:] if word.startswith("-") and word.split("=")[0] not in options
    ]


def commands(page):
    """Return the commands of a page's shell blocks that call harness, each on one line."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = [block.replace("\\\n", " ") for kind, block in fences if kind in ("", "sh")]
    return [line for block in blocks for line in block.splitlines() if line.startswith("harness ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_exist(page):
    assert [line for line in commands(page) if unknown_options(line)] == []


def test_documents_have_commands_and_an_unknown_option_is_seen():
    assert len(commands(ROOT / "README.md")) > 5
    assert unknown_options("harness run --methd ppo --suite exact") == ["--methd"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_documents_link_to_exist(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_navigation_of_the_site():
    pages = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_tables_in_the_readme_are_the_committed_ones():
    filled = runpy.run_path(str(ROOT / "results" / "readme.py"))["filled"]
    assert "| ppo" in README and filled(README) == README
    assert (
        filled(README.replace("| ppo", "| ppx")) == README
    )  # negative control: an edited table is seen


def test_no_figure_is_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@", README)


@pytest.mark.slow
def test_method_in_the_plugin_guide_passes_the_proofs(tmp_path):
    from harness.api.registry import installed, load_file
    from harness.check import FAILED, Options, check

    from ..helpers.tools import small_suite, with_shared_stages

    (code,) = re.findall(r"```python\n(@dataclass\n.*?)```", PLUGINS, re.DOTALL)
    head = (
        "from dataclasses import dataclass\n\nfrom harness import OnPolicyOptions, hookimpl\n\n\n"
    )
    tail = "\n\n@hookimpl\ndef register_methods(register):\n    register(Reinforce)\n"
    file = tmp_path / "guide.py"
    file.write_text(head + code + tail)
    registry = installed.__wrapped__()
    for path in (small_suite(), file):
        load_file(registry, str(path))
    told = Options(suite="small", full=False, results=with_shared_stages("guide"))
    findings = list(check("methods", "my_reinforce", registry, told))
    assert len(findings) == 16 and [f for f in findings if f.status == FAILED] == []


def test_statistics_in_the_guide_to_tables_are_over_runs_by_suites(tmp_path, monkeypatch, capsys):
    from harness.statistics.aggregate import iqm

    from ..helpers.toy_runs import run

    suites, told = ("summarization", "helpfulness", "arithmetic"), {}
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "tables.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        for method, kl in (("start", 0.01), ("dpo", 1.0), ("ppo", 2.0)):
            made = [
                run(tmp_path / "results", method, seed, kl + 0.1 * i, suite=s)
                for i, s in enumerate(suites)
            ]
            told.setdefault(method, []).append([r["evaluation"]["win_rate"]["mean"] for r in made])
        if seed == 0:
            with pytest.raises(ValueError, match="two runs"):
                exec(code, {})
    exec(code, {})
    printed = capsys.readouterr().out
    assert "'ppo': Rating(" in printed
    for method, by_run in told.items():
        figures = re.search(
            rf"^{method} Aggregate\(value=(\S+), low=(\S+), high=(\S+)\)", printed, re.MULTILINE
        )
        value, low, high = map(float, figures.groups())
        assert value == pytest.approx(iqm(by_run)) and low < value < high  # of runs, not of prompts


def test_optimum_in_the_guide_is_where_the_example_comes_to_rest():
    from harness.api.registry import load_file, new_registry

    from ..helpers.exact_lab import far_from

    file, registry = ROOT / "examples" / "harness-cpo" / "harness_cpo.py", new_registry()
    (code,) = re.findall(r"```python\n(    def optimum.*?)```", PLUGINS, re.DOTALL)
    assert code in file.read_text(encoding="utf-8")
    load_file(registry, str(file))
    cpo = registry.get("methods", "my_cpo")
    assert far_from(cpo(beta=0.5, alpha=0.1)) < 1e-4
    assert far_from(cpo(beta=0.5, alpha=0.5), optimum_of=cpo(beta=0.5, alpha=0.1)) > 0.02


def test_headline_of_the_methods_page_has_the_counts_of_the_registry():
    classes = installed().classes["methods"].values()
    stated = sum(cls.optimum is not Method.optimum for cls in classes)
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert f"Of {len(classes)} methods, {stated} state the distribution" in page
