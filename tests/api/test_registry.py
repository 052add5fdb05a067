"""The registry: entry points and files, one broken plugin at a time, and every hook exercised."""

import importlib
import inspect
import sys
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

import pytest

from harness.api import hookspecs
from harness.api import registry as registry_module
from harness.api.registry import KINDS, installed, load_entry_point, load_file, new_registry
from harness.core import digests as digests_module
from harness.core.digests import source_digest
from harness.core.errors import UsageError
from harness.experiments.observers import Observers

BASES = {
    "methods": "Method",
    "suites": "Suite",
    "judges": "Judge",
    "labellers": "Labeller",
    "verifiers": "Verifier",
    "engines": "Engine",
    "reporters": "Reporter",
    "launchers": "Launcher",
}


MUST = {  # what a class of a kind has to define
    "methods": ["train"],
    "suites": ["prompts", "demonstrations"],
    "judges": ["score"],
    "labellers": ["compare"],
    "verifiers": ["verify"],
    "engines": ["generate"],
    "reporters": ["render"],
    "launchers": ["run"],
}


def source(kind, name="mine", more=""):
    """A plugin that registers one class of a kind."""
    body = "".join(
        f"    def {method}(self, *args):\n        return args\n\n" for method in MUST[kind]
    )
    return (
        f"from harness import {BASES[kind]}, hookimpl\n\n\nclass Mine({BASES[kind]}):\n    name ="
        f" {name!r}\n\n{body}\n@hookimpl\ndef register_{kind}(register):\n   "
        f" register(Mine)\n\n\n{more}"
    )


class Distribution(NamedTuple):
    """What is read of a distribution."""

    name: str
    version: str


@pytest.fixture
def entry_point(tmp_path, monkeypatch):
    """A factory of entry points whose modules are files: `entry_point("dpo", source, dist="other",
    version="2")`.
    """
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name, text, dist="strange", version="1.0"):
        module = f"plug_{tmp_path.name.replace('-', '_')}_{len(made)}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(text)
        return metadata.EntryPoint(name, module, "harness")._for(Distribution(dist, version))

    yield make
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def registry():
    return new_registry()


# -- loading ---------------------------------------------------------------------------------------


def test_entry_points_are_loaded_in_the_order_of_their_names(entry_point, monkeypatch):
    points = [
        entry_point(n, source("methods", n), dist=d)
        for n, d in [("c", "x"), ("a", "x"), ("b", "y"), ("b2", "a")]
    ]
    monkeypatch.setattr(
        registry_module.metadata, "entry_points", lambda group: points if group == "harness" else []
    )
    fresh = installed.__wrapped__()
    assert [name for _, name in fresh.origins] == ["a", "b", "b2", "c"] and not fresh.broken


