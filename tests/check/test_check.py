"""`harness check` and `harness new`: what is right passes, and each kind of wrong fails for its own
reason.
"""

import os
import shutil
import subprocess
import sys

import pytest

from harness.api.registry import installed, load_file
from harness.check import FAILED, PASSED, Options, check, report
from harness.check.findings import attempt

from ..helpers.registries import sampled
from ..helpers.tools import ROOT, command, fresh, small_suite, with_shared_stages

GOOD = """
from dataclasses import dataclass

from harness import PairOptions, hookimpl, torch


@dataclass
class Mine(PairOptions):
    \"\"\"A hinge on pairs.\"\"\"

    name, paper = "mine", "https://example.org"
    needs = frozenset({"pairs"})

    beta: float = 1.0  # scale

    def loss(self, logp, batch):
        s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
        return torch.relu(1 - self.beta * (s_w - s_l))

    def train(self, lab):
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy


@hookimpl
def register_methods(register):
    register(Mine)
"""

LOSS = "        return torch.relu(1 - self.beta * (s_w - s_l))\n"
STEP = "            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))\n"
BAD = {  # what is changed in the good one, which proof it must fail, and what the finding must say
    "random": (
        LOSS,
        "        return torch.relu(1 - s_w + s_l) * torch.rand(1)\n",
        "deterministic",
        "second training",
    ),
    "default dtype": (
        STEP,
        "            torch.set_default_dtype(torch.float64)\n" + STEP,
        "process untouched",
        "torch's default dtype",
    ),
    "reference": (
        STEP,
        STEP + "            lab.reference.model.lm_head.weight.data.mul_(0.9)\n",
        "runs",
        "in place: the weight",
    ),
    "counter": (STEP, "            self.beta += 1\n" + STEP, "resumable", "killed in turn"),
    "batch mean": (
        LOSS,
        "        h = s_w - s_l\n        return 9 * (h - h.mean()) ** 2 - h\n",
        "micro",
        "tokens",
    ),
    "counts padding": (
        LOSS,
        "        return torch.relu(1 - s_w + s_l) / logp.shape[-1]\n",
        "micro-batch",
        "tokens",
    ),
    "mean": (
        LOSS,
        "        return torch.relu(1 - s_w + s_l).mean()\n",
        "runs",
        "leave the mean to the lab",
    ),
    "gold": (
        "from dataclasses import dataclass\n",
        "import gc\nfrom dataclasses import dataclass\n",
        "declares itself",
        "gc",
    ),
    "no help": ("  # scale", "", "declares itself", "beta have no help"),
    "no paper": ('"https://example.org"', '""', "declares itself", "`paper` is empty"),
    "undeclared": ('frozenset({"pairs"})', "frozenset()", "runs", "add 'pairs' to its `needs`"),
    "unknown need": (
        'frozenset({"pairs"})',
        'frozenset({"pairs", "gold"})',
        "declares itself",
        "gold",
    ),
    "other temperature": (
        STEP,
        STEP.replace("logp(pairs)", "logp(pairs) / 0.9"),
        "starts at",
        "differ from the",
    ),
    "end forgotten": (
        LOSS,
        "        last = batch['mask'].sum(-1, keepdim=True).long() - 1\n"
        "        kept = batch['mask'].scatter(-1, last, 0.0)\n"
        "        s_w, s_l = (kept * (logp - batch['ref_logp'])).sum(-1).unbind(1)\n" + LOSS,
        "trains the end",
        "not the end-of-sequence token",
    ),
    "row numbers": (
        LOSS,
        LOSS.replace("return ", "return torch.arange(len(logp)) * "),
        "order",
        "reverse order",
    ),
    "nothing back": ("        return lab.policy\n", "", "runs", "returned NoneType"),
}


@pytest.fixture(scope="module")
def results():
    return with_shared_stages("check")


def checked(text, results, name="mine", **options):
    """Yield the findings on a method whose source is given, one proof after another."""
    folder = fresh("plugins")
    file = folder / f"mine_{folder.name.replace('-', '_')}.py"
    file.write_text(text)
    registry = installed.__wrapped__()
    load_file(registry, str(small_suite()))
    load_file(registry, str(file))
    told = Options(suite="small", results=results, **{"full": False, "processes": False, **options})
    yield from check("methods", name, registry, told)


def findings(text, results, name="mine", **options):
    """{proof: finding} of a method whose source is given."""
    return {f.proof: f for f in checked(text, results, name, **options)}


def first_finding(text, results, proof):
    """The finding of one proof; those that come after it are not tried."""
    return next(f for f in checked(text, results) if f.proof.startswith(proof))


