"""A model is in memory only while it is needed: copies of the weights are counted in training and
in evaluation.
"""

import copy
import gc
import json
import weakref

import pytest
import torch

from harness.core.meter import resident_peak, start_peak_anew
from harness.models.flops import forward_cost
from harness.models.initial_checkpoint import InitialCheckpoint
from harness.models.loading import learning, size_of, unfilled
from harness.models.logprobs import completion_logp
from harness.training.reward_model import RewardModel
from harness.training.trainer import Role

from ..helpers.memory_counter import counted
from ..helpers.tools import command, fresh, on_small, only_run, plugin, with_shared_stages

# The negative control: SimPO that keeps a start checkpoint it has no use for.
HOARDER = '''
from dataclasses import dataclass

from harness import hookimpl
from harness_plugins.simpo import SimPO


@dataclass
class Hoarder(SimPO):
    """Holds what it does not need."""

    name = "hoarder"

    def train(self, lab):
        self.kept = lab.start.model
        return super().train(lab)


@hookimpl
def register_methods(register):
    register(Hoarder)
'''


@pytest.fixture(scope="module")
def folder():
    return with_shared_stages("counted")


@pytest.mark.parametrize(
    ("method", "more", "copies"),
    [
        pytest.param("simpo", (), 1, marks=pytest.mark.slow),
        # a short run computes what the reference says
        pytest.param("dpo", (), 2, marks=pytest.mark.slow),
        (
            "dpo",
            ("--set", "steps=8"),
            1,
        ),  # a longer one looks it up: a reference that nobody has to read
        pytest.param("raft", (), 2, marks=pytest.mark.slow),  # and the reward
        pytest.param("grpo", (), 3, marks=pytest.mark.slow),
        ("ppo", (), 4),  # and the critic
    ],
)
def test_no_copy_is_held_that_nothing_asks_for(folder, method, more, copies):
    found = counted(folder, method, *more)
    assert found[method][0] == copies
    assert found["answer"][0] == 1  # nothing but the policy: no moments either
    assert found["answer"][1] < 2
    assert (
        found["score"][0] == 2 and found["kl"][0] == 2
    )  # beside it the proxy; then the start checkpoint


def test_negative_control_a_copy_that_is_held_is_counted(folder):
    bare = counted(folder, "simpo", "--seed", 1)["simpo"]
    found = counted(folder, "hoarder", "-p", plugin(folder, "hoarder", HOARDER))["hoarder"]
    assert (bare[0], found[0]) == (1, 2)
    assert found[1] - bare[1] == pytest.approx(1, abs=0.2)  # weights of one trunk more


def test_what_a_policy_needs_to_answer_stays_with_it(folder):
    found = counted(folder, "best_of_n")
    assert (
        found["answer"][0] == 1
    )  # before the first answer: the start checkpoint, no reward model yet
    assert found["score"][0] == 3  # the policy is still there, with both; and the proxy


def test_making_what_is_reused_shows_how_far_it_is():
    folder = fresh("progress")
    done = command(*on_small("dpo", "--set", "steps=8", results=folder))
    assert (
        done.code == 0 and " reference     1/2" in done.err and " reference     2/2" in done.err
    ), done.text
    done = command(*on_small("grpo", results=folder))
    assert done.code == 0 and " sampling     1/" in done.err and " reference " not in done.err, (
        done.text
    )


# -- the start checkpoint --------------------------------------------------------------------------


class Disk:
    """Reads a copy of a model, and counts how often."""

    def __init__(self, model):
        self.model, self.reads, self.probes = model, 0, 0

    def read(self):
        self.reads += 1
        return copy.deepcopy(self.model)

    def probe(self, model):
        self.probes += 1
        model.base_model.share_prompt = "found out"


@pytest.fixture
def disk(tiny_model):
    return Disk(copy.deepcopy(tiny_model))


@pytest.fixture
def start(disk):
    return InitialCheckpoint(disk.read, disk.probe)


def test_it_is_read_when_asked_for_and_freed_when_nobody_holds_it(start, disk):
    assert disk.reads == 0
    held = start.model()
    assert start.model() is held and start.is_(held) and disk.reads == 1
    assert not any(p.requires_grad for p in held.parameters())
    gone = weakref.ref(held)
    del held
    assert gone() is None and not start.is_(disk.model)
    assert start.model() is not None and disk.reads == 2


