"""What a run keeps of its policy: --save, --save-dtype, and failures that cost only the policy."""

import json
import os
import re
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from harness.core.run_folder import read_result
from harness.models.hub_format import read_model
from harness.models.initial_checkpoint import InitialCheckpoint, merged
from harness.models.loading import load_causal, load_tokenizer, save_causal
from harness.models.lora import Lora, beside
from harness.models.lora_weights import save_adapter

from ..helpers.tiny_models import ARCHITECTURES, tiny
from ..helpers.tools import (
    command,
    finished,
    fresh,
    on_small,
    only_run,
    plugin,
    results,
    small_suite,
    with_shared_stages,
)

SLOW = pytest.mark.slow
IDS = torch.arange(3, 23).view(2, 10)
BLOCKER = """
from harness import hookimpl

@hookimpl
def run_started(spec, folder):
    (folder / ".policy.partial").write_text("no folder can be made here")
"""
FRAGILE = '''
"""A judge that cannot be reached while a file is there."""

from pathlib import Path

from harness import hookimpl
from harness.api.contracts import Judge


class Fragile(Judge):
    """Shorter is better."""

    name = "fragile"

    def prepare(self, suite, stages):
        """Nothing to prepare."""

    def score(self, prompts, completions):
        """Return minus the lengths."""
        if Path(__file__).with_name("down").exists():
            raise ConnectionError("the judge cannot be reached")
        return [-float(len(text)) for text in completions]


@hookimpl
def register_judges(register):
    register(Fragile)
'''


