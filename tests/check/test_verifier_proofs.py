"""`harness check` on verifiers: the registered ones pass, and each fault fails its own proof."""

import json

import pytest

from harness.api.registry import installed, load_file
from harness.check import FAILED, PASSED, SKIPPED, Options, check
from harness.cli.new_project import filled, templates

from ..helpers.tools import command, fresh

NAMES = (
    "final_number boxed choice exact regex json_schema math_verify running_sum constraints sense"
).split()
PROOFS = {
    "declares itself",
    "gold answers are right",
    "hostile answers are wrong",
    "pure",
    "bounded in time and memory",
}
FAULTS = {  # of the verifier that `harness new` writes: old text, new text, the proof that fails
    "no help": ("  # compare without regard to case", "", "declares itself"),
    "refuses its own gold": ("== gold)", "== gold + gold)", "gold answers are right"),
    "accepts what is empty": (
        "        words = re",
        '        text += " Rome"\n        words = re',
        "hostile answers are wrong",
    ),
    "draws by chance": ("float(end", "__import__('random').random() * float(end", "pure"),
    "looks at its neighbours": ("float(end and", "float(len(golds) > 1 and end and", "pure"),
    "takes long": (
        "        words = re",
        '        len(text) == 400000 and __import__("time").sleep(2.2)\n        words = re',
        "bounded in time and memory",
    ),
    "takes memory": (
        "        words = re",
        '        KEPT[len(text)] = b"x" * (len(text) * 130)\n        words = re',
        "bounded in time and memory",
    ),
}


def findings(name, options=None, registry=None):
    registry = registry or installed()
    return {f.proof: f for f in check("verifiers", name, registry, options or Options())}


@pytest.mark.parametrize("name", NAMES)
def test_registered_verifiers_pass(name):
    found = findings(name)
    assert found.keys() == PROOFS and {f.status for f in found.values()} == {PASSED}, found


@pytest.fixture
def faulty(monkeypatch):
    """A factory of registered verifiers with one fault each."""
    known = installed().classes["verifiers"]
    monkeypatch.setitem(installed().classes, "verifiers", dict(known))

    def make(fault):
        text = templates("verifier")["harness_NAME.py"]
        if fault:
            old, new, _ = FAULTS[fault]
            assert old in text
            text = text.replace(old, new).replace("import re\n", "import re\n\nKEPT = {}\n")
        folder = fresh("plugins")
        file = folder / f"verifier_{folder.name.replace('-', '_')}.py"
        file.write_text(filled(text, "verifier", "mine"))
        registry = installed.__wrapped__()
        load_file(registry, str(file))
        installed().classes["verifiers"]["mine"] = registry.classes["verifiers"]["mine"]
        return findings("mine")

    return make


def test_verifier_of_a_new_project_passes(faulty):
    assert {f.status for f in faulty(None).values()} == {PASSED}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_verifier_fails_for_the_right_reason(fault, faulty):
    found = faulty(fault)
    assert found[FAULTS[fault][2]].status == FAILED, found


def test_without_examples_what_is_right_is_not_known(tmp_path):
    found = findings("regex", Options(settings=("pattern=a+",)))
    assert found["gold answers are right"].status == SKIPPED
    assert "what is right is not known" in found["hostile answers are wrong"].detail
    (tmp_path / "mine.py").write_text("def ends(completion):\n    return bool(completion)\n")
    found = findings("function", Options(settings=(f"function={tmp_path}/mine.py:ends",)))
    assert found["pure"].status == PASSED


def test_verifier_that_cannot_be_made_is_one_finding():
    (finding,) = findings("function").values()
    assert finding.status == FAILED and "expected module:function" in finding.detail


def test_command_checks_a_verifier_as_a_suite_uses_it(tmp_path):
    rows = [{"question": f"{i} hens and 2?", "answer": f"#### {i + 2}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suite = tmp_path / "mine.toml"
    suite.write_text('suite = "question_file"\ndata = "rows.jsonl"\n')
    done = command("check", "final_number", "-s", suite)
    assert done.code == 0 and f"of {suite}" in done.out, done.text
    done = command("check", "boxed", "-s", suite)
    assert done.code == 1 and "has the verifier final_number" in done.out


def test_name_of_two_kinds_is_told_apart():
    done = command("check", "verifier.exact")
    assert done.code == 0 and "hostile answers are wrong" in done.out, done.text
    done = command("show", "verifier.exact")
    assert done.code == 0 and "exact (verifier)" in done.out and "(suite)" not in done.out
    assert "exact (suite)" in command("show", "exact").out
    assert command("check", "verifier.nosuch").code == 2
