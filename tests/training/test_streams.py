"""What a method sees of the lab's streams: positions that go on, `break`, restarts, state, and what
is refused.
"""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch

from harness.core.data import Budget, Demonstration, LabelledCompletion, LabelledPair
from harness.core.meter import Meter
from harness.core.save_schedule import SaveInterval
from harness.models.initial_checkpoint import InitialCheckpoint
from harness.training.checkpoints import Checkpoints
from harness.training.lab import Lab, MethodInputs
from harness.training.loop import Loop
from harness.training.trainer import Trainer

from ..helpers.plain_method import Killed, Plain


@pytest.fixture
def make_lab(tiny_model, tokens, make_prompts, accelerator, runtime, meter, tmp_path):
    """The factory of labs over one checkpoint folder: `make_lab(die=3)` is killed in the third turn
    logged.
    """

    def make(die=0, folder="checkpoint", **options):
        trainer = Trainer(Plain(**options), accelerator, meter, 64)

        def on_step(turn, total, row):
            if row["step"] == die:
                raise Killed

        loop = Loop(trainer, Checkpoints(tmp_path / folder, SaveInterval(0.0)), meter, on_step)
        prompts = make_prompts([3, 1, 4, 2, 5, 3, 2])
        pairs = [
            LabelledPair(p, [10 + i, 2], [30 + i, 40, 2], 1.0 - 0.05 * i)
            for i, p in enumerate(prompts)
        ]
        demos = [Demonstration(p, f"w{i} w{i + 1}") for i, p in enumerate(prompts)]
        start = copy.deepcopy(tiny_model)
        return (
            Lab(
                Plain(**options),
                MethodInputs(InitialCheckpoint.of(start), tokens, prompts, pairs, demos),
                runtime(temperature=0.7),
                loop,
            ),
            loop,
        )

    return make


def ids(prompts):
    return [p.id for p in prompts.prompts]


def nll(logp, batch):
    return -logp


def test_second_stream_goes_on_where_the_first_ended(make_lab):
    lab, _ = make_lab()
    rounds = [[ids(prompts) for prompts in lab.prompts(2)] for _ in range(2)]
    whole = [ids(prompts) for prompts in make_lab(folder="other")[0].prompts(4)]
    assert rounds[0] + rounds[1] == whole and rounds[0] != rounds[1]
    assert (
        len(set(sum(whole, []))) == 7
    )  # 8 drawn, 7 there are: an epoch goes by before any comes again


def test_streams_of_two_kinds_do_not_share_positions(make_lab):
    lab, _ = make_lab()
    list(lab.pairs(steps=3))
    assert [ids(p) for p in lab.prompts(2)] == [
        ids(p) for p in make_lab(folder="other")[0].prompts(2)
    ]


def rounds_with_break(lab, seen):
    """Two streams, the first left by break in its third turn; a step in each turn."""
    for n, stop in ((6, 3), (3, 9)):
        for prompts in lab.prompts(n):
            seen.append(ids(prompts))
            lab.step(nll, lab.rollout(prompts, 2))
            if lab.turn + 1 == stop:
                break
    lab._loop.finish()
    return torch.nn.utils.parameters_to_vector(lab.policy.model.parameters()).detach()


@pytest.mark.parametrize("die", [1, 2, 4, 5])
def test_stream_left_by_break_is_not_gone_into_again(make_lab, die, tmp_path):
    seen = []
    lab, loop = make_lab()
    weights = rounds_with_break(lab, seen)
    assert len(loop.rows) == 6 and len(seen) == 6
    again = []
    assert (
        torch.equal(rounds_with_break(make_lab()[0], again), weights) and not again
    )  # finished: nothing is repeated
    shutil.rmtree(tmp_path / "checkpoint")
    cut = []
    with pytest.raises(Killed):
        rounds_with_break(make_lab(die=die)[0], cut)
    rest = []
    assert torch.equal(rounds_with_break(make_lab()[0], rest), weights)
    assert seen[len(seen) - len(rest) :] == rest and len(rest) in (6 - die, 7 - die)


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_drawn_between_streams_is_drawn_again_after_a_restart(make_lab, leave):
    def between(lab):
        for prompts in lab.prompts(3):
            lab.step(nll, lab.rollout(prompts))
            if leave and lab.turn == 1:
                break
        drawn = lab.generator("between").initial_seed()
        for prompts in lab.prompts(2):
            lab.step(nll, lab.rollout(prompts))
        return drawn

    whole = between(make_lab(folder="whole")[0])
    with pytest.raises(Killed):
        between(make_lab(die=4 - leave)[0])  # in the second stream
    lab, loop = make_lab()
    assert len(loop.rows) == 3 - leave and between(lab) == whole


