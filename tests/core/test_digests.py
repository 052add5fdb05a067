"""What names runs and artifacts: a positive list of code, tried both ways."""

import dataclasses
import shutil

import pytest

from harness.api.registry import installed
from harness.api.resolve import Request, evaluated_anew, resolve
from harness.api.settings_sources import recommended
from harness.core.digests import DECIDES, NO_RESULT, PACKAGE, code_digest, files_matching
from harness.core.errors import UsageError
from harness.core.settings import AdamWOptions, is_base_class

from ..helpers.tools import ROOT


@pytest.fixture
def package(tmp_path):
    """A copy of the package that may be edited."""
    shutil.copytree(PACKAGE, tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "harness"


def changed(package, file):
    """The parts whose digest a line more in a file changes."""
    before = {part: code_digest.__wrapped__(part, package) for part in DECIDES}
    path = package / file
    path.write_text(path.read_text() + "\n# one more\n")
    return {part for part in DECIDES if code_digest.__wrapped__(part, package) != before[part]}


@pytest.mark.parametrize(
    "file",
    [
        "report/plots/style.py",
        "report/page/facts.py",
        "report/tables/tables.py",
        "statistics/intervals.py",
        "cli/app.py",
        "experiments/study/tune.py",
        "check/methods.py",
        "core/files.py",
    ],
)
def test_code_that_decides_no_result_names_nothing(package, file):
    assert changed(package, file) == set()


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("models/logprobs.py", set(DECIDES)),
        ("models/batches.py", set(DECIDES)),
        ("models/generation.py", set(DECIDES)),
        ("training/trainer.py", set(DECIDES)),
        ("training/stages/sft.py", set(DECIDES)),
        ("training/stages/preferences.py", {"preferences", "reward_model", "policy"}),
        ("training/reward_model.py", {"reward_model", "policy"}),
        ("training/reference_cache.py", {"cache", "policy", "evaluation"}),
        ("training/lab.py", {"policy"}),
        ("training/streams.py", {"policy"}),
        ("evaluation/kl.py", {"evaluation"}),
        ("experiments/record.py", {"evaluation"}),
    ],
)
def test_code_that_decides_a_result_names_what_it_makes(package, file, parts):
    assert changed(package, file) == parts


def test_every_module_is_on_one_list_only():
    deciding = set().union(*(files_matching(patterns) for patterns in DECIDES.values()))
    other = set(files_matching(NO_RESULT))
    every = {file for file in PACKAGE.rglob("*.py")}
    assert not deciding & other
    assert deciding | other == every, sorted(map(str, every ^ (deciding | other)))
    for patterns in (*DECIDES.values(), NO_RESULT):
        assert all(files_matching([pattern]) for pattern in patterns), patterns


def spec_of(*stage_settings, **fixed):
    request = Request("dpo", "summarization", stage_settings=stage_settings, fixed=fixed)
    return resolve(request, installed())


def test_loss_names_a_run_and_the_code_of_the_evaluation_no_training():
    spec = spec_of()
    other_loss = dataclasses.replace(spec, code={**spec.code, "method": "0"})
    assert other_loss.training_fingerprint() != spec.training_fingerprint()
    for code in ("evaluation", "judge"):
        other = dataclasses.replace(spec, code={**spec.code, code: "0"})
        assert other.training_fingerprint() == spec.training_fingerprint()
        assert other.fingerprint() != spec.fingerprint()


def test_judge_and_evaluation_options_name_a_run_and_no_training():
    spec = spec_of()
    for other in (spec_of("evaluation.prompts=40"), spec_of(judge="reward_model_judge")):
        assert other.fingerprint() != spec.fingerprint()
        assert other.training_fingerprint() == spec.training_fingerprint()
    for other in (spec_of("preferences.prompts=40"), spec_of(seed=1)):
        assert other.training_fingerprint() != spec.training_fingerprint()


def test_evaluated_anew_takes_settings_of_the_evaluation_only():
    spec = spec_of()
    other = evaluated_anew(spec, None, ("evaluation.prompts=40",), installed())
    assert other.stages["evaluation"]["prompts"] == 40
    with pytest.raises(UsageError, match="only evaluation.NAME=VALUE"):
        evaluated_anew(spec, None, ("sft.steps=1",), installed())


def test_recommendations_go_by_marks_not_by_module_names():
    method = installed().get("methods", "grpo")
    bases = {cls.__name__ for cls in method.__mro__ if is_base_class(cls)}
    assert bases >= {"AdamWOptions", "RewardOptions", "GradientMethod", "OnPolicyOptions"}
    assert not is_base_class(method) and is_base_class(AdamWOptions)
    assert recommended([{"*": {"reward": "verifier"}}], method, "grpo") == {"reward": "verifier"}
    for name in ("grpo", "ppo"):
        request = Request(name, "arithmetic")
        assert resolve(request, installed()).options["reward"] == "verifier"


def test_barred_imports_exist():
    import importlib

    from harness.check.methods import BARRED

    assert (ROOT / "harness").is_dir() and len(BARRED) >= 5
    for module in BARRED:
        importlib.import_module(module)
