"""RLAIF: options that reach an optimiser or are refused, labels of no person, revisions, and kills
in between.
"""

import json
import signal
from dataclasses import fields

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.ppo import PPO
from harness_plugins.rlaif import OPTIMISERS, OWN, RLAIF, defaults

from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.options import build, options_of

from ..helpers.registries import sampled
from ..helpers.tools import command, fresh, on_small, outputs, results
from ..helpers.watched_runs import Watched

# -- options ---------------------------------------------------------------------------------------


def rlaif(**options):
    return build(RLAIF, options, "method rlaif")


def test_every_option_of_either_optimiser_can_be_set():
    of_both = {f.name for cls in OPTIMISERS.values() for f in fields(cls)}
    assert {f.name for f in fields(RLAIF)} == of_both | OWN
    hints = {name: option.type for name, option in options_of(RLAIF).items()}
    for cls in OPTIMISERS.values():
        for name, option in options_of(cls).items():
            assert hints[name] in (option.type, f"{option.type} | None"), name
    assert all(option.help for option in options_of(RLAIF).values())


@pytest.mark.parametrize(("optimiser", "cls"), [("ppo", PPO), ("dpo", DPO)])
def test_by_default_the_optimiser_is_as_it_is(optimiser, cls):
    assert rlaif(optimiser=optimiser).inner() == cls()
    assert vars(rlaif(optimiser=optimiser).inner()) == defaults(cls)


