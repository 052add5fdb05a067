"""TRL's trainers as methods: the same data, order, budget and counts as every other method."""

import csv
import io
import shutil
from types import SimpleNamespace

import pytest
import torch
from harness_plugins import trl_trainers
from harness_plugins.trl_trainers import (
    TRLDPO,
    TRLGRPO,
    metrics_of,
    pair_rows,
    single_rows,
    tell_soft,
)

from harness.cli import list_command
from harness.core.options import build
from harness.core.run_folder import read_result, read_rows

from ..helpers.tools import command, on_small, only_run, with_shared_stages

EQUAL = tuple(
    word
    for setting in (
        "lr_schedule=constant",
        "warmup_ratio=0",
        "learning_rate=1e-3",
        "batch_size=8",
        "steps=5",
        "beta=0.1",
    )
    for word in ("--set", setting)
)


@pytest.fixture(scope="module")
def where():
    """Results with the shared stages of the suite `small`."""
    pytest.importorskip("trl")
    return with_shared_stages("trl")


def trained(where, method, *settings):
    """The record and the metrics of a quick run, in results of its own."""
    results = where.parent / f"{where.name}-{method}-{len(settings)}"
    if not results.exists():
        shutil.copytree(where, results)
        done = command(*on_small(method, *EQUAL, *settings, results=results))
        assert done.code == 0, done.text
    folder = only_run(results, "small", method)
    return read_result(folder), read_rows(folder / "metrics.jsonl")


def test_trl_dpo_takes_the_steps_of_our_dpo(where):
    """Equal settings, equal pairs in equal order: the losses of all steps agree up to rounding."""
    (own, ours), (other, theirs) = (trained(where, m) for m in ("dpo", "trl_dpo"))
    assert len(ours) == len(theirs) > 3
    assert [row["loss"] for row in theirs] == pytest.approx([r["loss"] for r in ours], abs=2e-3)
    assert abs(ours[0]["loss"] - ours[-1]["loss"]) > 0.02  # it learns: the check above can fail
    assert other["evaluation"]["kl"]["mean"] == pytest.approx(
        own["evaluation"]["kl"]["mean"], rel=0.05, abs=0.02
    )


def test_trl_dpo_is_counted_from_outside(where):
    (own, _), (other, _) = (trained(where, m) for m in ("dpo", "trl_dpo"))
    ours, theirs = own["cost"]["method"], other["cost"]["method"]
    assert (theirs["steps"], theirs["pairs"]) == (ours["steps"], ours["pairs"])
    # TRL poses a prompt once for each completion, and pads
    assert 0.9 < theirs["flops"] / ours["flops"] < 3
    assert theirs["tokens_trained"] >= ours["tokens_trained"] * 0.9
    assert set(other["cost"]["models"]) == {"policy", "reference"}


def test_budget_ends_a_trainer(where):
    result, rows = trained(where, "trl_dpo", "--budget", "steps=2")
    assert len(rows) == 2 and result["cost"]["budget_used"]["steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trl_grpo", "trl_kto"])
def test_trainers_train_and_are_evaluated(where, method):
    result, rows = trained(where, method)
    cost = result["cost"]["method"]
    assert cost["steps"] == len(rows) and result["evaluation"]["kl"]["mean"] > 0
    if method == "trl_grpo":
        assert cost["samples"] == cost["reward_queries"] > 0 and cost["tokens_generated"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "suite", "settings"),
    [
        ("dpo", "arithmetic", ("learning_rate=1e-3", "beta=0.1", "steps=40", "batch_size=32")),
        ("grpo", "exact", ("learning_rate=1e-3", "beta=0.1", "steps=40", "batch_size=16")),
    ],
)
def test_rows_of_trl_agree_with_ours_within_seeds(tmp_path, ours, suite, settings):
    """The embedded world at equal settings, three seeds: the table of docs/other-tools.md."""
    pytest.importorskip("trl")
    words = [word for setting in settings for word in ("--set", setting)]
    for method in (ours, f"trl_{ours}"):
        same = ("--set", "ddof=1") if method == "grpo" else ()  # TRL's spread
        for seed in range(3):
            asked = ("run", "-m", method, "-s", suite, "--quick", "--seed", seed, *words, *same)
            more = ("--stage-set", "evaluation.prompts=256", "--results", tmp_path)
            done = command(*asked, "--threads", 1, *more)
            assert done.code == 0, done.text
    table = command("table", "--results", tmp_path, "--format", "csv").out
    rows = {row["method"].split()[0]: row for row in csv.DictReader(io.StringIO(table))}
    own, trl = rows[ours], rows[f"trl_{ours}"]
    half = sum(float(r["win_rate_high"]) - float(r["win_rate_low"]) for r in (own, trl)) / 2
    assert abs(float(own["win_rate"]) - float(trl["win_rate"])) < half
    assert float(own["kl"]) > 1 and float(trl["kl"]) > 1  # both left the start checkpoint