def test_every_built_in_is_an_entry_point_that_loads():
    here = installed()
    assert not here.broken and not here.clashes
    assert {"start", "ppo", "dpo", "best_of_n"} <= set(here.classes["methods"])
    assert {"summarization", "preference_file"} <= set(here.classes["suites"])
    assert {origin.distribution for origin in here.origins.values()} == {"alignment-harness"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("raise RuntimeError('on import')", "on import"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_plugin_that_does_not_import_is_isolated(registry, entry_point, text, reason):
    load_entry_point(registry, entry_point("ill", text))
    load_entry_point(registry, entry_point("well", source("methods", "well")))
    assert registry.get("methods", "well").name == "well"
    origin, told = registry.broken["ill"]
    assert origin.distribution == "strange" and reason in told
    with pytest.raises(UsageError, match=f"'ill' of strange did not load.*{reason}"):
        registry.get("methods", "ill")


def test_plugin_that_exits_is_isolated(registry, entry_point):
    load_entry_point(registry, entry_point("ill", "import sys\nsys.exit(3)"))
    assert "ill" in registry.broken


def test_list_shows_a_broken_plugin(registry, entry_point, monkeypatch):
    from click.testing import CliRunner

    from harness.cli import app, options

    load_entry_point(registry, entry_point("ill", "raise RuntimeError('on import')"))
    load_entry_point(registry, entry_point("ppo", source("methods", "ppo"), dist="one"))
    load_entry_point(
        registry, entry_point("ppo", source("methods", "ppo"), dist="two", version="2.5")
    )
    monkeypatch.setattr(options, "installed", lambda: registry)
    done = CliRunner().invoke(app.cli, ["list"])
    assert (
        done.exit_code == 0 and "broken: ill of strange 1.0: RuntimeError: on import" in done.output
    )
    assert "clash: method ppo is offered by one 1.0, two 2.5" in done.output


def test_same_name_from_two_distributions_is_refused(registry, entry_point):
    load_entry_point(registry, entry_point("dpo", source("methods", "dpo"), dist="one"))
    load_entry_point(
        registry, entry_point("dpo", source("methods", "dpo"), dist="two", version="2.5")
    )
    with pytest.raises(
        UsageError, match=r"'dpo' is offered by one 1.0 \(dpo\) and two 2.5 \(dpo\)"
    ):
        registry.get("methods", "dpo")
    load_entry_point(registry, entry_point("third", source("methods", "dpo"), dist="three"))
    with pytest.raises(UsageError, match="one .* and two .* and three"):
        registry.get("methods", "dpo")


def test_same_name_of_another_kind_is_no_clash(registry, entry_point):
    load_entry_point(registry, entry_point("a", source("methods", "same")))
    load_entry_point(registry, entry_point("b", source("judges", "same")))
    assert registry.get("methods", "same") is not registry.get("judges", "same")


def test_misspelt_hook_is_refused_by_name(registry, entry_point):
    text = "from harness import hookimpl\n\n\n@hookimpl\ndef register_metods(register):\n    pass\n"
    load_entry_point(registry, entry_point("ill", text))
    assert "register_metods" in registry.broken["ill"][1]
    load_entry_point(registry, entry_point("well", source("methods", "well")))
    assert registry.get("methods", "well")


def test_unknown_argument_of_a_hook_is_refused_by_name(registry, entry_point):
    text = (
        "from harness import hookimpl\n\n\n@hookimpl\ndef register_methods(registrar):\n    pass\n"
    )
    load_entry_point(registry, entry_point("ill", text))
    assert "registrar" in registry.broken["ill"][1]


@pytest.mark.parametrize("name", ["Upper", "with-dash", "", "1st", "a b", "../up", None, 3])
def test_bad_class_name_is_refused(registry, entry_point, name):
    load_entry_point(registry, entry_point("ill", source("methods", name)))
    assert "Mine.name must be lower-case letters, digits and _" in registry.broken["ill"][1]
    assert not registry.classes["methods"]


HALF = """
from harness import Method, hookimpl

class Good(Method):
    name = "good"

@hookimpl
def run_started():
    raise RuntimeError("the observer of a broken plugin was called")

@hookimpl
def register_methods(register):
    register(Good)
    {then}
"""


@pytest.mark.parametrize(
    "then", ["register(type('Bad', (), {'name': 'BAD'}))", "raise RuntimeError('half way')"]
)
def test_plugin_that_fails_half_way_registers_nothing(registry, entry_point, then):
    load_entry_point(registry, entry_point("half", HALF.format(then=then)))
    assert "half" in registry.broken
    assert "good" not in registry.classes["methods"]


def test_plugin_that_fails_half_way_does_not_observe(registry, entry_point):
    load_entry_point(
        registry, entry_point("half", HALF.format(then="raise RuntimeError('half way')"))
    )
    warned = []
    Observers(registry, None, warned.append)("run_started", folder=None)
    assert not warned


def test_plugin_with_a_wrong_signature_does_not_observe(registry, entry_point):
    text = HALF.format(then="pass") + "\n\n@hookimpl\ndef step_logged(nosuch):\n    pass\n"
    load_entry_point(registry, entry_point("half", text))
    assert "nosuch" in registry.broken["half"][1]
    warned = []
    Observers(registry, None, warned.append)("run_started", folder=None)
    assert not warned


def test_unknown_names_name_the_nearest(registry, entry_point):
    load_entry_point(registry, entry_point("ppo", source("methods", "ppo")))
    with pytest.raises(UsageError, match="There is no method 'pp0'. Did you mean 'ppo'"):
        registry.get("methods", "pp0")
    with pytest.raises(UsageError, match="There is no suite 'x'. Known: none"):
        registry.get("suites", "x")


# -- plain files -----------------------------------------------------------------------------------


def test_plain_file_is_a_plugin(registry, tmp_path):
    file = tmp_path / "my method.py"
    file.write_text(source("methods"))
    load_file(registry, str(file))
    assert registry.get("methods", "mine").name == "mine"
    origin = registry.origins["methods", "mine"]
    assert (origin.plugin, origin.distribution) == ("my method.py", "file") and len(
        origin.version
    ) == 12


def test_plain_file_may_not_replace_a_plugin(registry, entry_point, tmp_path):
    load_entry_point(registry, entry_point("dpo", source("methods", "dpo")))
    (tmp_path / "dpo.py").write_text(source("methods", "dpo"))
    load_file(registry, str(tmp_path / "dpo.py"))
    with pytest.raises(UsageError, match="offered by strange 1.0 .* and file"):
        registry.get("methods", "dpo")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("gone.py", None, "there is no such file"),
        ("text.txt", "", "a plugin file ends in .py"),
        ("bad.py", "raise KeyError('x')", "did not load: KeyError"),
        ("odd.py", source("methods", "Upper"), "must be lower-case"),
        ("nothing.py", "x = 1", "it registers nothing. A plugin has a function such as"),
    ],
)
def test_file_that_is_no_plugin_is_refused(registry, tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"-p .*{name}.*{told}"):
        load_file(registry, str(tmp_path / name))