def test_options_arrive_at_the_optimiser():
    ppo = rlaif(
        beta=0.7, num_generations=3, gae_lambda=0.5, length_penalty=0.1, learning_rate=0.1
    ).inner()
    assert (ppo.beta, ppo.num_generations, ppo.gae_lambda, ppo.length_penalty) == (0.7, 3, 0.5, 0.1)
    dpo = rlaif(
        optimiser="dpo", beta=0.7, steps=9, label_smoothing=0.1, robust=True, batch_size=5
    ).inner()
    assert dpo == DPO(beta=0.7, steps=9, label_smoothing=0.1, robust=True, batch_size=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "dpo", "num_ppo_epochs": 2}, "num_ppo_epochs is no option of dpo"),
        ({"optimiser": "dpo", "length_penalty": 0.1}, "length_penalty is no option of dpo"),
        ({"optimiser": "dpo", "reward_refresh": 2}, "reward_refresh is no option of dpo"),
        (
            {"optimiser": "dpo", "missing_eos_penalty": 1.0},
            "missing_eos_penalty is no option of dpo",
        ),
        ({"optimiser": "dpo", "adaptive_beta": True}, "adaptive_beta is no option of dpo"),
        ({"label_smoothing": 0.1}, "label_smoothing is no option of ppo"),
        ({"epochs": 2.0}, "epochs is no option"),
        ({"optimiser": "sgd"}, "ppo or dpo"),
        ({"reward": "verifier"}, "use rlvr"),
        ({"revision_rounds": 2}, "no meaning without"),
        ({"revision_steps": -1}, "negative"),
        ({"gae_lambda": 2.0}, "gae_lambda lies"),
        ({"optimiser": "dpo", "robust": True}, "label_smoothing"),
        ({"optimiser": "dpo", "beta": 0.0}, "beta must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_what_does_not_apply_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        rlaif(**options)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_spec_says_what_was_run_and_can_be_built_again(optimiser):
    spec = resolve(Request("rlaif", "summarization", (f"optimiser={optimiser}",)), installed())
    method = participants(spec, installed()).method
    assert {f.name: getattr(method, f.name) for f in fields(method)} == dict(spec.options)
    assert spec.options["beta"] is not None and spec.labeller_options["error_rate"] == 0.1


def test_what_it_needs_follows_its_options():
    assert rlaif(optimiser="dpo").required() == {"pairs"}
    assert rlaif().required() == {"prompts", "reward"}
    assert rlaif(reward_refresh=2).required() == {"prompts", "reward", "labels"}
    assert rlaif(optimiser="dpo", revision_steps=1).required() == {"pairs", "prompts", "labels"}
    assert rlaif(annotator="lm").labeller() == "lm"


def test_soft_labels_are_consumed_as_they_are():
    method = rlaif(optimiser="dpo", beta=0.5).inner()
    logp = torch.tensor([[[0.4], [-0.2]], [[0.1], [0.3]]])
    batch = {"ref_logp": torch.zeros(2, 2, 1), "p": torch.tensor([0.75, 1.0])}
    h = 0.5 * torch.tensor([0.6, -0.2])
    kept, turned = torch.nn.functional.softplus(-h), torch.nn.functional.softplus(h)
    expected = torch.stack([0.75 * kept[0] + 0.25 * turned[0], kept[1]])
    assert torch.allclose(method.loss(logp, batch)[0], expected)
    hard = {**batch, "p": torch.ones(2)}  # the negative control
    assert not torch.allclose(method.loss(logp, hard)[0], expected)


# -- runs ------------------------------------------------------------------------------------------

RUNS = {
    "ppo": ("--set", "steps=3", "--set", "batch_size=8", "--set", "revision_steps=2"),
    "dpo": (
        "--set",
        "optimiser=dpo",
        "--set",
        "steps=4",
        "--set",
        "batch_size=8",
        "--set",
        "revision_steps=2",
    ),
}


@pytest.fixture(scope="module")
def runs():
    """{optimiser: folder} of whole runs."""
    found = {}
    for optimiser, more in RUNS.items():
        before = set((results() / "runs" / "small" / "rlaif").glob("*"))
        done = command(*on_small("rlaif", *more, results=results()))
        assert done.code == 0, done.text
        (found[optimiser],) = set((results() / "runs" / "small" / "rlaif").glob("*")) - before
    return found


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_no_human_label_is_billed(runs):
    for folder in runs.values():
        cost = result_of(folder)["cost"]
        assert cost["labels"] == 0 and cost["ai_labels"] > 100
        assert (
            cost["shared"]["ai_preferences"]["ai_labels"] > 100
            and cost["method"]["ai_labels"] == 2 * 8
        )
        assert "preferences" not in cost["shared"]  # those of people are the evaluator's business
    models = {
        optimiser: set(result_of(folder)["cost"]["models"]) for optimiser, folder in runs.items()
    }
    assert models["dpo"] == {"policy", "reference"} and "ai_reward" in models["ppo"]


def test_record_tells_of_the_annotator(runs):
    told = result_of(runs["ppo"])["artifacts"]["ai_preferences"]
    assert told["labeller"] == "constitution" and 0.5 < told["position_consistency"] <= 1.0
    assert told["asked"] >= told["labels"] and "disagreements" in told
    assert result_of(runs["ppo"])["artifacts"]["preferences"]["labeller"] == "bradley_terry"


def test_each_opinion_is_kept_with_its_principle_and_both_answers(runs):
    import pyarrow.parquet as pq

    file, *_ = (results() / "artifacts").glob("ai_preferences*/pairs.parquet")
    rows = pq.read_table(file).to_pylist()
    notes = [json.loads(row["note"]) for row in rows]
    assert {note["principle"] for note in notes} == {
        "important",
        "true",
        "once",
        "relevant",
        "short",
    }
    for row, note in zip(rows, notes, strict=True):
        one, two = note["answers"]
        assert (
            max((one + 1 - two) / 2, (two + 1 - one) / 2) == row["p"] and len(note["judge"]) == 16
        )
    assert {row["p"] for row in rows} <= {0.75, 1.0} and len({note["judge"] for note in notes}) == 1


def test_revisions_are_learned_and_the_reference_moves(runs):
    for optimiser, folder in runs.items():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert ["revised" in row for row in rows] == [True, True] + [False] * (len(rows) - 2)
        assert 0 < rows[0]["revised"] + rows[1]["revised"] < 2
        if optimiser == "dpo":  # the policy is the reference again: the loss of DPO begins at log 2
            assert rows[2]["loss"] == pytest.approx(0.6931, abs=1e-3)
        else:
            assert rows[2]["kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("optimiser", sampled(RUNS, of=("dpo",)))
def test_killed_in_the_middle_it_ends_in_the_same_bytes(runs, optimiser):
    watched, more = Watched(), RUNS[optimiser]
    done, seen = watched.run("rlaif", "rlaif 2", *more)
    assert done.code == -signal.SIGKILL and seen["rlaif"] == [1, 2]
    done, seen = watched.run(
        "rlaif", "rlaif 3", *more
    )  # in the second stream: the reference had been moved
    assert done.code == -signal.SIGKILL and seen["rlaif"] == [2, 1, 2]
    assert watched.rest("rlaif", *more).code == 0
    (folder,) = (watched.folder / "runs" / "small" / "rlaif").iterdir()
    assert outputs(folder) == outputs(runs[optimiser])
    assert result_of(folder)["cost"]["ai_labels"] == result_of(runs[optimiser])["cost"]["ai_labels"]


def test_options_of_the_annotator_decide_what_is_learned(runs):
    where = fresh("other")
    for i, more in enumerate(((), ("--labeller-set", "error_rate=0.4"))):
        done = command(*on_small("rlaif", *RUNS["dpo"][:-2], *more, results=where))
        assert done.code == 0, done.text
        assert len(list((where / "artifacts").glob("ai_preferences*"))) == i + 1
        assert len(list((where / "artifacts").glob("preferences*"))) == 1


def test_suite_without_principles_is_refused(tmp_path):
    where = fresh("bare")
    from ..helpers.tools import plugin, small_suite

    source = small_suite().read_text().replace('"small"', '"bare"')
    source = source.replace(
        "    def prompts(", "    def principles(self):\n        return []\n\n    def prompts("
    )
    bare = plugin(tmp_path, "bare", source)
    done = command(
        "run", "-m", "rlaif", "-s", "bare", "--quick", "-p", bare, "--results", where, *RUNS["dpo"]
    )
    assert done.code == 2 and "has no principles" in done.err