def test_turn_that_raises_is_not_done(make_lab):
    lab, _ = make_lab()
    seen = []
    with pytest.raises(RuntimeError, match="mine"):
        for prompts in lab.prompts(3):
            seen.append(ids(prompts))
            if len(seen) == 2:
                raise RuntimeError("mine")
    again = [ids(prompts) for prompts in make_lab()[0].prompts(3)]
    assert again[0] == seen[1] and len(again) == 2


def refilling(lab, seen):
    """Two further prompts in the first two of four turns; return the final weights."""
    for prompts in lab.prompts(4):
        drawn = [prompts] + ([lab.further_prompts(2)] if lab.turn < 2 else [])
        seen.append([name for part in drawn for name in ids(part)])
        for part in drawn:
            lab.step(nll, lab.rollout(part))
    return torch.nn.utils.parameters_to_vector(lab.policy.model.parameters()).detach()


def test_further_prompts_are_the_next_and_later_turns_begin_after_them(make_lab):
    seen = []
    refilling(make_lab()[0], seen)
    whole = [ids(prompts) for prompts in make_lab(folder="other")[0].prompts(6)]
    assert sum(seen, []) == sum(whole, []) and [len(turn) for turn in seen] == [4, 4, 2, 2]
    lab, _ = make_lab(folder="third")
    refilling(lab, [])
    assert [ids(prompts) for prompts in lab.prompts(1)] != whole[4:5]  # after all twelve


@pytest.mark.parametrize("die", [1, 2, 3])
def test_further_prompts_are_the_same_after_a_restart(make_lab, die):
    seen, rest = [], []
    whole = refilling(make_lab(folder="whole")[0], seen)
    with pytest.raises(Killed):
        refilling(make_lab(die=die)[0], [])
    assert torch.equal(refilling(make_lab()[0], rest), whole)
    assert seen[len(seen) - len(rest) :] == rest and rest


def test_further_prompts_belong_into_a_stream_of_prompts(make_lab):
    lab, _ = make_lab()
    for _ in lab.pairs(steps=1):
        with pytest.raises(ValueError, match="belongs into a stream of prompts"):
            lab.further_prompts(1)
    with pytest.raises(ValueError, match="belongs into a stream of prompts"):
        lab.further_prompts(1)


def test_a_greedy_completion_is_the_most_probable_and_is_counted(make_lab, meter):
    lab, _ = make_lab()
    for prompts in lab.prompts(1):
        before = meter.total(("rollout",)).samples
        first, second = lab.greedy(prompts), lab.greedy(prompts)
        assert torch.equal(first["completion_ids"], second["completion_ids"])
        assert "logp" not in first and first.shape[:2] == (2, 1)
        assert meter.total(("rollout",)).samples == before + 4
        logp = lab.policy.logp(first)
        for _ in range(8):  # no sampled first token is more probable
            sampled = lab.rollout(prompts)
            assert (sampled["logp"][..., 0] <= logp[..., 0] + 1e-5).all()
    with pytest.raises(ValueError, match="belongs into a stream"):
        lab.greedy(prompts)


@pytest.mark.parametrize("what", ["step", "rollout"])
def test_what_a_restart_would_repeat_is_refused_outside_a_stream(make_lab, what):
    lab, _ = make_lab()
    for prompts in lab.prompts(1):
        batch = lab.rollout(prompts)
        lab.step(nll, batch)
    with pytest.raises(ValueError, match="belongs into a stream"):
        lab.step(nll, batch) if what == "step" else lab.rollout(prompts)


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {2: 1, 10: 1}}, {"a": {"b": {1: 0}}}])
def test_state_that_would_come_back_as_something_else_is_refused(make_lab, state):
    lab, _ = make_lab()
    with pytest.raises((ValueError, TypeError), match="JSON"):
        for _ in lab.prompts(2):
            lab.state.update(state)


def test_state_comes_back(make_lab):
    lab, loop = make_lab(die=2)
    with pytest.raises(Killed):
        for _ in lab.prompts(3):
            lab.state["n"] = lab.state.get("n", 0) + 1
            lab.state["list"] = [1, {"x": None}]
    assert make_lab()[0].state == {"n": 1, "list": [1, {"x": None}]}


def test_metrics_logged_after_the_last_turn_are_kept(make_lab):
    lab, loop = make_lab()
    for _ in lab.prompts(2):
        lab.log(a=1.0)
    lab.log(late=5.0)
    loop.finish()
    assert [row.get("late") for row in loop.rows] == [None, 5.0]


