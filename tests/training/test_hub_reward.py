"""--reward-model: a classifier of the hub as the reward, normalised, counted, named and refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import harness_suites
import pytest
import torch

from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.data import Prompt
from harness.core.errors import HarnessError, UsageError
from harness.core.meter import Meter
from harness.core.run_folder import read_result, read_rows
from harness.models.hub_format import load_tokenizer
from harness.models.sequence_scorer import SequenceScorer
from harness.models.tokens import Tokens
from harness.training.hub_reward import FILE, HubReward

from ..helpers.small_folders import save_classifier
from ..helpers.tools import command, on_small, small_suite, with_shared_stages

BASE = Path(harness_suites.__file__).parent / "base"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("classifier"), BASE)


def spec_of(method, model, *settings, **fixed):
    fixed = {"quick": True, "reward_model": str(model), **fixed}
    return resolve(Request(method, "summarization", settings, fixed=fixed), installed())


def refused(method, model, *settings, **fixed):
    with pytest.raises(UsageError) as caught:
        spec_of(method, model, *settings, **fixed)
    return str(caught.value)


def test_scores_are_the_classifier_s_own_normalised(classifier):
    tokens = Tokens(load_tokenizer(BASE), 64, 16, set())
    prompts = [Prompt("a", "the mayor sold the bridge ."), Prompt("b", "the king left .")]
    answers = [["the mayor", "the bridge sold"], ["left", "the king"]]
    ids = [
        [tokens.answer_ids(p.text, x) for x in row] for p, row in zip(prompts, answers, strict=True)
    ]
    batch = tokens.batch(prompts, ids, torch.device("cpu"))
    meter = Meter()
    reward = HubReward(SequenceScorer(classifier), tokens, mean=0.5, scale=2.0)
    with meter.phase("score"):
        found = reward.score(batch, SimpleNamespace(meter=meter))
    texts = [(p.text, x) for p, row in zip(prompts, tokens.texts(batch), strict=True) for x in row]
    plain = SequenceScorer(classifier).score(*map(list, zip(*texts, strict=True)))
    by_hand = [(logit - 0.5) / 2.0 for logit in plain.scores]
    assert found.flatten().tolist() == pytest.approx(by_hand, abs=1e-6) and found.shape == (2, 2)
    assert meter.total().reward_queries == 4 and meter.total().flops == plain.flops > 0
    assert "reward" in json.dumps(meter.snapshot())
    assert reward.state().changed(reward.model) == ""


def test_fingerprint_holds_the_weights_and_no_place(classifier, tmp_path):
    moved = shutil.copytree(classifier, tmp_path / "moved")
    other = save_classifier(tmp_path / "other", BASE, seed=1)
    one, two, three = (spec_of("ppo", m) for m in (classifier, moved, other))
    assert one.fingerprint() == two.fingerprint() != three.fingerprint()
    assert one.recipe() == two.recipe() != three.recipe()
    assert one.training_fingerprint() != three.training_fingerprint()


def test_runs_without_a_reward_model_keep_their_names(classifier):
    plain = resolve(Request("ppo", "summarization", fixed={"quick": True}), installed())
    assert "reward_model" not in plain._values(set()) and "reward_model" not in plain.code
    assert replace(spec_of("ppo", classifier), reward_model=None).recipe() == plain.recipe()


def test_methods_that_use_no_reward_model_refuse_one(classifier):
    for method in ("dpo", "kto", "start"):
        assert f"{method} uses no reward model with these options" in refused(method, classifier)
    assert "uses no reward model" in refused("grpo", classifier, "reward=verifier")
    assert "learns its reward from the labels of" in refused("rlaif", classifier)
    assert "is not trained further" in refused("ppo", classifier, "reward_refresh=2")
    assert "reward_members=2 is an ensemble" in refused("ppo", classifier, "reward_members=2")


def test_another_model_in_its_place_is_found(classifier, tmp_path):
    (tmp_path / FILE).write_text('{"weights": "other", "mean": 0, "scale": 1}', encoding="utf-8")
    with pytest.raises(HarnessError, match="was changed while the run was under way"):
        HubReward.load(tmp_path, classifier, None, "cpu")


def run(where, method, classifier, *more):
    return command(*on_small(method, "--reward-model", classifier, *more, results=where))


@pytest.fixture(scope="module")
def rewarded(classifier):
    """A results folder with one run of best_of_n on that reward model."""
    where = with_shared_stages("hub_reward")
    done = run(where, "best_of_n", classifier, "--set", "n=2")
    assert done.code == 0, done.text
    return where


def test_run_with_a_reward_model_of_the_hub(classifier, rewarded):
    """Normalised over the start checkpoint's answers, held and counted, in record and table."""
    where = rewarded
    folder = next(f for f in where.glob("runs/small/best_of_n/*") if not f.name.startswith("."))
    result = read_result(folder)
    named = result["reward_model"]
    assert named["name"] == classifier and named["weights"] == SequenceScorer(classifier).digest
    made = next(iter(where.glob(f"artifacts/hub_reward-*/{FILE}")))
    assert json.loads(made.read_text(encoding="utf-8"))["mean"] == pytest.approx(named["mean"])
    rows = read_rows(folder / "samples.jsonl")
    plain = SequenceScorer(classifier).score(
        [r["prompt"] for r in rows], [r["answer"] for r in rows]
    )
    ours = [(logit - named["mean"]) / named["scale"] for logit in plain.scores]
    assert [r["proxy"] for r in rows] == pytest.approx(ours, abs=1e-3)
    assert "reward" in result["cost"]["models"] and result["cost"]["labels"] == 0
    assert result["evaluation"]["inference"]["reward_queries_per_answer"] == 2
    assert "reward_model" not in result["ground"]
    table = command("table", "--results", where, "--format", "md")
    name = Path(classifier).name
    assert (
        f"reward_model={name}" in table.out and "standard deviation 1 over the start" in table.out
    )
    dry = run(where, "best_of_n", classifier, "--set", "n=2", "--dry-run")
    assert dry.code == 0 and "reward model" in dry.out and "preferences" not in dry.out, dry.text


