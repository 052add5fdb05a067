"""What a dry run says that a run takes, against what it takes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.settings import LoraOptions
from harness.core.spec import RunSpec
from harness.experiments.requirements.asks import asks_of
from harness.experiments.requirements.live_memory import peak_bytes
from harness.experiments.requirements.moments import Machine, Models, Passes
from harness.experiments.requirements.passes import Shape, outline_of, scoring_memory
from harness.experiments.requirements.sharded import Parts, Processes, Whole
from harness.experiments.requirements.show import described, of_study, requirements_of
from harness.models.hub_format import meta_model
from harness.models.loading import size_of, trunk_of

from ..helpers.tools import ROOT, command

SCRIPT = ROOT / "tests" / "helpers" / "measured_memory.py"
REAL = os.environ.get("HARNESS_MEMORY_MODEL", "")  # a model folder, of about 135M parameters
TOLERANCE = 0.15
FAST = ["update:8:2:64:64:16384", "update:8:2:64:64:16384:8"]
OTHERS = [
    "update:8:2:64:64:512",
    "update:8:2:64:64:16384:8:1",
    "score:8:2:64:64:16384",
    "decode:8:8:64:64:16384",
    "kl:16:1:64:64:16384:8",
]
MACHINE = Machine(24 * 2**30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A llama of 15 MiB, large enough that its passes are not lost in those of the libraries."""
    where = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(where)
    return where


def figures(folder, cases):
    """Measure in a process of its own, in which malloc gives large blocks back."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(SCRIPT), str(folder), *cases]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found):
    off = {f["case"]: f["estimated"] / f["measured"] - 1 for f in found}
    assert all(abs(share) <= TOLERANCE for share in off.values()), (off, found)


def test_memory_of_updates_is_within_a_share_of_what_is_measured(folder):
    check(figures(folder, FAST))


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_memory_of_a_pass_is_within_a_share_of_what_is_measured(folder, case):
    check(figures(folder, [case]))


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="HARNESS_MEMORY_MODEL names no model folder")
@pytest.mark.parametrize("case", [*FAST, *OTHERS])
def test_memory_of_a_real_model_is_within_a_share_of_what_is_measured(case):
    check(figures(REAL, [case]))


def sharded_figures(folder, case):
    """Measure one of two processes of a sharded run."""
    script = ROOT / "tests" / "helpers" / "measured_sharding.py"
    before = {"MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), case],
        capture_output=True,
        text=True,
        env={**os.environ, **before},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_memory_of_a_sharded_update_is_within_a_share_of_what_is_measured(folder):
    check(sharded_figures(folder, "update:8:2:64:64:512"))


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="HARNESS_MEMORY_MODEL names no model folder")
def test_memory_of_a_sharded_real_model_is_within_a_share_of_what_is_measured():
    check(sharded_figures(REAL, "update:8:2:64:64:512"))


def test_process_of_a_sharded_run_holds_its_part_and_gathers_layers():
    """By hand: a llama of two layers, a reward model of the hub, and an adapter."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=100,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    layer = 4 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32)
    assert Parts.of(model) == Parts(rest=4 * (100 * 32 + 32), layer=layer)
    assert Parts.of(model).gathered == 4 * (100 * 32 + 32) + 2 * layer
    four = Processes(4, True)
    held = four.weights({"policy": 1001, "reward": Whole(7)})
    assert held == {"policy": 251, "reward": 7}
    assert Processes(4, False).weights({"policy": 1001}) == {"policy": 1001}
    assert four.rows(Shape(9, 2, 3, 4)).rows == 3


def test_dry_run_says_where_a_device_is_too_small(tmp_path):
    needs = requirements_of(spec_of("dpo"), installed(), tmp_path, MACHINE)
    assert "does not fit" not in described(needs)
    peak = needs.peak[1].total
    assert "does not fit" not in described(replace(needs, memory=peak))
    text = described(replace(needs, memory=peak - 1))
    assert "does not fit: this device has" in text and "no row is split over processes" in text


def test_dry_run_of_a_sharded_run_says_what_each_process_holds(tmp_path):
    alone, eight = (
        requirements_of(
            spec_of("ppo", shard=shard, processes=count), installed(), tmp_path, MACHINE
        )
        for shard, count in (("none", 1), ("full", 8))
    )
    for before, after in zip(alone.stages, eight.stages, strict=True):
        for one, other in zip(before.moments, after.moments, strict=True):
            assert sum(other.weights.values()) <= sum(one.weights.values()) / 8 + 8
            assert other.optimiser <= one.optimiser / 8 + 8 and other.gradients <= one.gradients
            assert (other.gathered > 0) == bool(one.weights) and not one.gathered
    assert "in each of 8 processes" in described(eight) and "gathered" in described(eight)
    assert "gathered" not in described(alone)
    with pytest.raises(UsageError, match="WORLD_SIZE=8 harness run"):
        requirements_of(spec_of("dpo", shard="full"), installed(), tmp_path, MACHINE)


def test_peak_bytes_counts_what_is_alive_at_once():
    weight = torch.empty(1000, 1000, device="meta")
    rows = torch.empty(10, 1000, device="meta")

    def chain():
        hidden = rows
        for _ in range(5):
            hidden = torch.relu(hidden @ weight)
        return hidden

    assert peak_bytes(chain) == 3 * 4 * 10 * 1000  # a state, its product, and what relu makes
    assert peak_bytes(lambda: [rows + 1 for _ in range(7)]) == 7 * 4 * 10 * 1000
    assert peak_bytes(lambda: weight.t().view(-1)[:5] if False else weight.t()) == 0  # a view


