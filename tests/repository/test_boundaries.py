"""Who may import whom, what is never loaded for a quick command, frozen flags, and the size of
functions and files.
"""

import ast
import json
import os
import resource
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from harness.cli.app import cli

from ..helpers.tools import ENV, ROOT, fresh, plugin, process

HEAVY = ("torch", "transformers", "datasets", "evaluate", "pandas")
LAYERS = "core statistics models api training evaluation experiments report check cli".split()
LIGHT_LAYERS = (
    "core",
    "statistics",
    "api",
    "experiments",
    "report",
    "cli",
)  # modules load no torch
LATE = {  # third-party imports inside functions of plugins and suites
    ("console", "rich"),
    ("reporters", "jinja2"),
    ("sources", "pyarrow"),
    ("endpoint", "httpx"),
    ("json_schema", "jsonschema"),
    ("reasoning_gym", "reasoning_gym"),
    ("sources", "datasets"),
    ("launcher_ray", "ray"),
    *(("engine_vllm", name) for name in ("numpy", "torch", "vllm")),
    *(("trl_trainers", name) for name in ("datasets", "numpy", "transformers", "trl")),
}
WORLD_MAY = {"torch", "transformers", "tokenizers"}
# One argument a line takes about a fifth more lines than the packed layout before it.
MOST_LINES = {"function": 50, "file": 500}

FLAGS = {
    "compare": {"-s", "--suite", "--study", "--where", "--format", "--results"},
    "reproduce": {
        "--sample",
        "--run",
        "--into",
        "--loose",
        "--anyway",
        "--data-folder",
        "-p",
        "--plugin",
    },
    "evaluate": {
        "--judge",
        "--judge-set",
        "--greedy",
        "--against",
        "--stage-set",
        "--tasks",
        "--task-data",
        "--answer-timeout",
        "-p",
        "--plugin",
    },
    "check": {
        "-s",
        "--suite",
        "--model",
        "--set",
        "--optimum-set",
        "--quick",
        "--against",
        "--export",
        "-o",
        "--output",
        "-p",
        "--plugin",
    },
    "new": {"--folder"},
    "clean": {"--results", "--delete", "--older-than", "--failed", "--policy-of"},
    "list": {"-p", "--plugin"},
    "plot": {
        "--kind",
        "-s",
        "--suite",
        "--study",
        "--methods",
        "--where",
        "-o",
        "--output",
        "--results",
    },
    "power": {
        "--prompts",
        "--seeds",
        "--effect",
        "--ties",
        "--seed-sd",
        "--prompt-share",
        "--correlation",
        "--rows",
    },
    "report": {"--results", "-s", "--suite", "--prompts", "-o", "--output", "--bundle"},
    "run": {
        "-m",
        "--method",
        "-s",
        "--suite",
        "--set",
        "--suite-set",
        "--stage-set",
        "--judge-set",
        "--labeller-set",
        "--model",
        "--start",
        "--reference",
        "--reward-model",
        "--seed",
        "--shared-seed",
        "--answer-timeout",
        "--budget",
        "--judge",
        "--labeller",
        "--engine",
        "--engine-set",
        "--device",
        "--dtype",
        "--micro-batch-tokens",
        "--threads",
        "--checkpoint-every",
        "--activation-checkpointing",
        "--shard",
        "--check-rollouts",
        "--save",
        "--save-dtype",
        "--weights",
        "--decode-batch-tokens",
        "--results",
        "--snapshots",
        "--prompt-sharing",
        "--no-prompt-sharing",
        "--only-stages",
        "--quick",
        "--dry-run",
        "--track",
        "--track-project",
        "--track-group",
        "-p",
        "--plugin",
    },
    "show": {"-s", "--suite", "--model", "--set", "-p", "--plugin"},
    "study": {
        "--dry-run",
        "--retry-failed",
        "-j",
        "--jobs",
        "--launcher",
        "--launcher-set",
        "--results",
        "--track",
        "--track-project",
        "-p",
        "--plugin",
    },
    "table": {
        "-s",
        "--suite",
        "--methods",
        "--study",
        "--where",
        "--match",
        "--columns",
        "--spread",
        "--across",
        "--ratings",
        "--judges",
        "--each",
        "--mixed",
        "--format",
        "-o",
        "--output",
        "--results",
        "-p",
        "--plugin",
    },
}