def test_judge_s_weights_as_reward_are_refused(classifier):
    where = with_shared_stages("hub_judge")
    judge = ("--judge", "reward_model", "--judge-set", f"model={classifier}")
    done = run(where, "best_of_n", classifier, *judge)
    assert done.code != 0 and "have the same weights" in done.err, done.text
    assert not list(where.glob("runs/*/*/*/result.json"))


def test_classifier_of_two_outputs_is_refused(tmp_path):
    two = save_classifier(tmp_path / "two", BASE, labels=2)
    done = run(with_shared_stages("hub_two"), "best_of_n", two)
    assert done.code != 0 and "has 2 outputs; one score" in done.err, done.text


def test_judge_of_the_hub_evaluates_again_and_trains_nothing(classifier, rewarded, tmp_path):
    (folder,) = rewarded.glob("runs/small/best_of_n/seed*")
    other = save_classifier(tmp_path / "judge", BASE, seed=2)
    evaluate = ("evaluate", folder, "-p", small_suite(), "--judge", "reward_model", "--judge-set")
    same = command(*evaluate, f"model={classifier}")
    assert same.code != 0 and "have the same weights" in same.err, same.text
    done = command(*evaluate, f"model={other}")
    assert done.code == 0, done.text
    (again,) = set(rewarded.glob("runs/small/best_of_n/seed*")) - {folder}
    before, after = read_result(folder), read_result(again)
    assert after["ground"]["judge"].startswith("reward_model/")
    assert after["cost"]["method"] == before["cost"]["method"]
    assert after["cost"]["judge"]["requests"] == 2 * after["evaluation"]["prompts"]
    plain = SequenceScorer(other).score(*zip(*texts_of(again), strict=True))
    golds = [row["gold"] for row in read_rows(again / "samples.jsonl")]
    assert golds == pytest.approx(plain.scores, abs=1e-5) and "win_rate" in after["evaluation"]


def texts_of(folder):
    return [(row["prompt"], row["answer"]) for row in read_rows(folder / "samples.jsonl")]


def test_show_names_the_option():
    option = "--reward-model PATH_OR_HUB_ID"
    assert option in command("show", "grpo").out
    for method in ("dpo", "rlaif", "rlvr"):
        assert option not in command("show", method).out