@pytest.mark.slow  # the command below has a short one
def test_good_method_passes_every_proof(results):
    found = findings(GOOD, results)
    assert len(found) == 15 and {f.status for f in found.values()} == {PASSED}, found
    assert (
        "3 turns" in found["runs"].detail
        and "killed in turn 1, 2, 3 of 3" in found["resumable"].detail
    )
    text = report("mine", list(found.values()))
    assert "15 proofs, none failed" in text and text.count("\n| ") == 16


# one fault of each proof that costs little; the others with `-m slow`
CHEAP = ("reference", "batch mean", "gold", "undeclared", "other temperature", "end forgotten")


@pytest.mark.parametrize("fault", sampled(BAD, of=CHEAP))
def test_bad_method_fails_for_the_right_reason(fault, results):
    old, new, proof, told = BAD[fault]
    assert old in GOOD
    finding = first_finding(GOOD.replace(old, new), results, proof)
    assert finding.status == FAILED and told in finding.detail, finding
    assert "1 of" in report("mine", [finding])


@pytest.mark.slow
def test_method_that_knows_its_process_fails_with_two_of_them(results):
    ranked = "        import os\n" + LOSS.replace(
        "return ", "return (1 + int(os.environ.get('RANK', 0))) * "
    )
    found = findings(GOOD.replace(LOSS, ranked), results, processes=True)
    assert found.pop("process-count invariant").status == FAILED
    assert {f.status for f in found.values()} == {PASSED}


OPTIMUM = """
    def optimum(self, problem):
        return @STATED@

    def train(self, lab):
"""


@pytest.mark.parametrize(
    ("stated", "status"), [("problem.ref", PASSED), ("problem.tilted(0.2)", FAILED)]
)
def test_stated_optimum_is_compared_with_where_training_ends(stated, status, results):
    """Five steps lead nowhere: still at the start checkpoint, and far from a sharp optimum."""
    from harness.check.methods import _near

    text = GOOD.replace("\n    def train(self, lab):\n", OPTIMUM.replace("@STATED@", stated))
    file = fresh("plugins") / f"stating_{status}.py"
    file.write_text(text)
    registry = installed.__wrapped__()
    load_file(registry, str(file))
    options = Options(
        results=results, settings=("steps=9", "learning_rate=1e-4"), optimum_settings=("steps=5",)
    )
    found = attempt("near", lambda: _near("mine", "exact", registry, options))
    assert found.status == status and "after 5 optimiser steps" in found.detail
    assert ("training was too short" in found.detail) == (status == FAILED)


def test_file_in_place_of_a_name_is_pointed_out():
    done = command("check", "mine.py")
    assert done.code == 2 and "load it with -p mine.py" in done.err


TINY = '''
"""The small suite with little to do in a run of full size."""

from dataclasses import dataclass

from harness import hookimpl
from harness_file_small_suite import Small


@dataclass
class Tiny(Small):
    """As small."""

    name = "tiny"
    settings = {
        **Small.settings, "stage.sft": {"steps": 60, "batch_size": 16, "learning_rate": 2e-3},
        "stage.preferences": {"prompts": 100}, "stage.evaluation": {"prompts": 150},
        "*": {"learning_rate": 5e-4, "batch_size": 16},
    }


@hookimpl
def register_suites(register):
    register(Tiny)
'''


@pytest.mark.slow
def test_method_that_makes_things_worse_does_not_beat_the_start(results):
    file = fresh("plugins") / "tiny_suite.py"
    file.write_text(TINY)
    worse = GOOD.replace(LOSS, "        return torch.relu(1 + self.beta * (s_w - s_l))\n")
    mine = fresh("plugins") / "worse.py"
    mine.write_text(worse)
    registry = installed.__wrapped__()
    for path in (small_suite(), file, mine):
        load_file(registry, str(path))
    found = {
        f.proof: f
        for f in check("methods", "mine", registry, Options(suite="tiny", results=results))
    }
    beats = found["beats the baseline on tiny"]
    assert beats.status == FAILED and "not shown to be above one half" in beats.detail
    assert (
        found["deterministic"].status == PASSED and found["reaches its optimum"].status == "skipped"
    )


def test_command_ends_in_its_exit_code_and_writes_a_report():
    folder = fresh("plugins")
    (folder / "mine.py").write_text(GOOD)
    arguments = [
        "check",
        "mine",
        "--quick",
        "-p",
        small_suite(),
        "-s",
        "small",
        "-o",
        folder / "report.md",
    ]
    arguments += ["--set", "steps=500", "-p"]  # of a run of full size: the small bench stays small
    done = command(*arguments, folder / "mine.py")
    assert done.code == 0 and done.out.count("passed") == 15, done.text
    assert "15 proofs, none failed" in (folder / "report.md").read_text()
    (folder / "mine.py").write_text(GOOD.replace('"https://example.org"', '""'))
    done = command(*arguments, folder / "mine.py")
    assert done.code == 1 and "`paper` is empty" in done.out