# -- every hook ------------------------------------------------------------------------------------


def hooks():
    return [
        f for f in vars(hookspecs).values() if inspect.isfunction(f) and hasattr(f, "harness_spec")
    ]


def test_every_hook_is_documented_and_has_a_test_here():
    assert len(hooks()) >= 9
    for hook in hooks():
        assert (hook.__doc__ or "").strip(), f"{hook.__name__} has no docstring"
        assert f"test_hook_{hook.__name__}" in globals(), f"no test here exercises {hook.__name__}"


def test_every_kind_has_its_hook():
    assert {f.__name__ for f in hooks() if f.__name__.startswith("register_")} == {
        f"register_{kind}" for kind in KINDS
    }


def registers(registry, entry_point, kind):
    load_entry_point(registry, entry_point("mine", source(kind)))
    assert not registry.broken
    assert (
        registry.get(kind, "mine").name == "mine"
        and registry.origins[kind, "mine"].plugin == "mine"
    )


def test_hook_register_methods(registry, entry_point):
    registers(registry, entry_point, "methods")


def test_hook_register_suites(registry, entry_point):
    registers(registry, entry_point, "suites")


def test_hook_register_judges(registry, entry_point):
    registers(registry, entry_point, "judges")


def test_hook_register_labellers(registry, entry_point):
    registers(registry, entry_point, "labellers")


def test_hook_register_verifiers(registry, entry_point):
    registers(registry, entry_point, "verifiers")


def test_hook_register_engines(registry, entry_point):
    registers(registry, entry_point, "engines")


def test_hook_register_reporters(registry, entry_point):
    registers(registry, entry_point, "reporters")


def test_hook_register_launchers(registry, entry_point):
    registers(registry, entry_point, "launchers")


def observed(registry, tmp_path, hook, arguments, **sent):
    """What an observer file that takes `arguments` is given."""
    file = tmp_path / "observer.py"
    file.write_text(
        "from harness import hookimpl\nSEEN = []\n\n\n@hookimpl\ndef"
        f" {hook}({', '.join(arguments)}):\n   "
        f" SEEN.append(({''.join(a + ', ' for a in arguments)}))\n"
    )
    load_file(registry, str(file))
    warned = []
    Observers(registry, "the spec", warned.append)(hook, **sent)
    assert not warned
    return sys.modules["harness_file_observer"].SEEN


def test_hook_run_started(registry, tmp_path):
    assert observed(
        registry, tmp_path, "run_started", ["spec", "folder"], folder="f", plan="p"
    ) == [("the spec", "f")]


def test_hook_activity_changed(registry, tmp_path):
    sent = {"activity": "loading", "step": 1, "total": 2, "ended": False}
    arguments = ["activity", "step", "total", "ended"]
    seen = observed(registry, tmp_path, "activity_changed", arguments, **sent)
    assert seen == [("loading", 1, 2, False)]