def policy_of(folder):
    """What the record of a run says of its policy."""
    return read_result(folder)["policy"]


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_model_reads_back_bit_for_bit(name, tmp_path):
    """Experts lie apart on disk and stacked in memory; tied weights lie there once."""
    model, tokenizer = tiny(name), load_tokenizer("suites/harness_suites/base")
    for dtype in ("float32", "bfloat16"):
        save_causal(model, tokenizer, tmp_path / dtype, dtype)
        back, whole = read_model(tmp_path / dtype).state_dict(), model.state_dict()
        assert back.keys() == whole.keys()
        kind = getattr(torch, dtype)
        assert all(torch.equal(back[key], whole[key].to(kind).float()) for key in whole)
    size = {d: (tmp_path / d / "model.safetensors").stat().st_size for d in ("float32", "bfloat16")}
    parameters = sum(p.numel() for p in model.parameters())
    assert size["bfloat16"] < 2.5 * parameters + 9000 and size["bfloat16"] < 0.65 * size["float32"]
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "deepseek-v3", "phimoe", "gpt-oss"])
def test_saved_adapter_is_loaded_by_peft_onto_the_recorded_base(name, tmp_path):
    model, tokenizer = tiny(name), load_tokenizer("suites/harness_suites/base")
    save_causal(model, tokenizer, tmp_path / "base")
    policy = beside(model, Lora(3, 6.0, 1))
    torch.manual_seed(0)
    for key, p in policy.named_parameters():
        if "lora_B" in key:
            p.data.normal_(std=0.05)
    save_adapter(policy, str(tmp_path / "base"), tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(recorded["base_model_name_or_path"]).eval()
    theirs, expected = PeftModel.from_pretrained(base, tmp_path / "adapter"), policy(IDS).logits
    torch.testing.assert_close(theirs(IDS).logits, expected, atol=2e-5, rtol=0)
    ours = load_causal(tmp_path / "adapter")
    whole = merged(policy, InitialCheckpoint.of(model))
    torch.testing.assert_close(ours(IDS).logits, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(ours(IDS).logits, whole(IDS).logits, atol=2e-4, rtol=0)


# -- runs ------------------------------------------------------------------------------------------


def test_whole_policy_lies_on_disk_once(tmp_path):
    folder = finished("dpo")
    saved = policy_of(folder)
    assert (saved["saved"], saved["folders"], saved["dtype"]) == ("policy", ["policy"], "float32")
    artifact = results() / "artifacts" / saved["artifact"]
    ours, theirs = folder / "policy", artifact / "model"
    assert os.path.samefile(ours / "model.safetensors", theirs / "model.safetensors")
    assert not os.path.samefile(ours / "config.json", theirs / "config.json")
    assert not any(artifact.glob("state/*/model*")) and not (folder / "checkpoint").exists()
    weights = (ours / "model.safetensors").read_bytes()
    shutil.copytree(artifact, tmp_path / "again", copy_function=os.link)
    shutil.rmtree(tmp_path / "again")  # deletion of one link leaves the other
    assert (ours / "model.safetensors").read_bytes() == weights


def test_model_card_names_method_data_base_figures_and_command():
    folder = finished("dpo")
    card = (folder / "policy" / "README.md").read_text()
    result = read_result(folder)
    win, kl = result["evaluation"]["win_rate"], result["evaluation"]["kl"]
    assert card.startswith("---\nlibrary_name: transformers\n") and "# dpo on small" in card
    assert f"| {win['mean']:.4g} | {win['low']:.4g} to {win['high']:.4g} |" in card
    assert f"| {kl['mean']:.4g} | {kl['low']:.4g} to {kl['high']:.4g} |" in card
    assert "harness run -m dpo -s small --quick" in card and result["model"]["digest"][:16] in card
    assert "https://arxiv.org/abs/2305.18290" in card and folder.name in card


@pytest.mark.parametrize(
    ("more", "saved", "folder"),
    [
        (("--set", "lora_rank=2"), "adapter", "adapter"),
        pytest.param(("--set", "lora_rank=2", "--save", "policy"), "policy", "policy", marks=SLOW),
        (("--save-dtype", "bfloat16"), "policy", "policy"),
        pytest.param(
            ("--set", "lora_rank=2", "--save-dtype", "bfloat16"), "adapter", "adapter", marks=SLOW
        ),
    ],
)
def test_each_kind_is_saved_read_and_evaluated_again(more, saved, folder):
    where = with_shared_stages("kinds")
    done = command(*on_small("dpo", *more, results=where))
    assert done.code == 0, done.text
    run = only_run(where, "small", "dpo")
    first = read_result(run)
    assert first["policy"]["saved"] == saved and [folder] == first["policy"]["folders"]
    assert {"policy", "adapter"} & {f.name for f in run.iterdir()} == {folder}
    model = load_causal(run / folder)
    if "--save-dtype" in more and saved == "policy":
        assert all(torch.equal(t, t.bfloat16().float()) for t in model.state_dict().values())
    done = command("evaluate", run, "-p", small_suite(), "--stage-set", "evaluation.prompts=20")
    assert done.code == 0, done.text
    (other,) = (f for f in run.parent.iterdir() if f != run)
    again = read_result(other)
    assert "policy" in again["cost"]["reused_stages"]
    rows = [(f / "samples.jsonl").read_text().splitlines()[:20] for f in (run, other)]
    assert [json.loads(r)["answer"] for r in rows[0]] == [json.loads(r)["answer"] for r in rows[1]]
    assert again["policy"]["digest"] == first["policy"]["digest"]


def test_rounding_changes_the_policy_that_is_measured():
    """What is evaluated is what is saved: with and without rounding are two runs."""
    where = with_shared_stages("rounded")
    for more in ((), ("--save-dtype", "bfloat16")):
        assert command(*on_small("dpo", *more, results=where)).code == 0
    plain, rounded = sorted(
        (where / "runs" / "small" / "dpo").iterdir(), key=lambda f: f.stat().st_mtime
    )
    kl = [read_result(f)["evaluation"]["kl"]["mean"] for f in (plain, rounded)]
    assert kl[0] != kl[1]
    a, b = (load_causal(f / "policy").state_dict() for f in (plain, rounded))
    assert all(torch.equal(a[key].bfloat16().float(), b[key]) for key in a)


def test_save_none_keeps_nothing_and_is_not_evaluated_again():
    where = with_shared_stages("none")
    done = command(*on_small("dpo", "--save", "none", results=where))
    assert done.code == 0, done.text
    run = only_run(where, "small", "dpo")
    assert policy_of(run) == {"saved": "none", "reason": "--save none"}
    assert not list((where / "artifacts").glob("policy-*")) and not (run / "policy").exists()
    done = command("evaluate", run, "-p", small_suite(), "--stage-set", "evaluation.prompts=20")
    assert done.code == 3 and "kept no policy (--save none)" in done.err
    done = command(*on_small("dpo", "--save", "policy", results=where))
    assert done.code == 3 and "cannot be saved any more" in done.err
    assert policy_of(run)["saved"] == "none" and "Traceback" not in done.err


def test_adapter_is_merged_on_request_after_the_run():
    where = with_shared_stages("merge-later")
    args = ("--set", "lora_rank=2")
    assert command(*on_small("dpo", *args, results=where)).code == 0
    done = command(*on_small("dpo", *args, "--save", "policy", results=where))
    assert done.code == 0 and "finished before" in done.out, done.text
    run = only_run(where, "small", "dpo")
    assert policy_of(run)["folders"] == ["adapter", "policy"]
    one, other = load_causal(run / "adapter"), load_causal(run / "policy")
    torch.testing.assert_close(one(IDS).logits, other(IDS).logits, atol=1e-5, rtol=0)


def test_save_adapter_is_refused_without_an_adapter():
    done = command(*on_small("dpo", "--save", "adapter", results=fresh("refused")))
    assert done.code == 2 and "--save adapter: this run trains all weights" in done.err


def test_method_without_a_model_of_its_own_saves_none():
    saved = policy_of(finished("best_of_n"))
    assert saved["saved"] == "none" and "no model of its own" in saved["reason"]


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["record.result", "record.policy"])
def test_method_without_training_goes_on_after_a_kill_at_its_record(point):
    """It has neither a checkpoint nor an artifact of its policy: it is asked for it again."""
    where = with_shared_stages("killed-record")
    asked = on_small("best_of_n", results=where)
    assert command(*asked, env={"HARNESS_FAULT": f"{point}:1:kill"}).code == -9
    done = command(*asked)
    assert done.code == 0, done.text
    assert policy_of(only_run(where, "small", "best_of_n"))["saved"] == "none"


def test_policy_that_cannot_be_written_costs_no_result_and_is_written_later(tmp_path):
    where = with_shared_stages("blocked")
    blocker = plugin(tmp_path, "blocker", BLOCKER)
    done = command(*on_small("dpo", "-p", blocker, results=where))
    run = only_run(where, "small", "dpo")
    assert done.code == 4 and "could not be saved: FileExistsError" in done.err, done.text
    assert "win-rate vs baseline" in done.out and "Traceback" not in done.err
    first = read_result(run)
    assert first["policy"]["saved"] == "failed" and "FileExistsError" in first["policy"]["reason"]
    assert first["status"] == "finished" and (run / "traceback.txt").exists()
    (run / ".policy.partial").unlink()
    (artifact,) = (where / "artifacts").glob("policy-*")
    artifact.rename(where / "away")
    done = command(*on_small("dpo", results=where))
    assert done.code == 3 and "cannot be saved any more" in done.err
    assert read_result(run) == first
    (where / "away").rename(artifact)
    done = command(*on_small("dpo", results=where))
    assert done.code == 0, done.text
    now = read_result(run)
    assert now["policy"]["saved"] == "policy" and now["evaluation"] == first["evaluation"]
    weights = load_causal(run / "policy").state_dict()
    usual = load_causal(finished("dpo") / "policy").state_dict()
    assert all(torch.equal(weights[key], usual[key]) for key in usual)
    assert not (run / "checkpoint").exists() and not (run / "traceback.txt").exists()


@pytest.mark.parametrize("save", ["auto", "none"])
def test_judge_that_fails_costs_no_training(save, tmp_path):
    where = with_shared_stages("judge")
    judge = plugin(tmp_path, "fragile", FRAGILE)
    (tmp_path / "down").touch()
    args = on_small("dpo", "-p", judge, "--judge", "fragile", "--save", save, results=where)
    done = command(*args)
    assert done.code == 1 and "the judge cannot be reached" in done.err
    assert re.search(r"\bdpo\s+\d+/", done.err)
    (tmp_path / "down").unlink()
    done = command(*args)
    assert done.code == 0 and "This run failed before" in done.err, done.text
    assert not re.search(r"\bdpo\s+\d+/", done.err)  # no step was taken again
    result = read_result(only_run(where, "small", "dpo"))
    assert ("policy" in result["cost"]["reused_stages"]) == (save == "auto")
    assert (
        result["cost"]["method"]["steps"] == read_result(finished("dpo"))["cost"]["method"]["steps"]
    )
