"""The conformance set: complete, the same at every export, and read back it is recomputed; a wrong
sign is found.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from harness_plugins.dpo import DPO
from safetensors.torch import load_file

from harness.api.registry import installed
from harness.api.registry import load_file as load_plugin
from harness.check.conformance import MANIFEST, export
from harness.check.recording_lab import batch_of, evaluated, record
from harness.core.options import build

from ..helpers.registries import small_registry
from ..helpers.tools import command, plugin

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    return folder, export(folder, installed())


def recomputed(case, folder, registry):
    """Return how far a case's values and gradients are from those that the method's loss gives on
    the tensors of the file.
    """
    tensors = load_file(folder / case["file"])
    method = build(registry.get("methods", case["method"]), case["options"], "method")
    steps, _ = record(method, soft=case["name"].endswith(".soft"))
    furthest = 0.0
    for i, (step, told) in enumerate(zip(steps, case["steps"], strict=True)):
        for j, (term, entry) in enumerate(zip(step, told["terms"], strict=True)):
            own = {k.split(".", 2)[2]: t for k, t in tensors.items() if k.startswith(f"{i}.{j}.")}
            columns = {name: own[name] for name in entry["columns"]}
            reduction = term.reduction if entry["reduction"] == "mean" else entry["reduction"]
            again = evaluated(
                term.function, batch_of(columns), own["output"], "", entry["weight"], reduction
            )
            scale = float(own["gradient"].abs().max()) or 1.0
            apart = float((again.gradient - own["gradient"]).abs().max()) / scale
            furthest = max(furthest, apart, abs(again.value - entry["value"]) / (1 + again.value))
    return furthest


def test_every_method_with_a_step_is_in_the_set(exported):
    _, manifest = exported
    methods = {case["method"] for case in manifest["cases"]}
    assert methods | set(manifest["skipped"]) == set(installed().classes["methods"])
    assert {"best_of_n", "checkpoint", "gkd", "start", "trl_dpo", "trl_grpo", "trl_kto"} == set(
        manifest["skipped"]
    )
    names = {case["name"] for case in manifest["cases"]}
    assert {"dpo", "dpo.soft", "dpo.cdpo", "dpo.robust_dpo", "grpo", "ppo", "aot"} <= names
    assert "grpo.soft" not in names  # it learns from no labels


def test_files_are_those_of_the_manifest(exported):
    folder, manifest = exported
    for case in manifest["cases"]:
        content = (folder / case["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == case["sha256"]
        for name, tensor in load_file(folder / case["file"]).items():
            assert torch.isfinite(tensor.double()).all(), (case["name"], name)
        assert any(t["value"] for step in case["steps"] for t in step["terms"])
    assert {file.name for file in folder.iterdir()} == {
        MANIFEST,
        *(case["file"] for case in manifest["cases"]),
    }
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == manifest


def test_two_exports_are_equal(exported, tmp_path):
    _, manifest = exported
    torch.manual_seed(5)  # the process's own random numbers decide nothing
    torch.rand(3)
    again = export(tmp_path / "again", installed())
    assert again == manifest


def test_set_read_back_is_recomputed(exported):
    folder, manifest = exported
    registry = installed()
    apart = {case["name"]: recomputed(case, folder, registry) for case in manifest["cases"]}
    assert {name: far for name, far in apart.items() if far > 1e-9} == {}


def test_wrong_sign_is_found(exported, monkeypatch):
    """The negative control."""
    folder, manifest = exported
    right = DPO.loss

    def turned(self, logp, batch):
        return right(self, 2 * batch["ref_logp"] - logp, batch)

    monkeypatch.setattr(DPO, "loss", turned)
    apart = {case["name"]: recomputed(case, folder, installed()) for case in manifest["cases"]}
    wrong = {name for name, far in apart.items() if far > 1e-3}
    assert wrong == {case["name"] for case in manifest["cases"] if case["method"] == "dpo"}


def test_gradient_is_that_of_differences(exported):
    """Central differences of the whole objective in float64, on one completion token."""
    folder, manifest = exported
    (case,) = (c for c in manifest["cases"] if c["name"] == "grpo")
    tensors = load_file(folder / case["file"])
    own = {k[4:]: t for k, t in tensors.items() if k.startswith("0.0.")}
    method = build(installed().get("methods", "grpo"), case["options"], "method")
    entry, columns = case["steps"][0]["terms"][0], {}
    columns = {name: own[name] for name in entry["columns"]}
    values = []
    for move in (1e-6, -1e-6):
        output = own["output"].clone()
        output[1, 2, 0] += move
        values.append(
            evaluated(method.loss, batch_of(columns), output, "", 1.0, entry["reduction"]).value
        )
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(
        float(own["gradient"][1, 2, 0]), abs=1e-8
    )
    assert abs(float(own["gradient"][1, 2, 0])) > 1e-5


def test_padding_has_no_gradient(exported):
    folder, manifest = exported
    for case in manifest["cases"]:
        tensors = load_file(folder / case["file"])
        gradient, mask = tensors["0.0.gradient"], tensors["0.0.mask"]
        padding = (1 - mask).view(*mask.shape, *(1,) * (gradient.dim() - 3))
        assert float((gradient * padding).abs().max()) == 0.0


HINGE = '''
from dataclasses import dataclass
from harness import PairOptions, hookimpl, torch

@dataclass
class Mine(PairOptions):
    """A hinge."""
    name, paper, needs = "mine", "https://example.org", frozenset({"pairs"})
    scale: float = 1.0  # of the log-ratios
    def loss(self, logp, batch):
        s_w, s_l = (logp - batch["ref_logp"]).sum(-1).unbind(1)
        return torch.relu(1 - self.scale * (s_w - s_l))
    def train(self, lab):
        for pairs in self.pairs(lab):
            lab.step(self.loss, pairs.with_columns(ref_logp=lab.reference.logp(pairs)))
        return lab.policy

@hookimpl
def register_methods(register):
    register(Mine)
'''


def test_method_of_another_distribution_is_exported_with_its_options(tmp_path):
    registry = small_registry()
    load_plugin(registry, str(plugin(tmp_path, "mine", HINGE)))
    manifest = export(tmp_path / "set", registry, "mine", ("scale=2",))
    assert [case["name"] for case in manifest["cases"]] == ["mine", "mine.soft"]
    assert manifest["cases"][0]["options"]["scale"] == 2.0


def test_command_writes_a_set(tmp_path):
    done = command("check", "dpo", "--export", tmp_path / "s", "--set", "beta=0.3")
    assert done.code == 0 and "2 cases of 1 method" in done.out
    case = json.loads((tmp_path / "s" / MANIFEST).read_text(encoding="utf-8"))["cases"][0]
    assert case["options"]["beta"] == 0.3
    again = command("check", "dpo", "--export", tmp_path / "s")
    assert again.code != 0 and "is not empty" in again.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dpo", "--quick"), "--quick has no meaning with it"),
        (("--set", "beta=1"), "--set is of one method"),
        (("best_of_n",), "best_of_n has no tensors to export: it takes no step by gradient"),
        (("dpp",), "Did you mean"),
    ],
)
def test_command_refuses_what_it_would_ignore(tmp_path, words, message):
    done = command("check", *words, "--export", tmp_path / "s")
    assert done.code != 0 and message in done.text, done.text
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_check_without_a_name_is_refused():
    done = command("check")
    assert done.code == 2 and "Name what to check" in done.text


def test_trl_agrees_where_the_docs_say_so(exported, capsys):
    """The example, and the numbers of docs/conformance.md."""
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location("own", ROOT / "examples/conformance_trl.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(exported[0])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    apart = {row[0]: float(row[-1]) for row in rows}
    differ = {name for name, far in apart.items() if far > 1e-6}
    assert differ == {"bco", "dpo.cdpo", "ipo", "sft_chosen", "wpo"}
    assert len(apart) >= 20
    page = (ROOT / "docs/conformance.md").read_text(encoding="utf-8")
    for name, _, ours, theirs, _ in rows:
        if name in differ:
            assert f"{float(ours):.4g}" in page and f"{float(theirs):.4g}" in page, name