def test_copy_is_read_straight_into_the_callers_own_model(start, disk):
    own = start.copy()
    assert disk.reads == 1 and not start.is_(own)
    held = start.model()
    copied = start.copy()
    assert disk.reads == 2 and copied is not held
    learning(copied).lm_head.weight.data.zero_()
    assert start.equals(held) and start.equals(own) and not start.equals(copied)
    assert len({m.lm_head.weight.data_ptr() for m in (own, held, copied)}) == 3


def test_what_was_found_by_trying_is_known_of_every_later_one(start, disk):
    models = [start.model(), start.copy()]
    del models[0]
    models.append(start.model())
    assert disk.reads == 2 and disk.probes == 1
    assert [m.base_model.share_prompt for m in models] == ["found out"] * 2
    assert trunk(start.outline).share_prompt == trunk(start.scalar()).share_prompt == "found out"


def trunk(model):
    return getattr(model, "trunk", None) or model.base_model


def test_weights_are_compared_without_keeping_them(start, disk):
    own = start.copy()

    def alive():
        gc.collect()
        return sum(isinstance(held, type(own)) for held in gc.get_objects())

    before = alive()  # other tests' models among them
    assert (
        start.equals(own) and start.equals(own) and disk.reads == 2
    )  # the second for the comparison, once
    with torch.no_grad():
        own.lm_head.weight[0, 0] += 1e-4
    assert not start.equals(own) and disk.reads == 2
    assert alive() == before


def test_outline_tells_size_and_cost_and_holds_nothing(start, disk, gpt2_model):
    for model in (disk.model, gpt2_model):  # GPT-2: head and embedding are one tensor
        outline = InitialCheckpoint(lambda model=model: copy.deepcopy(model)).outline
        assert all(p.device.type == "meta" for p in outline.parameters())
        assert size_of(outline) == size_of(model) and forward_cost(outline) == forward_cost(model)
        assert [n for n, _ in outline.named_parameters()] == [
            n for n, _ in model.named_parameters()
        ]


def test_model_unfilled_and_filled_again_gives_the_same_numbers(
    gpt2_model, tiny_model, tokens, make_batch
):
    for model in (gpt2_model, tiny_model):  # buffers that are in no file stay
        again = unfilled(unfilled(model, torch.device("meta")), torch.device("cpu"))
        again.load_state_dict(model.state_dict())
        batch = make_batch(tokens)
        assert torch.equal(completion_logp(again, batch), completion_logp(model, batch))


def test_reward_model_is_loaded_beside_no_start_checkpoint(
    start, disk, tmp_path, scalar_model, tokens, make_batch
):
    RewardModel(scalar_model, "last").save(tmp_path)
    assert start.outline is not None and disk.reads == 1
    again = RewardModel.load(tmp_path, start)
    assert disk.reads == 1
    batch = make_batch(tokens)
    here = Role("reward", scalar_model, RewardModel(scalar_model, "last").role.compute)
    again.model.trunk.share_prompt = False
    assert torch.equal(again.role.compute(batch), here.compute(batch))


def test_system_that_resets_no_peak_is_told():
    folder, stubborn = (
        with_shared_stages("no_peak"),
        "from harness.experiments import record\n\nrecord.start_peak_anew = lambda: False\n"
        "def register_methods(register):\n    pass\n",
    )
    done = command(*on_small("dpo", "-p", plugin(folder, "stubborn", stubborn), results=folder))
    assert (
        done.code == 0
        and "Peak memory is that of the whole process, not of each phase" in done.text
    )
    runtime = json.loads((only_run(folder, "small", "dpo") / "result.json").read_text())["runtime"]
    assert runtime["peak_memory_by_phase"] is False


def test_peak_starts_anew_where_the_system_lets_it():
    assert start_peak_anew()
    held = torch.ones(64 * 2**20 // 4)
    high = resident_peak(reset=False)
    del held
    resident_peak(reset=True)
    assert resident_peak(reset=False) < high - 32 * 2**20
