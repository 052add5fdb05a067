"""Scored lists of a data file: kept with the row, tokenised, and trained on as lists."""

import json
from dataclasses import replace

import pytest
from harness_suites.columns import Columns
from harness_suites.layouts import read_row

from harness.core.data import Pair, Prompt, Ranked
from harness.training.ranked_lists import tokenised
from harness.training.stages.stages import _plain

from ..helpers.tools import command, fresh, only_run

ROW = {"prompt": "Q:", "responses": [" a", " b", " c"], "scores": [2.0, 5.0, 1.0]}


@pytest.mark.parametrize("list_pairs", ["best_worst", "all"])
def test_a_rows_list_and_scores_are_kept_at_its_first_pair(list_pairs):
    pairs = read_row(ROW, replace(Columns(), list_pairs=list_pairs))
    assert [pair.listed is not None for pair in pairs] == [True] + [False] * (len(pairs) - 1)
    listed = pairs[0].listed
    assert listed == Ranked(pairs[0].prompt, (" a", " b", " c"), (2.0, 5.0, 1.0))
    assert (pairs[0].chosen, pairs[0].rejected) == (" b", " c" if list_pairs != "all" else " a")


def test_ranks_become_scores_that_fall():
    (pair,) = read_row(
        {**{k: ROW[k] for k in ("prompt", "responses")}, "ranking": [2, 1, 3]}, Columns()
    )
    assert pair.listed.scores == (-2.0, -1.0, -3.0)


def test_the_list_of_a_pair_is_no_part_of_its_identity():
    plain = Pair(Prompt("1", "Q"), "a", "b")
    listed = replace(plain, listed=Ranked(plain.prompt, ("a", "b"), (1.0, 0.0)))
    assert plain == listed and _plain(plain) == _plain(listed)
    assert _plain(plain) != _plain(replace(plain, p=0.9))


def test_lists_of_the_most_frequent_length_are_taken_in_units_of_their_spread(tokens):
    prompt, told = Prompt("1", "w1"), []
    lists = [Ranked(prompt, ("w1", "w2", "w3"), (0.0, 3.0, 6.0))] * 2
    lists.append(Ranked(prompt, ("w1", "w2"), (50.0, -50.0)))
    taken = tokenised(lists, tokens, told.append)
    assert len(taken) == 2 and taken[0].scores == pytest.approx((-(1.5**0.5), 0.0, 1.5**0.5))
    assert [len(ids) for ids in taken[0].completions] == [2, 2, 2]
    assert len(told) == 1 and "1 of 3 lists" in told[0]
    assert tokenised([], tokens, told.append) == [] and len(told) == 1
    with pytest.raises(ValueError, match="all equal"):
        tokenised([Ranked(prompt, ("w1", "w2"), (1.0, 1.0))], tokens, told.append)


def test_a_suite_without_lists_is_refused_in_one_message():
    results = fresh("lists")
    done = command(
        *("run", "-m", "lipo", "-s", "helpfulness", "--quick", "--set", "lists=data"),
        *("--results", results),
    )
    assert done.code != 0 and "lists" in done.text and "Traceback" not in done.text


@pytest.mark.slow
def test_lists_of_a_file_are_trained_on(tmp_path):
    words = ["please", "shore", "boat", "fish", "sand"]
    rows = [
        {
            "prompt": f"{words[i % 5]} {words[i // 5 % 5]} {i}\n",
            "responses": [f" {words[j]} {words[(i + j) % 5]} ." for j in range(3)],
            "scores": [float((i + 2 * j) % 3) for j in range(3)],
        }
        for i in range(80)
    ]
    data, suite = tmp_path / "lists.jsonl", tmp_path / "lists.toml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    suite.write_text(
        f'suite = "preference_file"\ndata = "{data}"\nmax_completion_tokens = 12\n',
        encoding="utf-8",
    )
    results = fresh("lists")
    model = str(__import__("harness_suites").__path__[0]) + "/base"
    done = command(
        *("run", "-m", "lipo", "-s", suite, "--model", model, "--quick", "--threads", "1"),
        *("--set", "lists=data", "--set", "steps=3", "--set", "batch_size=8"),
        *("--results", results),
    )
    assert done.code == 0, done.text
    record = json.loads((only_run(results, "lists", "lipo") / "result.json").read_text("utf-8"))
    assert record["cost"]["method"]["steps"] == 3 and record["cost"]["method"]["samples"] == 0