@pytest.mark.parametrize("name", [pytest.param("summarization", marks=pytest.mark.slow), "exact"])
def test_built_in_suites_pass(name, results):
    found = list(check("suites", name, installed(), Options(results=results)))
    assert {f.status for f in found} == {PASSED} and len(found) == 7, found


SUITE_FAULTS = {
    "splits share prompts": (
        "        drawn = ",
        '        split = "train"\n        drawn = ',
        "splits are disjoint",
    ),
    "draws by chance": (
        'rng = Random(f"{{ name }}/',
        'import random; rng = random.Random(); str(f"',
        "deterministic",
    ),
    "judge is blind": (
        "return [share(asked(p), c.split()) for",
        "return [len(c.split()) / 9 for",
        "judge is fair",
    ),
    "no help": ("  # how many words a prompt has", "", "declares itself"),
}


def suite_findings(text, results, name="copying"):
    folder = fresh("plugins")
    file = folder / f"suite_{folder.name.replace('-', '_')}.py"
    file.write_text(text)
    registry = installed.__wrapped__()
    load_file(registry, str(file))
    return {f.proof: f for f in check("suites", name, registry, Options(results=results))}


def suite_source(fault=None):
    from harness.cli.new_project import filled, templates

    text = templates("suite")["harness_NAME.py"]
    if fault:
        old, new, _ = SUITE_FAULTS[fault]
        assert old in text
        text = text.replace(old, new)
    return filled(text, "suite", "copying")


@pytest.mark.parametrize("fault", SUITE_FAULTS)
def test_bad_suite_fails_for_the_right_reason(fault, results):
    found = suite_findings(suite_source(fault), fresh("results"))
    assert found[SUITE_FAULTS[fault][2]].status == FAILED, found


def test_labeller_of_the_embedded_suite_passes():
    found = list(check("labellers", "bradley_terry", installed(), Options(suite="summarization")))
    assert [f.status for f in found] == [
        PASSED
    ] and "prefers what the judge scores higher" in found[0].detail


CONTRARY = (
    suite_source()
    .replace("reverse=True", "reverse=False")
    .replace('name = "copying_labeller"', 'name = "contrary"')
)


def test_labeller_who_prefers_the_worse_fails(results):
    file = fresh("plugins") / "contrary.py"
    file.write_text(
        CONTRARY.replace('"copying_judge", "copying_labeller"', '"copying_judge", "contrary"')
    )
    registry = installed.__wrapped__()
    load_file(registry, str(file))
    (finding,) = check("labellers", "contrary", registry, Options(suite="copying", results=results))
    assert finding.status == FAILED and "no better than a coin" in finding.detail


# -- new projects, installed as their author would -------------------------------------------------


def installed_and_tested(folder, tmp_path, *arguments):
    """Install a project beside the environment, run its own tests, and return what a harness
    command prints.
    """
    target = tmp_path / "site"  # found by its path
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(folder)], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
    tests = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            str(folder),
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
        ],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert tests.returncode == 0 and "passed" in tests.stdout, tests.stdout[-3000:]
    told = subprocess.run(
        [sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, env=env
    )
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("method", "my_hinge", marks=pytest.mark.slow),
        pytest.param("suite", "copying", marks=pytest.mark.slow),
        ("verifier", "last_word"),
        ("judge", "brevity"),
    ],
)
def test_new_project_works_before_a_line_is_changed(kind, name, tmp_path):
    done = command("new", kind, name, "--folder", tmp_path)
    assert done.code == 0, done.text
    dashed = f"harness-{name.replace('_', '-')}"
    assert f"{dashed} 0.1.0" in installed_and_tested(tmp_path / dashed, tmp_path, "list")


@pytest.mark.slow
def test_example_of_a_distribution_works_as_a_stranger_would_use_it(tmp_path):
    folder = tmp_path / "harness-cpo"
    shutil.copytree(ROOT / "examples" / "harness-cpo", folder)
    run = ["run", "-m", "my_cpo", "-s", "exact", "--quick", "--results", str(tmp_path / "results")]
    assert "my_cpo on exact, seed 0" in installed_and_tested(folder, tmp_path, *run)


def test_project_is_not_written_over(tmp_path):
    assert command("new", "method", "mine", "--folder", tmp_path).code == 0
    again = command("new", "method", "mine", "--folder", tmp_path)
    assert again.code == 3 and "exists already" in again.err
    bad = command("new", "method", "My-Method", "--folder", tmp_path)
    assert bad.code == 2 and "lower-case" in bad.err


def test_new_projects_are_formatted(tmp_path):
    kinds = {"method": "mine", "suite": "copying", "verifier": "words", "judge": "brevity"}
    for kind, name in kinds.items():
        command("new", kind, name, "--folder", tmp_path)
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ruff",
                *arguments,
                "--config",
                str(ROOT / "pyproject.toml"),
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
