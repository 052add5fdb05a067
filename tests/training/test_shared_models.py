"""A method that changes what other methods use is refused; nothing made from it is published."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from harness.models.initial_checkpoint import InitialCheckpoint
from harness.training.inputs import MethodInputs
from harness.training.shared_models import SharedModelChanged, SharedModels

from ..helpers.tools import command, finished, fresh, on_small, outputs, plugin, results

POISON = '''
"""Methods that change what is shared."""

from dataclasses import dataclass

from harness import hookimpl, torch
from harness_plugins.dpo import DPO
from harness_plugins.grpo import GRPO
from harness_plugins.ppo import PPO


def halve(model):
    model.get_input_embeddings().weight.data.mul_(0.5)


@dataclass
class PoisonReference(DPO):
    """Halves the reference before it is asked."""

    name = "poison_reference"

    def train(self, lab):
        halve(lab.reference.model)
        return super().train(lab)


@dataclass
class PoisonStart(GRPO):
    """Halves the start checkpoint before samples are drawn from the policy."""

    name = "poison_start"

    def train(self, lab):
        halve(lab.start.model)
        return super().train(lab)


@dataclass
class Average(DPO):
    """Moves the reference in place each turn, as a moving average would."""

    name = "average"

    def train(self, lab):
        for batch in lab.pairs(steps=3):
            batch = batch.with_columns(ref_logp=lab.reference.logp(batch))
            lab.step(self.loss, batch)
            with torch.no_grad():
                lab.reference.model.get_input_embeddings().weight.lerp_(
                    lab.policy.model.get_input_embeddings().weight, 0.5
                )
        return lab.policy


@dataclass
class PoisonReward(PPO):
    """Doubles the reward model's scores at the end."""

    name = "poison_reward"

    def train(self, lab):
        policy = super().train(lab)
        lab._scoring.models()[0].model.head.weight.data.mul_(2.0)
        return policy


@hookimpl
def register_methods(register):
    for method in (PoisonReference, PoisonStart, Average, PoisonReward):
        register(method)
'''
CASES = (
    ("poison_reference", "start checkpoint, which is the reference,", "reference_logp"),
    ("poison_start", "start checkpoint, which is the reference,", "pool"),
    ("average", "start checkpoint, which is the reference,", ""),
    ("poison_reward", "reward model", "policy"),
)


@pytest.fixture(scope="module")
def folder():
    """Results of a clean run, without what is made from the start checkpoint while training."""
    finished("ppo")
    made = fresh("poisoned")
    kinds = ("sft-*", "preferences-*", "reward_model-*", "baseline_answers-*")
    for kind in kinds:
        for one in (results() / "artifacts").glob(kind):
            shutil.copytree(one, made / "artifacts" / one.name)
    return made


@pytest.mark.parametrize(("method", "model", "kind"), CASES)
def test_run_refuses_a_method_that_changes_a_shared_model(folder, method, model, kind):
    more = ("-p", plugin(folder, "poison", POISON), "--checkpoint-every", "off")
    done = command(*on_small(method, *more, results=folder))
    assert done.code == 1 and f"The method {method} changed the {model} in place" in done.err
    assert "lab.move_reference()" in done.err and "Traceback" not in done.text
    assert not kind or not list((folder / "artifacts").glob(f"{kind}-*"))
    (failed,) = (folder / "runs" / "small" / method).glob("*/failure.json")
    assert json.loads(failed.read_text())["status"] == "failed"


def test_run_after_a_refused_method_equals_a_run_in_a_clean_folder(folder):
    more = ("-p", plugin(folder, "poison", POISON))
    assert command(*on_small("poison_reference", *more, results=folder)).code == 1
    assert command(*on_small("dpo", results=folder)).code == 0
    (run,) = (folder / "runs" / "small" / "dpo").glob("*")
    assert outputs(run) == outputs(finished("dpo"))


@pytest.mark.slow
def test_check_names_a_method_that_changes_the_reference(folder):
    done = command("check", "average", "-p", plugin(folder, "poison", POISON))
    assert done.code == 1 and "changed the start checkpoint" in done.text, done.text


def test_shared_models_find_changes_of_the_tokenizer(tiny_model, tokens):
    start = InitialCheckpoint.of(tiny_model)
    other = copy.copy(tokens)
    other.tokenizer = copy.deepcopy(tokens.tokenizer)
    shared = SharedModels("mine", MethodInputs(start, other))
    shared.check()
    other.tokenizer.padding_side = {"left": "right", "right": "left"}[other.tokenizer.padding_side]
    with pytest.raises(SharedModelChanged, match="The method mine changed the tokenizer in place"):
        shared.check()


def test_shared_models_read_a_tokenizer_that_cannot_encode_every_text(tiny_model, tokens):
    other = copy.copy(tokens)
    other.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1})), eos_token="b"
    )
    shared = SharedModels("mine", MethodInputs(InitialCheckpoint.of(tiny_model), other))
    shared.check()
    other.tokenizer.add_tokens(["c"])
    with pytest.raises(SharedModelChanged):
        shared.check()


def test_shared_models_name_a_reference_of_its_own(tiny_model, tokens):
    other = SimpleNamespace(touched=lambda: "w", changed=lambda: "")
    inputs = MethodInputs(InitialCheckpoint.of(tiny_model), tokens)
    inputs.reference = other
    with pytest.raises(SharedModelChanged, match="changed the reference in place: the weight w"):
        SharedModels("mine", inputs).check_written()