def sources(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


CORE, PLUGINS, SUITES = sources("harness"), sources("plugins"), sources("suites")


def names(node):
    """The absolute modules an import statement names; relative ones begin with a dot."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return ["." * node.level + (node.module or "")]


def imports(file):
    """[(module, inside a function)] of a file; what stands under TYPE_CHECKING is left out."""
    found = []

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found.extend((name, late) for name in names(child))
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            else:
                walk(child, late or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    walk(ast.parse(file.read_text()), False)
    return found


def top(name):
    return name.partition(".")[0]


def test_there_are_sources():
    assert len(CORE) > 25 and len(PLUGINS) > 5 and len(SUITES) > 5


def test_core_never_imports_plugins_or_suites():
    for file in CORE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not any(
                    top(n) in ("harness_plugins", "harness_suites") for n in names(node)
                ), file


@pytest.mark.parametrize("file", PLUGINS + SUITES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_plugins_import_the_harness_the_standard_library_and_siblings(file):
    allowed = {"harness", "", *sys.stdlib_module_names}
    if file.parent.name == "world" or file.stem in (
        "pretrain",
        "make_exact_base",
    ):  # scripts: nothing imports them
        allowed |= WORLD_MAY
    if file.stem in ("math_child", "reasoning_gym_child"):  # run in a child process alone
        allowed |= {"math_verify", "reasoning_gym"}
    if file.parent.name == "isolation":  # started as a script: its neighbours have no package
        allowed |= {neighbour.stem for neighbour in file.parent.glob("*.py")}
    for name, late in imports(file):
        assert top(name) in allowed or (late and (file.stem, top(name)) in LATE), (
            f"{file} imports {name}"
        )
        assert not name.startswith("..."), f"{file} imports {name}"


def test_nothing_imports_the_pretraining_script():
    for file in CORE + PLUGINS + SUITES:
        assert not any(
            "pretrain" in name or "make_exact_base" in name for name, _ in imports(file)
        ), file


def modules():
    """{dotted name below harness: file} of the core."""
    paths = {file: file.relative_to(ROOT / "harness").with_suffix("").parts for file in CORE}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in paths.items()}


def edges():
    """{module: modules it imports}, late imports and TYPE_CHECKING included."""
    known, found = modules(), {}
    for module, file in known.items():
        package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
                names = {f"{base}.{alias.name}" for alias in node.names}
                found.setdefault(module, set()).update(n if n in known else base for n in names)
    return found


def upward(graph):
    """The imports of a package by one before it in the order of the layers."""
    rank = {layer: i for i, layer in enumerate(LAYERS)}
    pairs = [(a, b) for a, targets in graph.items() for b in targets]
    ranks = [(rank.get(a.split(".")[0], -1), rank.get(b.split(".")[0], -1)) for a, b in pairs]
    return [pair for pair, (a, b) in zip(pairs, ranks, strict=True) if -1 < a < b]


def test_package_imports_only_from_those_before_it():
    graph = edges()
    assert {m.split(".")[0] for m in modules()} - {"", "__main__"} == set(LAYERS)
    assert sum(map(len, graph.values())) > 300 and upward(graph) == []
    assert upward({"core.data": {"cli.app"}}) == [("core.data", "cli.app")]  # negative control


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({m: t for m, t in edges().items() if m}).prepare()  # raises CycleError
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def light(module):
    if module.startswith("experiments.requirements."):
        return False  # a dry run computes with models without weights; it is imported late
    return module.split(".")[0] in LIGHT_LAYERS or module == "models.engine"


def test_light_packages_load_nothing_heavy():
    names = ", ".join(f"harness.{m}" for m in sorted(modules()) if m and light(m))
    assert names.count(",") > 60 and loaded(f"import {names}") == []


def loaded(code):
    """The heavy modules that a fresh Python process has loaded after some code."""
    tail = (
        f"\nimport sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]),"
        " file=sys.__stderr__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + tail],
        capture_output=True,
        text=True,
        env={**os.environ, **ENV},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["list"],
        ["show", "ppo"],
        ["show", "summarization"],
        ["show", "dpo", "--suite", "summarization"],
        ["run", "-m", "pp0", "-s", "summarization"],
        ["table", "--results", "/nonexistent"],
        ["power", "--seeds", "3"],
        ["compare", "dpo", "ppo", "--results", "/nonexistent"],
        ["reproduce", "/nonexistent"],
        ["table", "--results", "/nonexistent"],
        ["study", str(ROOT / "examples" / "study.toml"), "--dry-run", "--results", "/nonexistent"],
    ],
    ids=" ".join,
)
def test_quick_commands_load_nothing_heavy(arguments):
    code = f"import sys\nsys.argv = ['harness', *{arguments!r}]\nfrom harness.cli.app import main\n"
    assert loaded(code + "try:\n    main()\nexcept SystemExit:\n    pass") == []


def test_plugins_are_light():
    assert loaded("from harness.api.registry import installed\nassert not installed().broken") == []


def test_negative_control_for_loaded():
    assert "pandas" in loaded("import pandas")


def cpu_seconds(*arguments):
    """Return the least CPU seconds of three Python processes. Compiled files may be kept."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            env={**os.environ, **ENV, "PYTHONDONTWRITEBYTECODE": ""},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)  # noise only adds


@pytest.mark.parametrize(("command", "share"), [("--help", 1 / 3), ("list", 1 / 2)])
def test_quick_commands_take_a_part_of_an_import_of_torch(command, share):
    """The limit is a ratio: the speed of the machine cancels. The list imports every plugin."""
    assert cpu_seconds("-m", "harness", command) < cpu_seconds("-c", "import torch") * share


def test_flags_are_frozen():
    found = {
        name: {
            flag
            for p in command.params
            if p.param_type_name == "option"
            for flag in (*p.opts, *p.secondary_opts)
        }
        for name, command in cli.commands.items()
    }
    assert found == FLAGS


def test_functions_are_short():
    found = set()
    for file in CORE + PLUGINS + SUITES + sources("benchmarks", "examples"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.FunctionDef)
                and node.end_lineno - node.lineno >= MOST_LINES["function"]
            ):
                found.add((str(file.relative_to(ROOT)), node.name))
    assert found == set()