def test_pairs_have_the_temperature_of_sampling_and_the_labellers_doubt(make_lab):
    lab, _ = make_lab()
    (pairs,) = lab.pairs(steps=1)
    assert pairs.temperature == 0.7 and pairs.shape == (2, 2, 3)
    by_id = {f"p{i}": 1.0 - 0.05 * i for i in range(7)}
    assert pairs["p"].tolist() == pytest.approx([by_id[name] for name in ids(pairs.prompts)])
    assert pairs["completion_ids"][:, 0, 0].max() < 30 <= pairs["completion_ids"][:, 1, 0].min()


def test_shuffled_labels_turn_about_half_the_pairs_and_always_the_same(make_lab):
    def turned(folder):
        lab, _ = make_lab(batch_size=7, folder=folder)
        (pairs,) = lab.pairs(steps=1, shuffle_labels=True)
        return dict(
            zip(ids(pairs.prompts), (pairs["completion_ids"][:, 0, 0] >= 30).tolist(), strict=True)
        )

    one = turned("one")
    assert 0 < sum(one.values()) < 7 and turned("other") == one


def test_labelled_completions_are_those_of_the_pairs_each_on_its_own(make_lab):
    lab, _ = make_lab(batch_size=14)
    (batch,) = lab.labelled(steps=1)
    assert batch.shape == (14, 1, 3) and batch.temperature == 0.7
    chosen = batch["completion_ids"][:, 0, 0] < 30
    sure = torch.tensor(
        [1.0 - 0.05 * int(name[1:]) for name in ids(batch.prompts)]
    )  # the labeller's, of each pair
    torch.testing.assert_close(batch["label"], torch.where(chosen, sure, 1 - sure))
    assert chosen.sum() == 7


def test_labelled_completions_of_the_suite_are_taken_as_they_are(make_lab):
    lab, _ = make_lab(batch_size=7)
    inputs = lab._method_inputs
    inputs.labelled = [
        LabelledCompletion(pair.prompt, pair.chosen, float(i % 3 == 0))
        for i, pair in enumerate(inputs.pairs)
    ]
    (batch,) = lab.labelled(epochs=1)  # seven completions, each once
    numbers = [int(name[1:]) for name in ids(batch.prompts)]
    assert sorted(numbers) == list(range(7)) and batch.shape == (7, 1, 2)
    assert batch["label"].tolist() == [float(i % 3 == 0) for i in numbers]
    assert batch["completion_ids"][:, 0, 0].tolist() == [10 + i for i in numbers]


def test_coin_turns_the_labels_of_single_completions(make_lab):
    lab, _ = make_lab(batch_size=7)
    pairs = lab._method_inputs.pairs
    lab._method_inputs.labelled = [LabelledCompletion(p.prompt, p.chosen, 1.0) for p in pairs]
    (batch,) = lab.labelled(epochs=1, shuffle_labels=True)
    assert 0 < batch["label"].sum() < 7


def test_mismatched_rows_keep_the_prompt_and_take_the_next_completion(make_lab):
    lab, _ = make_lab(batch_size=5)
    (batch,) = lab.labelled(steps=1)
    other = batch.mismatched()
    assert ids(other.prompts) == ids(batch.prompts) and set(other) == {"completion_ids", "mask"}
    assert torch.equal(other["completion_ids"][:-1], batch["completion_ids"][1:])
    assert (
        torch.equal(other["mask"][-1], batch["mask"][0]) and other.temperature == batch.temperature
    )


def test_demonstrations_of_one_turn_differ(make_lab):
    lab, _ = make_lab()
    for _ in lab.prompts(1):
        one, two = lab.demonstrations(4), lab.demonstrations(4)
    assert ids(one.prompts) != ids(two.prompts) or not torch.equal(
        one["completion_ids"], two["completion_ids"]
    )


def test_a_pass_over_demonstrations_has_each_once_and_goes_on_in_the_next_stream(make_lab):
    lab, _ = make_lab()
    rounds = [[ids(b.prompts) for b in lab.demonstrated(steps=3, batch_size=2)] for _ in range(2)]
    names = [name for turn in rounds[0] + rounds[1] for name in turn]
    assert sorted(names[:7]) == sorted(
        ids(next(make_lab(folder="o")[0].pairs(batch_size=7)).prompts)
    )
    assert len(names) == 12 and len(set(names[7:])) == 5  # the second pass goes on
    lab, _ = make_lab(folder="epochs")
    turns = list(lab.demonstrated(epochs=2, batch_size=4))
    assert [len(b.prompts) for b in turns] == [4] * 4 and turns[0].shape[1] == 1
    assert turns[0].temperature == 0.7


