"""The start checkpoint: the model itself or the model after SFT; a reference of its own."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.api.start import has_chat_template, start_of
from harness.core.errors import UsageError
from harness.core.model_folder import model_digest
from harness.models.hub_format import check_alike

from ..helpers.tools import command, fresh, on_small, only_run

BASE = Path(__file__).parents[2] / "suites" / "harness_suites" / "base"


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A folder with the embedded model, its weights moved a little at random."""
    folder = tmp_path_factory.mktemp("moved") / "model"
    shutil.copytree(BASE, folder)
    generator = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for tensor in weights.values():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor += (0.02 * noise).to(tensor.dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def run(results, method, *more, code=0):
    done = command(*on_small(method, "--start", "model", *more, results=results))
    assert done.code == code, done.text
    return done


def read(folder, name):
    return json.loads((folder / name).read_text())


def first_row(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.fixture(scope="module")
def plain():
    """(results folder, what the command said) of DPO from the model itself."""
    results = fresh("start")
    return results, run(results, "dpo")


def test_start_of_a_model_is_decided_by_its_chat_template(tmp_path):
    assert start_of(None, None) == "sft" and start_of(None, str(BASE)) == "sft"
    assert start_of("model", str(BASE)) == "model"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    assert has_chat_template(tmp_path) and start_of(None, str(tmp_path)) == "model"
    assert start_of("sft", str(tmp_path)) == "sft"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert has_chat_template(tmp_path)
    with pytest.raises(UsageError, match="expected model or sft"):
        start_of("base", None)


def test_start_model_makes_no_sft_stage_and_no_copy(plain):
    results, done = plain
    folder = only_run(results, "small", "dpo")
    result, spec = read(folder, "result.json"), read(folder, "spec.json")
    assert not list((results / "artifacts").glob("sft-*"))
    assert result["ground"]["start_checkpoint"] == model_digest(BASE)[:16]
    assert spec["start"] == "model" and "sft" not in spec["stages"]
    assert result["start"] == "model" and "sft" not in result["cost"]["shared"]
    assert "start: the model itself, without SFT" in done.err
    assert "start: model" in done.out


def test_raw_base_model_as_start_is_warned_of(plain):
    assert "has no chat template" in plain[1].err and "--start sft" in plain[1].err


def test_option_of_the_sft_stage_without_that_stage_is_refused():
    done = run(fresh(), "dpo", "--stage-set", "sft.steps=3", code=2)
    assert "there is no SFT stage" in done.err


def test_rows_with_unlike_start_do_not_stand_in_one_table(plain):
    results, _ = plain
    mixed = fresh("mixed")
    shutil.copytree(results / "runs", mixed / "runs")
    done = command(*on_small("start", results=mixed))
    assert done.code == 0 and "start: the model after SFT" in done.err, done.text
    table = command("table", "--results", mixed)
    assert table.code == 2 and "start_checkpoint" in table.err


def test_run_from_the_model_itself_is_reproduced(plain):
    results, _ = plain
    folder = only_run(results, "small", "dpo")
    plugin = on_small("dpo", results=results)[-3]
    done = command("reproduce", folder, "-p", plugin)
    assert done.code == 0 and "identical: all" in done.out, done.text


def test_dpo_and_kl_are_taken_against_the_reference(plain, moved):
    assert first_row(only_run(plain[0], "small", "dpo"))["loss"] == pytest.approx(math.log(2))
    other = fresh("reference")
    run(other, "dpo", "--reference", moved)
    folder = only_run(other, "small", "dpo")
    loss, result = first_row(folder)["loss"], read(folder, "result.json")
    assert abs(loss - math.log(2)) > 1e-3
    assert result["ground"]["reference"] == model_digest(moved)[:16]
    run(other, "start", "--reference", moved)
    assert read(only_run(other, "small", "start"), "result.json")["evaluation"]["kl"]["mean"] > 0.01
    lora = fresh("lora")  # the base with its adapter off is not this reference
    run(lora, "dpo", "--reference", moved, "--set", "lora_rank=2")
    assert first_row(only_run(lora, "small", "dpo"))["loss"] == pytest.approx(loss, abs=1e-5)


def test_start_as_reference_changes_no_figure(plain, moved):
    same = fresh("same")
    run(same, "start", "--reference", BASE)
    figures = read(only_run(same, "small", "start"), "result.json")["evaluation"]
    assert figures["kl"]["mean"] == 0
    run(same, "dpo", "--reference", BASE)
    a, b = only_run(same, "small", "dpo"), only_run(plain[0], "small", "dpo")
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_on_policy_method_keeps_near_the_reference(moved):
    results = fresh("onpolicy")
    run(results, "rloo", "--reference", moved)
    assert abs(first_row(only_run(results, "small", "rloo"))["kl"]) > 1e-3


def test_best_of_n_is_refused_with_a_reference(moved):
    done = command(*on_small("best_of_n", "--reference", moved, results=fresh()))
    assert done.code != 0 and "Leave --reference out" in done.err


def test_reference_of_another_kind_is_refused(tmp_path, moved):
    small = tmp_path / "small"
    shutil.copytree(BASE, small)
    config = read(small, "config.json")
    (small / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with pytest.raises(UsageError, match="its architecture is not that of"):
        check_alike(BASE, small)
    words = tmp_path / "words"
    shutil.copytree(BASE, words)
    text = (words / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (words / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="another vocabulary"):
        check_alike(BASE, words)
    check_alike(BASE, moved)  # negative control
