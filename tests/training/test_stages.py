"""The stages at work on the embedded suite, small: normalised rewards, ensembles, what is reused
and what is not.
"""

import json

import pytest
import torch

from harness.api.participants import participants
from harness.api.registry import installed
from harness.api.resolve import Request, resolve
from harness.core.errors import UsageError
from harness.core.meter import Meter
from harness.experiments.observers import Observers
from harness.experiments.prepare import RunOptions, open_stage_runtime, open_stages
from harness.models.loading import load_tensors
from harness.training.reward_model import RewardModel
from harness.training.stages.preferences import read_pairs, read_rankings
from harness.training.stages.reward_modelling import check_labels
from harness.training.stages.stages import Stages

SMALL = {
    "sft.steps": 12,
    "preferences.prompts": 60,
    "reward_model.epochs": 1,
    "evaluation.prompts": 16,
}


ASKED = tuple(f"{name}={value}" for name, value in SMALL.items())


def stages_of(folder, more=None, suite_settings=(), **fixed):
    asked = tuple(f"{name}={value}" for name, value in {**SMALL, **(more or {})}.items())
    request = Request("start", "summarization", (), suite_settings, asked, fixed=fixed)
    spec = resolve(request, installed())
    settings = RunOptions(folder, warn=lambda message: None, say=lambda message: None)
    stage_runtime = open_stage_runtime(
        spec, installed(), settings, Observers(installed(), spec, settings.warn)
    )
    return open_stages(spec, participants(spec, installed()), stage_runtime)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def stages(folder):
    return stages_of(folder)


def demonstrations(stages):
    demos = stages.suite.demonstrations("validation")
    ids = [[stages.tokens.completion_ids(d.prompt.text, d.completion)] for d in demos]
    return stages.tokens.batch([d.prompt for d in demos], ids)


def test_demonstrations_score_zero_and_samples_spread_by_one(stages):
    reward = stages.load_reward(stages.reward_artifact(0))
    meter = Meter()
    runtime = stages.stage_runtime.runtime(meter, 0)
    with meter.phase("score"):
        assert reward.score(demonstrations(stages), runtime).mean().abs() < 1e-4
        rows = read_rankings(stages.preferences.folder)["train"]
        from harness.training.stages.reward_modelling import _batch

        assert reward.score(_batch(stages, rows), runtime).double().std() == pytest.approx(
            1.0, abs=1e-4
        )
        reward.mean += 1.0  # negative control: a shifted model is seen
        assert reward.score(demonstrations(stages), runtime).mean().abs() > 0.01
    assert meter.phases["score"].reward_queries > 0 and "reward" in meter.models


def test_members_of_an_ensemble_differ_and_are_each_normalised(stages):
    meter = Meter()
    runtime = stages.stage_runtime.runtime(meter, 0)
    batch = demonstrations(stages)
    with meter.phase("score"):
        one, two = (
            stages.load_reward(stages.reward_artifact(m)).score(batch, runtime) for m in (0, 1)
        )
    assert not torch.allclose(one, two) and two.mean().abs() < 1e-4
    assert set(meter.models) == {"reward", "reward2"}


def test_preferences_are_datasets_in_the_ecosystems_columns(stages):
    from datasets import Dataset

    pairs = Dataset.from_parquet(str(stages.preferences.folder / "pairs.parquet"))
    assert {"prompt", "chosen", "rejected"} <= set(pairs.column_names) and len(
        pairs
    ) == stages.preferences.info["labels"]
    for pair in read_pairs(stages.preferences.folder)[:20]:
        assert (
            pair.prompt.id.startswith("preferences/")
            and pair.chosen != pair.rejected
            and pair.p == 1.0
        )
    assert 0.7 < stages.preferences.info["label_ceiling"] <= 1


def test_same_spec_reuses_and_any_change_rebuilds(folder, stages):
    first = (stages.start_artifact, stages.preferences, stages.reward_artifact(0))
    again = stages_of(folder)
    for made, found in zip(
        first, (again.start_artifact, again.preferences, again.reward_artifact(0)), strict=True
    ):
        assert found.reused and found.folder == made.folder and found.content == made.content
    assert stages_of(folder, {"sft.steps": 13}).start_artifact.folder != first[0].folder
    assert stages_of(folder, shared_seed=1).start_artifact.folder != first[0].folder
    assert (
        stages_of(folder, {"reward_model.pooling": "mean"}).reward_artifact(0).folder
        != first[2].folder
    )
    biased = stages_of(folder, suite_settings=("labeller_bias=0.12",))
    assert (
        biased.start_artifact.folder == first[0].folder
        and biased.preferences.folder != first[1].folder
    )