def spec_of(method, *settings, suite="summarization", **fixed):
    return resolve(Request(method, suite, settings, fixed=fixed), installed())


def asked(method, *settings):
    return asks_of(participants(spec_of(method, *settings), installed()).method)


def test_asks_are_those_of_the_method():
    dpo = asked("dpo")
    assert dpo.reference and not dpo.critic and not dpo.rewards and dpo.each == 2
    ppo = asked("ppo")
    assert ppo.reference and ppo.critic and ppo.rewards == 1 and ppo.drawn
    assert not asked("ppo", "shared_critic=true").critic
    assert not asked("grpo", "beta=0").reference and asked("grpo").each > 1
    assert not asked("simpo").reference and not asked("sft_chosen").reference
    assert asked("bco").reference and not asked("cpo").reference  # by super(), and by no one
    assert not asked("start").trains and asked("kto").each == 1
    assert asked("rlaif", "optimiser=ppo").critic and not asked("rlaif", "optimiser=dpo").critic


def test_dry_run_needs_no_weights_and_writes_nothing(folder, tmp_path):
    bare = tmp_path / "bare"  # a configuration and a tokenizer
    shutil.copytree(embedded(), bare, ignore=shutil.ignore_patterns("*.safetensors"))
    results = tmp_path / "results"
    done = command(
        *("run", "-m", "dpo", "-s", "summarization", "--model", bare, "--dry-run"),
        *("--results", results),
    )
    assert done.code == 0, done.text
    for word in ("reward model", "optimiser", "logits", "peak memory:", "disk:", "GFLOP/s"):
        assert word in done.out, done.out
    assert not results.exists()


def embedded() -> Path:
    return Path(installed().get("suites", "summarization")().base_model())


def test_folder_without_a_configuration_is_refused(tmp_path):
    done = command(
        *("run", "-m", "dpo", "-s", "summarization", "--model", tmp_path, "--dry-run"),
        *("--results", tmp_path / "results"),
    )
    assert done.code != 0 and "Hugging Face format" in done.text and "Traceback" not in done.text


def needs(method, *settings, suite="summarization", **fixed):
    spec = spec_of(method, *settings, suite=suite, **fixed)
    return requirements_of(spec, installed(), Path("nowhere"), MACHINE)


def method_stage(found):
    return next(stage for stage in found.stages if not stage.shared)


def test_weights_gradients_and_moments_of_full_training_are_those_of_adamw():
    moment = method_stage(needs("dpo")).moments[0]
    whole = size_of(meta_model(embedded()))[1]
    assert (moment.gradients, moment.optimiser) == (whole, 2 * whole)
    assert moment.weights == {"policy": whole}


def test_lora_trains_its_adapter_only_and_shares_the_base():
    moment = method_stage(needs("dpo", "lora_rank=4")).moments[0]
    assert moment.gradients == moment.weights["policy"] < moment.weights["base"]
    assert "reference" not in moment.weights


def test_preferences_are_a_stage_only_where_something_learns_from_them(monkeypatch):
    suite = installed().get("suites", "arithmetic")
    monkeypatch.setattr(suite, "proxy", False)  # as suites with a verifier and no reward model

    def stages(method, *settings):
        return [s.name for s in needs(method, *settings, suite="arithmetic").stages]

    assert "preferences" not in stages("rlvr") and "preferences" not in stages(
        "raft", "reward=verifier"
    )
    assert "preferences" in stages("raft", "reward=model") and "preferences" in stages("dpo")


def test_summed_gradients_of_bfloat16_weights_count_once(folder):
    spec = RunSpec("dpo", "", {}, {}, {}, dtype="bfloat16", weights="bfloat16")
    passes = Passes(Models(spec, folder, MACHINE))
    passes.tokens = 64  # one row of several
    moment = passes.update("", {}, Shape(8, 2, 16, 16), passes.models.causal(LoraOptions()))
    whole = size_of(meta_model(folder))[1]
    assert (moment.gradients, moment.optimiser) == (whole, 3 * whole)
    assert moment.activations < whole / 2


def test_activation_checkpointing_takes_less():
    plain, less = (
        method_stage(needs("dpo", activation_checkpointing=on)).moments[0].activations
        for on in (False, True)
    )
    assert less < 0.6 * plain


def test_shared_stages_of_a_study_count_once():
    one = needs("dpo")
    runs = {"dpo, seed 0": one, "dpo, seed 1": one}
    apart = of_study(runs, {"dpo, seed 0": "a", "dpo, seed 1": "b"})
    alike = of_study(runs, dict.fromkeys(runs, "a"))
    shared = sum(stage.disk for stage in one.stages if stage.shared)

    def disk(text):
        line = next(line for line in text.splitlines() if line.startswith("disk"))
        return float(line.split()[1])

    assert disk(apart) - disk(alike) == pytest.approx(shared / 2**20, abs=0.11)


def test_architecture_that_needs_its_weights_is_refused(folder, monkeypatch):
    model = outline_of(folder)
    shape = Shape(rows=2, each=2, prompt=8, completion=8)
    assert scoring_memory(model, shape).total > 0

    def forward(*args, **kwargs):
        raise NotImplementedError("no kernel for meta tensors")

    monkeypatch.setattr(type(trunk_of(model).layers[0]), "forward", forward)
    with pytest.raises(UsageError, match="LlamaForCausalLM cannot be estimated .*no kernel"):
        scoring_memory(model, shape)