def test_files_are_short():
    long = {
        str(f.relative_to(ROOT))
        for f in CORE + PLUGINS + SUITES
        if len(f.read_text().splitlines()) > MOST_LINES["file"]
    }
    assert long == set()


def test_all_source_is_ascii():
    here = Path(__file__).parent.parent
    for file in CORE + PLUGINS + SUITES + sorted(here.rglob("*.py")) + [ROOT / "pyproject.toml"]:
        assert file.read_bytes().isascii(), file


def test_every_module_has_a_docstring():
    for file in CORE + PLUGINS + SUITES:
        if file.read_text().strip():
            assert ast.get_docstring(ast.parse(file.read_text())), file


NOTING = """
import os
import sys

from harness import hookimpl


@hookimpl(trylast=True)
def run_started(spec, folder):
    heavy = ("torch", "transformers", "datasets", "pandas")
    there = (name for name in heavy if name in sys.modules)
    print("HEAVY", *there, flush=True)
    os._exit(0)
"""


def test_run_says_that_it_began_before_anything_heavy_is_imported():
    """Within a second, that is; counted in imports, which no loaded machine changes."""
    where = fresh("began")
    done = process(
        "run",
        "-m",
        "ppo",
        "-s",
        "summarization",
        "-p",
        plugin(where, "noting", NOTING),
        "--results",
        where,
    )
    assert done.out.splitlines()[-1] == "HEAVY", done.text
    assert "ppo on summarization" in done.text