def test_execution_settings_are_in_the_manifest_and_in_no_name(folder, stages):
    made = stages.start_artifact
    (recorded,) = json.loads((made.folder / "manifest.json").read_text())["execution"]
    settings = {"device": "cpu", "threads": 1, "processes": 1, "micro_batch_tokens": 16384}
    assert settings.items() <= recorded.items() and recorded["hardware"]
    assert made.execution == [recorded] and made.pin()["content"] == made.content
    other = stages_of(folder, micro_batch_tokens=700, threads=2)
    assert other.stage_runtime.micro_batch_tokens == 700
    found = (other.start_artifact, other.preferences, other.reward_artifact(0))
    assert all(artifact.reused for artifact in found) and found[0].folder == made.folder
    assert found[0].execution == [recorded]  # of what made it, not of what found it
    torch.set_num_threads(1)


def test_smaller_micro_batches_make_the_same_artifact_up_to_rounding(folder, stages, tmp_path):
    other = stages_of(tmp_path, micro_batch_tokens=700)
    assert other.start_artifact.folder.name == stages.start_artifact.folder.name
    (recorded,) = other.start_artifact.execution
    assert recorded["micro_batch_tokens"] == 700
    weights = [load_tensors(s.start_artifact.folder / "model.safetensors") for s in (stages, other)]
    gap = max(float((a - weights[1][name]).abs().max()) for name, a in weights[0].items())
    assert 0 < gap < 1e-2


@pytest.mark.parametrize(
    ("change", "named_alike"),
    [
        ({"device": "cpu"}, True),
        ({"threads": 3}, True),
        ({"processes": 4}, True),
        ({"micro_batch_tokens": 64}, True),
        ({"dtype": "bfloat16"}, False),
        ({"prompt_sharing": False}, False),  # it decides the counted FLOPs
    ],
)
def test_names_hold_what_decides_results_only(stages, change, named_alike):
    spec = resolve(
        Request("start", "summarization", stage_settings=ASKED, fixed=change), installed()
    )
    for name in ("fingerprint", "training_fingerprint", "recipe"):
        assert (getattr(spec, name)() == getattr(stages.spec, name)()) is named_alike
    other = Stages(spec, participants(spec, installed()), stages.stage_runtime)
    assert (other._inputs("sft", None) == stages._inputs("sft", None)) is named_alike


def test_ceiling_is_of_the_pairs_that_are_counted():
    from harness.core.data import Comparison
    from harness.training.stages.preferences import _agreements

    said = [
        Comparison(0, 1, 1.0),
        Comparison(0, 2, 0.0),
        Comparison(1, 2, 1.0),
        Comparison(0, 3, 0.5),
    ]
    assert _agreements(said, [2.0, 1.0, 1.0, 0.0]) == [1.0, 0.0, 0.5]


def test_artifacts_hold_no_pickle_and_a_manifest_of_what_made_them(stages):
    for artifact in (stages.start_artifact, stages.preferences, stages.reward_artifact(0)):
        files = [f.name for f in artifact.folder.rglob("*") if f.is_file()]
        assert all(f.endswith((".json", ".safetensors", ".parquet")) for f in files)
        manifest = json.loads((artifact.folder / "manifest.json").read_text())
        assert {"code", "base", "options", "shared_seed"} <= set(manifest["inputs"]) and manifest[
            "cost"
        ]["phases"]


def test_reward_model_comes_back_as_it_was_saved(stages, tmp_path):
    reward = stages.load_reward(stages.reward_artifact(0))
    reward.save(tmp_path)
    again = RewardModel.load(tmp_path, stages.checkpoint)
    meter = Meter()
    runtime = stages.stage_runtime.runtime(meter, 0)
    with meter.phase("score"):
        assert torch.equal(
            reward.score(demonstrations(stages), runtime),
            again.score(demonstrations(stages), runtime),
        )


@pytest.mark.parametrize("label", [1.0, 0.0])
def test_labelled_answers_of_one_kind_train_no_reward_model(label):
    rows = [{"label": label}] * 3
    with pytest.raises(UsageError, match="judge: all 3 labelled answers .* are (un)?desirable"):
        check_labels("judge", rows)
    check_labels("judge", [*rows, {"label": 1 - label}])
    check_labels("judge", [{"comparisons": []}])  # pairs have no label
