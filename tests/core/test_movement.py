"""A training that moved nothing is told of: each reason, and a training that moved."""

import json

import pytest

from harness.core.movement import LEAST_KL, sentence, unmoved

from ..helpers.tools import command, on_small, only_run, put, record, with_shared_stages

MOVED = [{"loss": 0.6, "grad_norm": 0.5, "groups_without_signal": 0.9}, {"grad_norm": 0.0}]


@pytest.mark.parametrize(
    ("kl", "rows", "reason"),
    [
        (LEAST_KL / 2, MOVED, "KL 0.0005 is below 0.001 nats"),
        (1.0, [{"groups_without_signal": 1.0, "grad_norm": 0.1}] * 3, "no group had a signal"),
        (1.0, [{"grad_norm": 0.0}] * 3, "every gradient was 0"),
    ],
)
def test_unmoved_gives_each_reason(kl, rows, reason):
    (found,) = unmoved(kl, rows)
    assert found.startswith(reason)
    assert reason in sentence({"unmoved": [found]})


def test_training_that_moved_has_no_reason():
    assert unmoved(1.0, MOVED) == [] and sentence({"unmoved": []}) == "" == sentence({})
    assert unmoved(LEAST_KL, MOVED) == []
    assert unmoved(0.0, []) == []  # a method that trains nothing is no failure


def test_run_that_did_not_move_says_so_in_panel_and_record():
    results = with_shared_stages("unmoved")
    done = command(*on_small("dpo", "--set", "learning_rate=1e-12", results=results))
    assert done.code == 0 and "Nothing moved in training" in done.out, done.text
    result = json.loads((only_run(results, "small", "dpo") / "result.json").read_text())
    assert len(result["unmoved"]) == 1 and result["unmoved"][0].startswith("KL")
    other = command(*on_small("dpo", results=with_shared_stages("moved")))  # negative control
    assert other.code == 0 and "Nothing moved" not in other.out


def test_tables_and_compare_mark_a_row_that_did_not_move(tmp_path):
    still = record("dpo", unmoved=["every gradient was 0"])
    put(tmp_path, still, record("ppo", unmoved=[]))
    table = command("table", "--results", tmp_path, "--columns", "all")
    assert "Nothing moved in training: every gradient was 0." in table.out, table.text
    compared = command("compare", "dpo", "ppo", "--results", tmp_path)
    assert "A: Nothing moved in training: every gradient was 0." in compared.out, compared.text
    assert "B: Nothing moved" not in compared.out
