"""The report on a user's data in a run: printed before anything is trained, and in the record."""

import json
import runpy

import pytest

from ..helpers.tools import ROOT, command

JUDGE = """
from harness import Judge, hookimpl


class Brief(Judge):
    name = "brief"

    def score(self, prompts, completions):
        return [-float(len(text)) for text in completions]


@hookimpl
def register_judges(register):
    register(Brief)
"""
SETTINGS = """
data = "data.jsonl"
bad_rows = "skip"
max_prompt_tokens = 32
max_completion_tokens = 2
[stages.sft]
steps = 2
batch_size = 4
[stages.reward_model]
batch_size = 8
[stages.evaluation]
prompts = 8
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a plugin with a judge, and a file of which three rows in four cannot be used."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"prompt": f"say {i}", "chosen": f" good day {i}", "rejected": f" bad day {i}"}
        for i in range(160)
    ]
    rows += [{"prompt": f"x {i}", "chosen": "", "rejected": "y"} for i in range(480)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.toml").write_text(SETTINGS)
    (folder / "judge.py").write_text(JUDGE)
    runpy.run_path(str(ROOT / "examples" / "small_model.py"))["main"](
        str(folder / "data.jsonl"), str(folder / "model")
    )
    return folder


def run(world, results, *more):
    where = ["--model", world / "model", "-s", world / "mine.toml", "--results", world / results]
    return command("run", "-m", "dpo", *where, *more)


def test_what_was_read_skipped_and_cut_is_printed_first_and_recorded(world):
    done = run(world, "plain")
    assert done.code == 0, done.text
    said = done.err.splitlines()
    skipped = next(i for i, line in enumerate(said) if "160 of 640 rows of data.jsonl" in line)
    assert "480 skipped: an empty completion (row 161, row 162, row 163, ...)" in said[skipped]
    trained = next(i for i, line in enumerate(said) if line.split()[:1] == ["sft"])
    assert skipped < trained
    assert any("max_completion_tokens = 2" in line and "leaves 95 %" in line for line in said)
    (file,) = (world / "plain").glob("runs/mine/dpo/*/result.json")
    result = json.loads(file.read_text())
    data = result["data"]
    assert data["sources"][0]["skipped"][0]["rows"] == 480
    assert sum(split["rows"] for split in data["splits"].values()) == 160
    cut = data["measured"]["completions"]
    assert cut["cut"] == cut["texts"] > 0
    assert result["artifacts"]["sft"]["cut_completions"] == data["splits"]["method"]["rows"]
    assert result["artifacts"]["sft"]["cut_prompts"] == 0
    judged = data["measured"]["judged_completions"]
    assert judged["cut"] == judged["texts"] == 2 * data["splits"]["judge"]["rows"]
    assert "160 of 640 rows used; 480 skipped" in " ".join(done.out.split()), done.out
    shown = command("show", file.parent)  # the panel again, and the whole report
    assert shown.code == 0 and "win-rate vs baseline" in shown.out, shown.text
    assert "480 skipped: an empty completion (row 161" in shown.out
    assert "rows of the judge: 0% of their prompts and 100% of their completions" in shown.out
    page = world / "page.html"
    assert command("report", "--results", world / "plain", "-o", page).code == 0
    assert "480 skipped: an empty completion (row 161" in page.read_text()
    assert result["artifacts"]["preferences"]["equal_pairs"] == 0


def test_no_preferences_are_withheld_for_a_judge_that_is_not_used(world):
    judge = ("--judge", "brief", "-p", world / "judge.py")
    withheld = run(world, "judge", *judge)
    assert withheld.code == 0 and "judge_share=0 gives them to the methods" in withheld.err
    done = run(world, "judge", *judge, "--suite-set", "judge_share=0")
    assert done.code == 0 and "judge_share" not in done.err, done.text
    files = (world / "judge").glob("runs/mine/dpo/*/result.json")
    splits = [json.loads(file.read_text())["data"]["splits"] for file in files]
    splits.sort(key=lambda split: split["judge"]["rows"])
    assert splits[0]["judge"]["rows"] == 0 < splits[1]["judge"]["rows"]
    both = splits[1]["judge"]["rows"] + splits[1]["method"]["rows"]
    assert splits[0]["method"]["rows"] == both


def test_trained_judge_is_refused_before_training_where_nothing_is_kept_for_it(world):
    done = run(world, "refused", "--suite-set", "judge_share=0")
    assert done.code == 3 and "raise judge_share" in done.err, done.text
    assert not list((world / "refused").glob("artifacts/*/*"))
