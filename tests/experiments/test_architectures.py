"""Architectures with random weights, by the command line: full DPO, and RLVR with LoRA."""

import pytest

from harness.core.run_folder import read_result
from harness.models.loading import load_causal

from ..helpers.tiny_models import ARCHITECTURES, tiny_folder
from ..helpers.tools import command, fresh, on_small, only_run

SAMPLE = ("mixtral",)
EACH = [n if n in SAMPLE else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES]
FAST = {"llama", "gpt2", "mixtral", "qwen3", "qwen3-moe", "phi3", "smollm3"}
FAST |= {"gemma2", "gemma3", "gpt-oss", "mistral-window"}  # with windows
PADDED = {"falcon", "bloom", "lfm2"}


@pytest.mark.parametrize("name", EACH)
def test_architecture_goes_through_dpo_and_rlvr_and_is_saved(name):
    where = fresh("architecture")
    model = tiny_folder(name, where / "model")
    for method, more in (("dpo", ()), ("rlvr", ("--set", "lora_rank=2"))):
        done = command(*on_small(method, *more, "--model", model, results=where / "results"))
        assert done.code == 0, done.text
        run = only_run(where / "results", "small", method)
        result = read_result(run)
        assert result["status"] == "finished"
        assert result["policy"]["saved"] == ("adapter" if more else "policy")
        load_causal(run / result["policy"]["folders"][0])
        if name in FAST | PADDED:
            assert result["runtime"]["prompt_computed_once"] == (name in FAST)


@pytest.mark.parametrize(
    ("name", "scoring", "decoding"),
    [
        ("llama", "each prompt once, without padding", "each prompt's cache once"),
        ("gemma2", "a mask for the window of 128 tokens", "each prompt's cache once"),
        ("lfm2", "padded rows: its configuration has layers of other", "the model's own cache"),
        ("falcon-alibi", "padded rows: the fast path gave other", "the model's own cache"),
        ("deepseek-v3", "each prompt once, without padding", "the model's own cache"),
        ("granite", "because the head scales or caps them", "each prompt's cache once"),
    ],
)
def test_show_says_which_paths_a_model_takes_and_why(name, scoring, decoding):
    folder = tiny_folder(name, fresh("shown") / "model")
    done = command("show", folder)
    assert done.code == 0, done.text
    rows = dict(line.split(None, 1) for line in done.out.splitlines() if line[:1].isalpha())
    assert scoring in rows["scoring"] and decoding in rows["decoding"]
    assert rows["architecture"].endswith("ForCausalLM") and int(rows["parameters"].replace(",", ""))
    assert rows["positions"].strip() == ("512" if "falcon" not in name else rows["positions"])
    assert "template" in done.out and "none" in done.out


def test_show_of_a_folder_without_a_model_ends_in_one_message(tmp_path):
    done = command("show", tmp_path)
    assert done.code == 2 and "could not be loaded" in done.err and "Traceback" not in done.err
