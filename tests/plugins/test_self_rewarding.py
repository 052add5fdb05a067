"""Self-rewarding: which samples are a pair, what is stepped on, and what a poor judge leads to."""

import json
from types import SimpleNamespace

import pytest
import torch
from harness_plugins.iterated.self_rewarding import PATIENCE, SelfRewarding
from harness_plugins.online_dpo import OnlineDPO

from harness.core.errors import UsageError

from ..helpers.equations import both, drawn
from ..helpers.exact_lab import ExactLab
from ..helpers.tools import command, fresh, on_small, only_run, with_shared_stages

NAN = float("nan")


def test_best_and_worst_grades_are_a_pair_and_equal_ones_are_none():
    grade = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, 2.0], [NAN, 4.0, 1.0], [NAN, 4.0, NAN]])
    best, worst, differ = SelfRewarding().best_and_worst(grade)
    assert differ.tolist() == [True, False, True, False]
    assert best[differ].tolist() == [1, 1] and worst[differ].tolist() == [0, 2]
    unknown = torch.full((1, 3), NAN)
    assert not SelfRewarding().best_and_worst(unknown)[2].any()


def test_with_two_samples_the_gradient_is_that_of_online_dpo_with_sure_labels():
    logp, batch = drawn(
        2,
        p=torch.ones(3, 1).double(),
        pair_weight=torch.ones(3, 1).double(),
        beta=torch.full((3,), 0.4).double(),
    )
    losses, slopes = both(SelfRewarding(beta=0.4), logp, batch)
    right, expected = both(OnlineDPO(beta=0.4), logp, batch)
    assert losses == pytest.approx(right) and slopes == [pytest.approx(row) for row in expected]
    batch["p"] = torch.zeros(3, 1).double()  # negative control: the worst is preferred
    assert losses != pytest.approx(both(OnlineDPO(beta=0.4), logp, batch)[0], rel=1e-2)


class Watching(SelfRewarding):
    """Keeps the pairs of the first turn."""

    def pairs(self, lab, batch):
        pairs = super().pairs(lab, batch)
        self.seen = getattr(self, "seen", None) or (pairs, lab.reference)
        return pairs


def test_each_round_raises_the_expected_grade_of_its_own_judge():
    """On exact expectations, where the grade is the table's value."""
    method = Watching(steps=6, rounds=2, num_generations=2, beta=1.0)
    lab = ExactLab(limit=2, steps=3, rate=0.05)
    method.check()
    method.train(lab)
    pairs, _ = method.seen
    value = lab.value[pairs["prompt"][:, None], pairs["index"]]
    assert (value[:, 0] > value[:, 1]).all()
    problem = lab.problem()
    before = problem.expected(problem.ref)
    after = problem.expected(lab.every(lab.table).sum(-1).exp().detach())
    assert (after > before).all()
    assert lab.reference is not lab.start  # the second round starts where the first one ended
    assert method.optimum(problem) is None  # sure labels: the margin has no end


def fake_lab(grade):
    logged = {}
    return SimpleNamespace(
        state={}, log=lambda **m: logged.update(m), grades=lambda *_: grade, reference=None
    )


def test_judge_without_a_single_grade_ends_the_run():
    lab, grade = fake_lab(None), torch.full((4, 4), NAN)
    for _ in range(PATIENCE // 16 - 1):
        SelfRewarding().count(lab, grade)
    with pytest.raises(UsageError, match="judge_draws=0"):
        SelfRewarding().count(lab, grade)
    lab = fake_lab(None)
    SelfRewarding().count(lab, torch.tensor([[3.0, NAN]]))
    for _ in range(PATIENCE):
        SelfRewarding().count(lab, grade)  # one grade was readable: the judge can follow


def test_a_turn_without_a_pair_takes_no_step_and_a_run_without_one_fails():
    assert SelfRewarding().pairs(fake_lab(torch.ones(4, 3)), None) is None
    lab = ExactLab(limit=1)
    lab.grades = lambda batch, *_: torch.ones(batch.shape[:2])
    with pytest.raises(UsageError, match="different grades"):
        SelfRewarding(steps=2, num_generations=2).train(lab)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 1}, "num_generations"),
        ({"beta": 0.0}, "beta"),
        ({"judge_draws": -1}, "judge_draws"),
        ({"question": "no/such/file"}, "no such file"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SelfRewarding(**options).check()


@pytest.mark.slow
def test_labels_of_a_run_are_counted_as_those_of_a_model():
    results = with_shared_stages("self-rewarding")
    more = ("--set", "judge_draws=0", "--set", "steps=2", "--set", "batch_size=4")
    done = command(*on_small("self_rewarding", *more, results=results))
    assert done.code == 0, done.text
    record = json.loads((only_run(results, "small", "self_rewarding") / "result.json").read_text())
    assert record["cost"]["method"]["ai_labels"] == 2 * 4 * 4
    assert record["cost"]["method"]["reward_queries"] == 0


def test_question_of_a_file_is_part_of_the_run():
    file = fresh("question") / "asked.txt"
    file.write_text("{prompt} {completion}", encoding="utf-8")
    method = SelfRewarding(question=str(file))
    method.check()
    assert SelfRewarding(grades="1, 2,5").scale() == ("1", "2", "5")
    assert method.asked() == "{prompt} {completion}" and method.data_files() == [file]