# -- without a run ---------------------------------------------------------------------------------


def batch_of(**columns):
    """Two prompts with the completions and columns of a batch."""
    prompts = SimpleNamespace(
        ids=torch.tensor([[0, 5], [6, 7]]), mask=torch.tensor([[0, 1], [1, 1]])
    )
    body = {"prompts": prompts, "lengths": columns.pop("lengths")}
    return type("B", (), {**body, "__getitem__": lambda self, name: columns[name]})()


def test_single_rows_move_the_completions_of_a_part_on_by_one():
    ids, labels = torch.tensor([[[1, 2]], [[3, 0]]]), torch.tensor([1.0, 0.2])
    batch = batch_of(completion_ids=ids, label=labels, lengths=torch.tensor([[2], [1]]))
    assert single_rows([batch], 2) == [
        {"prompt_ids": [5], "completion_ids": [1, 2], "label": True, "KL_completion_ids": [3]},
        {"prompt_ids": [6, 7], "completion_ids": [3], "label": False, "KL_completion_ids": [1, 2]},
    ]


def test_pair_rows_turn_a_pair_whose_chosen_completion_is_the_less_likely_one():
    ids, lengths = (
        torch.tensor([[[1, 2], [3, 0]], [[4, 0], [8, 9]]]),
        torch.tensor([[2, 1], [1, 2]]),
    )
    batch = batch_of(completion_ids=ids, lengths=lengths, p=torch.tensor([0.9, 0.2]))
    assert pair_rows([batch]) == [
        {"prompt_ids": [5], "chosen_ids": [1, 2], "rejected_ids": [3]},
        {"prompt_ids": [6, 7], "chosen_ids": [8, 9], "rejected_ids": [4]},
    ]


def test_soft_labels_are_told():
    told = []
    batch = {"p": torch.tensor([1.0, 0.7, 0.0])}
    tell_soft(SimpleNamespace(batches=[batch], tell=told.append), "trl_dpo", "p")
    assert len(told) == 1 and "1 of 3 labels are soft" in told[0]
    tell_soft(SimpleNamespace(batches=[{"p": torch.ones(3)}], tell=told.append), "trl_dpo", "p")
    assert len(told) == 1


def test_metrics_of_keeps_a_loss_that_is_not_finite():
    """The run must end on it; a metric without a value is left out."""
    nan = float("nan")
    kept = metrics_of({"loss": nan, "rewards/margins": 0.5, "kl": nan, "epoch": 0.1, "x": "y"})
    assert set(kept) == {"loss", "rewards_margins"}


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (TRLDPO, {"lr_final": "0.1"}, "lr_final has no meaning"),
        (TRLDPO, {"gradient_accumulation_steps": "5"}, "must divide batch_size"),
        (TRLGRPO, {"epochs": "2"}, "epochs has no meaning"),
        (TRLGRPO, {"reward_refresh": "3"}, "reward_refresh has no meaning inside"),
    ],
)
def test_check_refuses_options_that_trl_cannot_take(cls, options, message):
    with pytest.raises(Exception, match=message):
        build(cls, options, "method")


def test_methods_of_trl_are_listed_with_what_they_need(monkeypatch):
    monkeypatch.setattr(list_command, "find_spec", lambda name: None)
    monkeypatch.setattr(trl_trainers, "find_spec", lambda name: None)
    done = list_command._about("methods", TRLDPO)
    assert done.endswith("needs pip install 'alignment-harness[trl]'")
    with pytest.raises(Exception, match=r"needs TRL: pip install 'alignment-harness\[trl\]'"):
        build(TRLDPO, {}, "method trl_dpo")
