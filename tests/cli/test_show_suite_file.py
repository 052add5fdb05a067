"""`harness show FILE.toml`: sources, splits, settings, and the first example."""

import json

import pytest
from harness_suites.summarization import Summarization

from ..helpers.tools import command


@pytest.fixture
def mine(tmp_path):
    rows = [
        {"prompt": f"mayor {i}", "chosen": " bank\x1b[2J", "rejected": " ship"} for i in range(150)
    ]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "q"}])
    (tmp_path / "data.jsonl").write_text(text)
    (tmp_path / "mine.toml").write_text(
        'data = "data.jsonl"\nbad_rows = "skip"\n'
        "[stages.sft]\nsteps = 3\n[settings.dpo]\nbeta = 0.7\n"
    )
    return tmp_path / "mine.toml"


def test_show_prints_sources_splits_settings_and_an_example(mine):
    done = command("show", mine)
    assert done.code == 0, done.text
    for part in (
        "train: 150 of 151 rows of data.jsonl; 1 skipped",
        "splits: method ",
        "stage.sft: steps = 3",
        "dpo: beta = 0.7",
        "--- prompt\nmayor ",
        "--- answer",
    ):
        assert part in done.out, done.out
    assert "\x1b[2J" not in done.out


def test_show_renders_the_example_with_a_model(mine):
    done = command("show", mine, "--model", Summarization().base_model())
    assert done.code == 0 and "the first demonstration, for" in done.out, done.text
    assert "</s>" in done.out  # as the tokenizer reads it, with its end
    batch = done.out.split("a batch of the first 2 pairs, as methods train on them, decoded")[1]
    assert batch.count("--- chosen") == batch.count("--- rejected") == 2
    chosen, rejected = batch.split("--- chosen\n")[1].split("--- rejected\n")
    assert [t.split()[0] for t in (chosen, rejected)] == ["<unk>", "ship"], batch


def test_show_of_a_file_that_is_not_there(tmp_path):
    done = command("show", tmp_path / "gone.toml")
    assert done.code == 2 and "there is no such file" in done.err
