"""AlpacaEval 2: published preferences through `llm_judge`, from replies to the win-rate.

The data are not part of the project. HARNESS_ALPACA_EVAL names a folder with annotations_v2.csv.gz
(model, index, preference) and leaderboard_v2.csv of github.com/tatsu-lab/alpaca_eval.
"""

import csv
import gzip
import math
import os
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest
from harness_plugins.judges.llm_judge import LLMJudge

from harness import Answer, Prompt
from harness.core.options import build
from harness.evaluation.judging import judge_answers
from harness.statistics.judges import side_of
from harness.statistics.over_prompts import known, rate_interval

VARIABLE = "HARNESS_ALPACA_EVAL"
SIDE = re.compile(r"(model|baseline) answers (\d+)")


def judged(preferences, folder):
    """Judge a model whose answers are preferred with these probabilities; NaN is a refusal."""
    judge = build(LLMJudge, {"url": "http://127.0.0.1:1/v1", "model": "x", "workers": 1}, "judge")
    judge.__dict__["costly"] = False  # nothing to keep

    def ask(body):
        (first, number), _ = SIDE.findall(body["messages"][-1]["content"])
        p = preferences[int(number)]
        if math.isnan(p):
            return {"message": {"refusal": "no"}}
        shown = p if first == "model" else 1 - p
        logs = {"m": shown, "M": 1 - shown}
        top = [{"token": t, "logprob": math.log(q) if q else -math.inf} for t, q in logs.items()]
        return {
            "message": {"content": "m"},
            "logprobs": {"content": [{"token": "m", "top_logprobs": top}]},
        }

    judge.asker.client.ask = ask
    n = len(preferences)
    ours, theirs = (
        [Answer(f"{side} answers {i}") for i in range(n)] for side in ("model", "baseline")
    )
    prompts = [Prompt(str(i), f"instruction {i}") for i in range(n)]
    return judge_answers(judge, prompts, ours, theirs, folder)


def discrete(wins):
    """The share of wins where each verdict counts whole and a tie half."""
    return fmean((1 + side_of(p)) / 2 for p in known(wins))


def test_win_rates_of_soft_preferences(tmp_path):
    """Written by hand: three wins, one loss, a tie and a refusal of six."""
    preferences = [1.0, 0.75, 0.875, 0.0, 0.5, math.nan]
    found = judged(preferences, tmp_path)
    assert found.wins[:5] == pytest.approx(preferences[:5], abs=1e-12)
    assert rate_interval(found.wins).mean == pytest.approx(3.125 / 5)
    assert discrete(found.wins) == pytest.approx(3.5 / 5)
    assert (found.figures["missing"], found.figures["problems"]) == (1, {"refused": 2})
    assert found.figures["position_consistency"] == 1.0


@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no folder with the data")
def test_published_win_rates_are_ours(tmp_path):
    folder = Path(os.environ[VARIABLE])
    preferences = {}
    with gzip.open(folder / "annotations_v2.csv.gz", "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            p = float(row["preference"] or "nan") - 1
            preferences.setdefault(row["model"], []).append(p)
    with open(folder / "leaderboard_v2.csv", encoding="utf-8") as lines:
        published = {row[""]: row for row in csv.DictReader(lines)}
    models = sorted(set(preferences) & set(published))
    assert len(models) == 57
    worst = {"win_rate": 0.0, "discrete_win_rate": 0.0, "standard_error": 0.0}
    for name in models:
        wins = judged(preferences[name], tmp_path).wins
        there = known(wins)
        ours = {
            "win_rate": 100 * rate_interval(wins).mean,
            "discrete_win_rate": 100 * discrete(wins),
            "standard_error": 100 * stdev(there) / math.sqrt(len(there)),
        }
        for key, value in ours.items():
            worst[key] = max(worst[key], abs(value - float(published[name][key])))
    print(f"{len(models)} models, largest differences in points: {worst}")
    assert max(worst.values()) < 1e-9