def test_hook_step_logged(registry, tmp_path):
    sent = {"phase": "sft", "step": 1, "total": 2, "metrics": {"loss": 0.5}, "shown": ("loss",)}
    names = ["shown", "metrics", "total", "step", "phase", "spec"]
    seen = observed(registry, tmp_path, "step_logged", names, **sent)
    assert seen == [(("loss",), {"loss": 0.5}, 2, 1, "sft", "the spec")]


def test_hook_run_finished(registry, tmp_path):
    sent = {"folder": "f", "result": {"x": 1}}
    assert observed(registry, tmp_path, "run_finished", ["spec", "folder", "result"], **sent) == [
        ("the spec", "f", {"x": 1})
    ]


@pytest.mark.parametrize("arguments", [[], ["step"], ["phase", "metrics"]])
def test_observer_may_take_fewer_arguments(registry, tmp_path, arguments):
    sent = {"phase": "sft", "step": 1, "total": 2, "metrics": {}}
    assert observed(registry, tmp_path, "step_logged", arguments, **sent) == [
        tuple(sent[a] for a in arguments)
    ]


def test_observer_that_raises_is_reported_once_and_stops_nothing(registry, tmp_path):
    (tmp_path / "bad.py").write_text(
        "from harness import hookimpl\n\n\n@hookimpl\ndef step_logged(step):\n    raise"
        " KeyError('mine')\n"
    )
    (tmp_path / "good.py").write_text(
        "from harness import hookimpl\nSEEN = []\n\n\n@hookimpl\ndef step_logged(step):\n   "
        " SEEN.append(step)\n"
    )
    for name in ("bad", "good"):
        load_file(registry, str(tmp_path / f"{name}.py"))
    warned = []
    observe = Observers(registry, None, warned.append)
    for step in (1, 2, 3):
        observe("step_logged", phase="sft", step=step, total=3, metrics={})
    assert sys.modules["harness_file_good"].SEEN == [1, 2, 3]
    assert len(warned) == 1 and "step_logged of file:bad.py failed: KeyError: 'mine'" in warned[0]


def test_sibling_a_method_takes_something_from_is_part_of_its_digest(tmp_path, monkeypatch):
    package = tmp_path / "mine_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text(
        "from .deeper import VALUE\n\n\ndef twice():\n    return 2 * VALUE\n"
    )
    (package / "deeper.py").write_text("VALUE = 1\n")
    (package / "unused.py").write_text("VALUE = 1\n")
    (package / "method.py").write_text(
        "from .helper import twice\n\n\nclass Mine:\n    value = twice\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest():
        for name in [name for name in sys.modules if name.startswith("mine_pkg")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return source_digest(importlib.import_module("mine_pkg.method").Mine)

    one = digest()
    (package / "unused.py").write_text("VALUE = 2\n")
    assert digest() == one
    (package / "helper.py").write_text(
        "from .deeper import VALUE\n\n\ndef twice():\n    return 3 * VALUE\n"
    )
    assert digest() != one


def test_digest_does_not_depend_on_where_files_lie(monkeypatch, tmp_path):
    text = (
        "from harness_suites.summarization import Summarization\n\n\nclass Mine(Summarization):\n  "
        "  name = 'mine'\n"
    )
    places, digests = (
        ("/0/mine.py", "/zz/mine.py"),
        set(),
    )  # before and behind the packages in the order of paths
    (tmp_path / "mine.py").write_text(text)
    read = digests_module.file_digest
    monkeypatch.setattr(
        digests_module,
        "file_digest",
        lambda f: read(tmp_path / "mine.py" if str(f) in places else f),
    )
    monkeypatch.setattr(digests_module, "_imported", lambda name: [])
    for place in places:
        module = ModuleType("placed")
        module.__file__ = place
        exec(compile(text, place, "exec"), vars(module))
        monkeypatch.setitem(sys.modules, "placed", module)
        digests.add(source_digest(module.Mine))
    assert len(digests) == 1


def test_class_that_lacks_what_its_contract_asks_is_broken(entry_point):
    registry = new_registry()
    text = source("methods").replace("def train", "def trian")
    load_entry_point(registry, entry_point("mine", text))
    assert "mine" in registry.broken and "does not define train" in registry.broken["mine"][1]
    assert "mine" not in registry.classes["methods"]


def test_file_given_twice_is_one_clear_message(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(source("methods"))
    registry = new_registry()
    load_file(registry, str(file))
    with pytest.raises(UsageError, match="is given twice"):
        load_file(registry, str(file))