def test_completions_beside_each_other_keep_their_columns(make_lab):
    lab, _ = make_lab()
    for prompts in lab.prompts(1):
        own = lab.rollout(prompts, 2)
        other = lab.rollout(prompts, 1, of=lab.reference).with_columns(
            mark=own["logp"][:, :1].sum(-1)
        )
        joined = own.beside(other)
        k, (b, _, t) = own.shape[1], own.shape
        assert joined.shape == (b, 3, max(t, other.shape[2])) and "mark" not in joined
        for part, width in ((own, slice(0, k)), (other, slice(k, 3))):
            for name in ("completion_ids", "mask", "logp"):
                got = joined[name][:, width, : part.shape[2]]
                assert torch.equal(got, part[name]), name
            assert torch.equal(joined["ended"][:, width], part["ended"])
        assert joined["mask"][:, k:, other.shape[2] :].sum() == 0
        first = joined.first(k)
        assert torch.equal(first["logp"][..., :t], own["logp"]) and first.shape[1] == k
        with pytest.raises(ValueError, match="same prompts"):
            own.beside(other.select(range(b)[::-1]))
        with pytest.raises(ValueError, match="one temperature"):
            own.beside(type(other)(other.prompts, other.columns, 1.0))


def test_samples_of_a_turn_name_the_models_that_drew_them(make_lab):
    lab, loop = make_lab()
    for prompts in lab.prompts(2):
        lab.rollout(prompts, 1, mixed_with=lab.reference, share=0.5)
        lab.rollout(prompts, 1, of=lab.reference)
        named = {row["model"] for row in loop.rollouts()}
        if lab.turn == 0:
            assert named == {"policy and start checkpoint", "start checkpoint"}
            lab.step(nll, lab.demonstrations(2))
            lab.move_reference()
        else:
            assert named == {"policy and reference", "reference"}


def moving(lab):
    """Move the reference every second turn; return its weights and what it gave to a batch in the
    last turn.
    """
    told = None
    for prompts in lab.prompts(5):
        batch = lab.rollout(prompts, 2)
        told = lab.reference.logp(batch).sum()
        lab.step(nll, batch)
        if lab.turn % 2:
            lab.move_reference()
    weights = lab.reference.model.state_dict()
    return {name: w.clone() for name, w in weights.items()}, told


@pytest.mark.parametrize("die", [2, 3, 5])
def test_moved_reference_survives_a_restart_and_the_start_stays(
    make_lab, die, tmp_path, tiny_model
):
    lab, _ = make_lab()
    whole, told = moving(lab)
    start = lab.start.model.state_dict()
    assert any(not torch.equal(w, start[name]) for name, w in whole.items())
    assert all(torch.equal(w, tiny_model.state_dict()[name]) for name, w in start.items())
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(Killed):
        moving(make_lab(die=die)[0])
    again, told_again = moving(make_lab()[0])
    assert all(torch.equal(again[name], w) for name, w in whole.items()) and torch.equal(
        told, told_again
    )


def test_pairs_trained_on_are_counted(make_lab, meter):
    lab, _ = make_lab()
    list(lab.pairs(steps=3))
    assert meter.phases["update"].pairs == 6


def test_budget_of_labels_ends_and_paces_only_streams_that_ask_for_some(tmp_path):
    def opened():
        trainer = SimpleNamespace(
            tensors=lambda: {"w": torch.zeros(1)}, saved={}, steps=0, modules={}, sharded=False
        )
        where = Checkpoints(tmp_path / "checkpoint", SaveInterval(3600.0))
        return Loop(trainer, where, Meter(), lambda *told: None, Budget(labels=100), labels=90)

    def walk(loop, labels):
        paces = []
        for _ in loop.turns(4):
            with loop.meter.phase("score"):
                loop.meter.add(labels=labels)
            paces.append(loop.progress)
        return paces

    loop = opened()
    assert (
        walk(loop, 4) == [0.4, 0.8, 1 - 1e-9] and loop.left()["labels"] == -2
    )  # 8, 12: checked before each turn
    assert walk(loop, 0) == [0, 0.25, 0.5, 0.75]  # asks for none, though none is left
    assert walk(loop, 1) == [1 - 1e-9]  # asks for one, and then no more
    assert loop.budget_share() >= 1

    killed = opened()
    for _ in killed.turns(4):
        with killed.meter.phase("score"):
            killed.meter.add(labels=12)
        killed.save()
        break
    resumed = opened()
    assert (
        resumed.used()["labels"] == 102 and list(resumed.turns(4)) == []
    )  # it began before they were asked for
