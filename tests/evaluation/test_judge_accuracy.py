"""What an evaluation keeps of a judge that is not shown to be better than a coin."""

import pytest

from harness import Answer, Judge, Prompt
from harness.core.run_folder import read_result, read_rows
from harness.evaluation.judging import judge_answers

from ..helpers.tools import command, on_small, plugin, with_shared_stages

PLUGIN = """
from harness import Judge, hookimpl


class Doubtful(Judge):
    name = "doubtful"

    def score(self, prompts, completions):
        return [float(len(text)) for text in completions]

    def agreement(self):
        return {"accuracy": 0.52, "pairs": 385}


@hookimpl
def register_judges(register):
    register(Doubtful)
"""


def judged(accuracy, tmp_path):
    class Known(Judge):
        """Prefers the longer answer."""

        name = "known"

        def score(self, prompts, completions):
            return [float(len(text)) for text in completions]

        def agreement(self):
            return {"accuracy": accuracy, "pairs": 385}

    ours, theirs = [Answer("long"), Answer("a")], [Answer("b"), Answer("c")]
    return judge_answers(Known(), [Prompt("p", "x")] * 2, ours, theirs, tmp_path)


def test_coin_gives_no_win_rate_and_its_scores_are_kept(tmp_path):
    found = judged(0.52, tmp_path)
    assert all(p != p for p in found.wins) and found.gold is found.baseline_gold is None
    assert found.figures["no_win_rate"].startswith("no win-rate: the judge's held-out accuracy .52")
    assert found.notes[0]["withheld"] == {"p": 1.0, "gold": 4.0, "baseline_gold": 1.0}
    assert (found.figures["missing"], found.figures["ties"]) == (0, 1)


@pytest.mark.parametrize("accuracy", [0.56, 0.9])
def test_better_judge_gives_one(accuracy, tmp_path):
    found = judged(accuracy, tmp_path)
    assert found.wins == [1.0, 0.5] and found.gold == [4.0, 1.0]
    assert "no_win_rate" not in found.figures and not any(found.notes)


def test_run_and_its_table_say_why_there_is_no_win_rate():
    where = with_shared_stages("doubtful")
    file = plugin(where, "doubtful", PLUGIN)
    done = command(*on_small("start", "-p", file, "--judge", "doubtful", results=where))
    assert done.code == 0, done.text
    assert "held-out accuracy .52 [.47, .57] does not exclude .5" in " ".join(done.text.split())
    (folder,) = (where / "runs").glob("*/start/seed*")
    evaluation = read_result(folder)["evaluation"]
    assert not {"win_rate", "gold", "baseline_gold", "missing"} & set(evaluation)
    assert evaluation["kl"] and evaluation["judge"]["no_win_rate"]
    row = read_rows(folder / "samples.jsonl")[0]
    assert row["win"] is row["gold"] is None and row["answer"] and row["judge"]["withheld"]
    table = command("table", "--results", where)
    assert table.code == 0 and "does not exclude .5" in table.out and "| --" in table.out
