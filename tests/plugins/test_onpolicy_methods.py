"""On-policy methods: advantages and losses against plain loops and TRL, steps at a real bench, and
where they rest.

Where a method rests is found by exact expected gradients of its own loss in a small table, every
group, pair or selection listed with its probability, and compared with what its `optimum` says.
"""

import math
import types
from collections import defaultdict
from dataclasses import fields
from itertools import product

import pytest
import torch
from harness_plugins.dpo import DPO
from harness_plugins.grpo import GRPO, forward_tilted, without_signal
from harness_plugins.on_policy.gdpo import GDPO
from harness_plugins.online_dpo import OnlineDPO
from harness_plugins.ppo import PPO
from harness_plugins.raft import RAFT
from harness_plugins.reinforce_pp import ReinforcePP
from harness_plugins.rloo import RLOO
from harness_plugins.rlvr import ALGORITHMS, RLVR

from harness.api.contracts import Verifier
from harness.api.methods import OnPolicyOptions
from harness.api.verifiers import Part, WeightedVerifiers
from harness.core.save_schedule import SaveInterval
from harness.models.enumeration import Enumerated, kl, total_variation
from harness.models.initial_checkpoint import InitialCheckpoint
from harness.training.checkpoints import Checkpoints
from harness.training.lab import Lab, MethodInputs
from harness.training.loop import Loop
from harness.training.trainer import Trainer, reduce_share

NAN = math.nan
REWARDS = torch.tensor(
    [[1.0, 0.0, 0.5, 3.0], [2.0, 2.0, 2.0, 2.0], [NAN, 1.0, 4.0, NAN], [NAN, NAN, NAN, 7.0]]
)


def draws(*shape, seed=0):
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(b=3, k=4, t=5, seed=0):
    """Made-up log-probabilities of new, old and reference policies, and a mask of unequal lengths:
    (B, K, T) each.
    """
    lengths = torch.randint(1, t + 1, (b, k), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(t) < lengths[..., None]).float()
    old = (draws(b, k, t, seed=seed) - 3) * mask
    new, ref = (
        old + 0.3 * draws(b, k, t, seed=seed + 1) * mask,
        old + 0.5 * draws(b, k, t, seed=seed + 2) * mask,
    )
    return new.requires_grad_(), old, ref, mask


def reduced(values, mask, reduction):
    """What the lab makes of a loss."""
    batch = types.SimpleNamespace(shape=mask.shape, __getitem__=None)
    part = type("Part", (dict,), {"shape": batch.shape})(mask=mask)
    return reduce_share(values, part, part, reduction)


def differs(a, b):
    """A negative control: the two are not the same."""
    with pytest.raises(AssertionError):
        torch.testing.assert_close(a, b)


# -- advantages ------------------------------------------------------------------------------------


def group_advantages(rewards, std, ddof):
    """GRPO's advantages by a loop."""
    out = []
    for row in rewards.tolist():
        known = [r for r in row if not math.isnan(r)]
        mean = sum(known) / len(known)
        spread = (
            math.sqrt(sum((r - mean) ** 2 for r in known) / max(1, len(known) - ddof)) + 1e-4
            if std
            else 1.0
        )
        out.append([0.0 if math.isnan(r) else (r - mean) / spread for r in row])
    return torch.tensor(out)


@pytest.mark.parametrize(("std", "ddof"), [(True, 0), (True, 1), (False, 0)])
def test_group_advantages_are_a_loop(std, ddof):
    ours = GRPO(std_normalise=std, ddof=ddof).advantages(REWARDS)
    torch.testing.assert_close(ours, group_advantages(REWARDS, std, ddof))
    assert (ours[1] == 0).all() and (ours[3] == 0).all() and (ours[2, [0, 3]] == 0).all()
    differs(ours, group_advantages(REWARDS, not std, ddof))
    differs(ours, group_advantages(REWARDS.nan_to_num(0.0), std, ddof))  # unscorable is not wrong
    if std:
        differs(ours, group_advantages(REWARDS, std, 1 - ddof))


def left_out(rewards):
    """RLOO's advantages by a loop."""
    out = torch.zeros_like(rewards)
    for i, row in enumerate(rewards.tolist()):
        for j, r in enumerate(row):
            others = [x for m, x in enumerate(row) if m != j and not math.isnan(x)]
            if others and not math.isnan(r):
                out[i, j] = r - sum(others) / len(others)
    return out


def test_leave_one_out_is_a_loop_and_the_mean_scaled():
    ours = RLOO().advantages(REWARDS)
    torch.testing.assert_close(ours, left_out(REWARDS))
    reward = draws(6, 5)
    centred = GRPO(std_normalise=False).advantages(reward)
    torch.testing.assert_close(
        RLOO().advantages(reward), 5 / 4 * centred
    )  # R_i - LOO = G/(G-1) (R_i - mean)
    differs(RLOO().advantages(reward), centred)  # a baseline that includes the completion itself


def whitened_returns(rewards, logp, ref, mask, beta, group):
    """REINFORCE++'s advantages by loops."""
    b, k, t = mask.shape
    returns = torch.full((b, k, t), NAN)
    for i, j in product(range(b), range(k)):
        n, r = int(mask[i, j].sum()), rewards[i, j].item()
        for s in range(n):
            returns[i, j, s] = r - beta * sum(
                float(logp[i, j, u] - ref[i, j, u]) for u in range(s, n)
            )
    if group:
        for i in range(b):
            whole = [x for x in returns[i, :, 0].tolist() if not math.isnan(x)]
            returns[i] -= sum(whole) / len(whole) if whole else 0.0
    known = returns[~returns.isnan()]
    return ((returns - known.mean()) / (known.var(correction=0) + 1e-8).sqrt()).nan_to_num(0.0)


@pytest.mark.parametrize("group", [False, True])
def test_whitened_returns_are_a_loop(group):
    _, logp, ref, mask = case(4)
    ours = ReinforcePP(group_baseline=group, num_generations=4).advantages(
        REWARDS, logp, ref, mask, 0.3
    )
    torch.testing.assert_close(
        ours, whitened_returns(REWARDS, logp, ref, mask, 0.3, group), atol=1e-5, rtol=1e-5
    )
    assert (ours * (1 - mask) == 0).all() and (ours[3, :3] == 0).all()
    for (
        wrong
    ) in (  # sign of the KL, reward at the padding's end, no baseline or one too many, NaN as wrong
        whitened_returns(REWARDS, logp, ref, mask, -0.3, group),
        whitened_returns(REWARDS, logp, ref, torch.ones_like(mask), 0.3, group),
        whitened_returns(REWARDS, logp, ref, mask, 0.3, not group),
        whitened_returns(REWARDS.nan_to_num(0.0), logp, ref, mask, 0.3, group),
    ):
        differs(ours, wrong)


def test_groups_without_signal_are_counted():
    assert float(without_signal(REWARDS)) == 0.5  # all the same, and one alone
    assert float(without_signal(torch.full((2, 3), NAN))) == 1.0


# -- losses ----------------------------------------------------------------------------------------


def grpo_by_hand(method, new, old, ref, advantages, beta):
    """Eq. 3 for one token."""
    rho, high = math.exp(new - old), method.clip_range_high or method.clip_range
    surrogate = min(rho * advantages, min(max(rho, 1 - method.clip_range), 1 + high) * advantages)
    u = new - ref
    return -(
        surrogate - beta * (u * u / 2 if method.kl_estimator == "k2" else math.exp(-u) - 1 + u)
    )


def grpo_batch(old, ref, advantages, beta):
    """The columns of GRPO's loss."""
    column = torch.full(advantages.shape[:1], beta, dtype=old.dtype)
    return {"old_logp": old, "advantages": advantages} | (
        {"ref_logp": ref, "beta": column} if beta else {}
    )


@pytest.mark.parametrize(
    "options", [{}, {"kl_estimator": "k2"}, {"clip_range_high": 0.28, "clip_range": 0.1}]
)
def test_grpo_loss_is_a_loop(options):
    new, old, ref, _ = case()
    advantages, method = draws(3, 4, seed=5), GRPO(**options)
    ours = method.loss(new, grpo_batch(old, ref, advantages, 0.2))[0]

    def by_hand(method, sign=1):
        told = torch.zeros_like(ours)
        for i, j, t in product(*map(range, ours.shape)):
            numbers = (x[i, j, t].item() for x in (new, old, ref))
            told[i, j, t] = grpo_by_hand(method, *numbers, sign * advantages[i, j].item(), 0.2)
        return told

    torch.testing.assert_close(ours, by_hand(method))
    differs(ours, by_hand(method, sign=-1))
    swapped = "k3" if method.kl_estimator == "k2" else "k2"
    differs(ours, by_hand(GRPO(**options | {"kl_estimator": swapped})))
    differs(ours, by_hand(GRPO(**options | {"clip_range": 0.02, "clip_range_high": None})))


def test_rloo_loss_is_reinforce_and_its_clipped_ratio():
    new, old, _, _ = case()
    advantages = draws(3, 4, seed=5)
    batch = {"old_logp": old, "advantages": advantages}
    torch.testing.assert_close(RLOO().loss(new, batch), -advantages * new.sum(-1))
    loss, told = RLOO(clip_range=0.2).loss(new, batch)
    for i, j in product(range(3), range(4)):
        rho, a = math.exp((new[i, j].sum() - old[i, j].sum()).item()), advantages[i, j].item()
        assert loss[i, j].item() == pytest.approx(
            -min(rho * a, min(max(rho, 0.8), 1.2) * a), rel=1e-4, abs=1e-6
        )
        assert float(told["clip_fraction"][i, j]) == (not 0.8 <= rho <= 1.2)
    at_old = old.clone().requires_grad_()  # where they sampled, both have the same gradient
    grads = [
        torch.autograd.grad(total.sum(), at_old)[0]
        for total in (RLOO().loss(at_old, batch), RLOO(clip_range=0.2).loss(at_old, batch)[0])
    ]
    torch.testing.assert_close(*grads)


def test_reinforce_pp_loss_is_the_clipped_surrogate():
    new, old, _, _ = case()
    advantages = draws(3, 4, 5, seed=5)
    loss = ReinforcePP().loss(new, {"old_logp": old, "advantages": advantages})[0]
    rho = (new - old).exp()
    told = -torch.minimum(rho * advantages, rho.clamp(0.8, 1.2) * advantages)
    torch.testing.assert_close(loss, told)
    differs(loss, -rho * advantages)


# -- TRL 1.16 --------------------------------------------------------------------------------------


def trl_trainer(module, new, **settings):
    """A stand-in for TRL's trainer: its settings, and a model that gives these log-probabilities
    (R, T).
    """
    accelerator = types.SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
    )
    usual = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "importance_sampling_level": "token",
        "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "args": types.SimpleNamespace(
            use_bias_correction_kl=False, delta=None, steps_per_generation=1
        ),
        "model": types.SimpleNamespace(training=True),
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }
    given = {
        "_get_per_token_logps_and_entropies": lambda *a, **k: (new, torch.zeros_like(new), None)
    }
    return types.SimpleNamespace(accelerator=accelerator, **usual | given | settings)


def trl_inputs(mask, old, advantages, **more):
    """Their inputs, one row per completion."""
    ids = torch.ones_like(mask.flatten(0, 1), dtype=torch.long)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": mask.flatten(0, 1),
        "advantages": advantages.flatten(),
        **more,
    }


# TRL's GRPOConfig() is not the paper's: its defaults are beta=0, loss_type="dapo", the KL times the
# ratio (use_bias_correction_kl). What makes it ours stands in `trl_trainer` and here; its spread is
# Bessel's, ddof=1.
TRL_FORMS = {
    "the paper's": ({"loss_type": "grpo", "epsilon_high": 0.2}, {}, 0.04),
    "DAPO": (
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"clip_range_high": 0.28, "loss_aggregation": "token-mean"},
        0.0,
    ),
    "Dr. GRPO": (
        {"loss_type": "dr_grpo", "epsilon_high": 0.2, "max_completion_length": 9},
        {"loss_aggregation": "constant", "max_new_tokens": 9, "std_normalise": False},
        0.0,
    ),
}


@pytest.mark.parametrize("form", TRL_FORMS)
def test_grpo_is_trls(form):
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    theirs, options, beta = TRL_FORMS[form]
    method = GRPO(beta=beta, **{"ddof": 1} | options if "std_normalise" not in options else options)
    method.check()
    new, old, ref, mask = case()
    advantages = method.advantages(draws(3, 4, seed=7))
    inputs = trl_inputs(
        mask,
        old,
        advantages,
        old_per_token_logps=old.flatten(0, 1),
        ref_per_token_logps=ref.flatten(0, 1),
        num_items_in_batch=mask.sum(),
    )
    flat = new.detach().flatten(0, 1).requires_grad_()
    stand_in = trl_trainer(grpo_trainer, flat, beta=beta, epsilon_low=0.2, **theirs)
    told = grpo_trainer.GRPOTrainer._compute_loss(stand_in, stand_in.model, inputs)
    reduction = method.reduction(types.SimpleNamespace(shape=mask.shape), 9)

    def ours(method):
        return reduced(method.loss(new, grpo_batch(old, ref, advantages, beta))[0], mask, reduction)

    torch.testing.assert_close(ours(method), told)
    gradients = torch.autograd.grad(ours(method), new)[0], torch.autograd.grad(told, flat)[0]
    torch.testing.assert_close(gradients[0], gradients[1].view_as(new))
    differs(ours(GRPO(clip_range=0.05)), told)
    other = "token-mean" if reduction != "token-mean" else "seq-mean-token-mean"
    differs(reduced(method.loss(new, grpo_batch(old, ref, advantages, beta))[0], mask, other), told)


def test_group_advantages_are_trls():
    utils = pytest.importorskip("trl.trainer.utils")
    rows = REWARDS[:3]
    spread = utils.nanstd(rows, dim=1).nan_to_num(0.0)[
        :, None
    ]  # the lines of GRPOTrainer, which stand in one method
    told = ((rows - rows.nanmean(1, keepdim=True)) / (spread + 1e-4)).nan_to_num(0.0)
    torch.testing.assert_close(GRPO(ddof=1).advantages(rows), told)
    differs(GRPO(ddof=0).advantages(rows), told)


def test_rloo_is_trls():
    rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer")
    new, old, ref, mask = case()
    method = RLOO(
        clip_range=0.2
    )  # TRL always clips the ratio; num_generations=2, beta=.05 are its defaults
    reward = draws(3, 4, seed=7) - 0.05 * (old - ref).sum(-1)
    advantages = method.advantages(reward)
    inputs = trl_inputs(mask, old, advantages, old_logps=old.sum(-1).flatten())
    flat = new.detach().flatten(0, 1).requires_grad_()
    stand_in = trl_trainer(rloo_trainer, flat, epsilon_low=0.2, epsilon_high=0.2)
    told = rloo_trainer.RLOOTrainer._compute_loss(stand_in, stand_in.model, inputs)
    ours = reduced(
        method.loss(new, {"old_logp": old, "advantages": advantages})[0], mask, "token-mean"
    )
    torch.testing.assert_close(ours, told)
    gradient = (
        torch.autograd.grad(ours, new)[0] * mask
    )  # the lab's log-probabilities are constants on padding
    torch.testing.assert_close(gradient.flatten(0, 1), torch.autograd.grad(told, flat)[0])
    wrong = method.loss(
        new, {"old_logp": old, "advantages": GRPO(std_normalise=False).advantages(reward)}
    )[0]
    differs(reduced(wrong, mask, "token-mean"), told)


# -- online DPO ------------------------------------------------------------------------------------


def test_labels_follow_the_rewards():
    reward = torch.tensor([[0.0, 1.0, NAN], [2.0, 2.0, -1.0]])
    generator = torch.Generator().manual_seed(0)
    soft = OnlineDPO(labels="soft").labelled(reward, generator)  # pairs 01, 02, 12
    told = [[1 / (1 + math.e), NAN, NAN], [0.5, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-3))]]
    torch.testing.assert_close(soft, torch.tensor(told), equal_nan=True)
    hard = OnlineDPO(labels="argmax").labelled(reward, generator)
    torch.testing.assert_close(
        hard, torch.tensor([[0.0, NAN, NAN], [0.5, 1.0, 1.0]]), equal_nan=True
    )
    many = OnlineDPO().labelled(reward.repeat(4000, 1), generator).view(4000, 2, 3)
    assert set(many[~many.isnan()].tolist()) == {0.0, 1.0}
    torch.testing.assert_close(many.mean(0), soft, equal_nan=True, atol=0.03, rtol=0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(many.mean(0), 1 - soft, equal_nan=True, atol=0.03, rtol=0)


def test_identical_answers_and_unknown_labels_are_no_pairs():
    ids = torch.tensor([[[5, 2, 0], [5, 2, 0], [5, 2, 2]]])
    mask = torch.tensor([[[1.0, 1, 0], [1, 1, 0], [1, 1, 1]]])
    p = torch.tensor([[1.0, 1.0, NAN]])
    assert OnlineDPO().weights(p, ids, mask).tolist() == [[0.0, 1.0, 0.0]]
    even = torch.full((1, 3), 0.5)
    assert OnlineDPO(labels="argmax").weights(even, ids, mask).tolist() == [[0.0, 0.0, 0.0]]
    assert OnlineDPO(labels="soft").weights(even, ids, mask).tolist() == [[0.0, 1.0, 1.0]]
    padded = OnlineDPO().weights(
        p, torch.tensor([[[5, 0], [5, 0], [5, 2]]]), torch.tensor([[[1.0, 0], [1, 1], [1, 1]]])
    )
    assert padded.tolist() == [[1.0, 1.0, 0.0]]  # the same ids, one of them padding


def test_online_dpo_loss_is_dpos_over_all_pairs():
    new, _, ref, _ = case(2, 3)
    p, weight = (
        torch.tensor([[1.0, 0.3, 0.0], [0.5, 0.8, 1.0]]),
        torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
    )
    batch = {"ref_logp": ref, "p": p, "pair_weight": weight, "beta": torch.full((2,), 0.4)}
    ours = OnlineDPO().loss(new, batch)[0]

    def by_dpo(p, weight):
        total = 0.0
        for m, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            two = {"ref_logp": ref[:, [i, j]], "p": p[:, m]}
            total = total + weight[:, m] * DPO(beta=0.4).loss(new[:, [i, j]], two)[0] / 3
        return total

    torch.testing.assert_close(ours, by_dpo(p, weight))
    differs(ours, by_dpo(1 - p, weight))
    differs(ours, by_dpo(p, torch.ones_like(weight)))


# -- RAFT ------------------------------------------------------------------------------------------


def test_raft_keeps_the_best_that_is_known():
    generator = torch.Generator().manual_seed(0)
    score = torch.tensor([[1.0, 3.0, 3.0], [NAN, -5.0, NAN], [NAN, NAN, NAN]])
    chosen, rows = RAFT().select(score, generator)
    assert chosen[:2].tolist() == [1, 1] and rows == [0, 1]
    assert score.argmax(-1)[1] != 1  # torch takes a NaN for the largest
    random = torch.stack([RAFT(selection="random").select(score, generator)[0] for _ in range(600)])
    shares = torch.stack([(random[:, 0] == j).float().mean() for j in range(3)])
    assert (shares - 1 / 3).abs().max() < 0.07 and (random[:, 1] == 1).all()


# -- refusals --------------------------------------------------------------------------------------

REFUSED = [
    (GRPO, {"num_generations": 1}, "num_generations"),
    (GRPO, {"kl_estimator": "k1"}, "no expected gradient"),
    (GRPO, {"kl_in": "reward"}, "kl_estimator=k1"),
    (GRPO, {"kl_in": "reward", "kl_estimator": "k2"}, "kl_estimator=k1"),
    (GRPO, {"kl_in": "nowhere"}, "kl_in"),
    (GRPO, {"beta": 0.0, "kl_in": "reward", "kl_estimator": "k1"}, "beta=0"),
    (GRPO, {"beta": 0.0, "kl_estimator": "k2"}, "beta=0"),
    (GRPO, {"loss_aggregation": "mean"}, "loss_aggregation"),
    (GRPO, {"std_normalise": False, "ddof": 1}, "ddof"),
    (GRPO, {"ddof": 2}, "ddof"),
    (GRPO, {"clip_range": 0.0}, "clip_range"),
    (GRPO, {"clip_range_high": -0.1}, "clip_range_high"),
    (GRPO, {"num_iterations": 0}, "num_iterations"),
    (RLOO, {"num_generations": 1}, "num_generations"),
    (RLOO, {"num_iterations": 2}, "clip_range"),
    (RLOO, {"minibatch_size": 8}, "clip_range"),
    (ReinforcePP, {"group_baseline": True}, "num_generations"),
    (ReinforcePP, {"clip_range": 0.0}, "clip_range"),
    (ReinforcePP, {"batch_size": 1}, "batch_size"),
    (RAFT, {"num_generations": 1}, "num_generations"),
    (RAFT, {"selection": "worst"}, "selection"),
    (RAFT, {"adaptive_beta": True, "beta": 0.1}, "adaptive_beta"),
    (RAFT, {"selection": "random", "beta": 0.1}, "beta"),
    (OnlineDPO, {"labels": "hard"}, "labels"),
    (OnlineDPO, {"num_generations": 1}, "num_generations"),
    (OnlineDPO, {"beta": 0.0}, "beta"),
    (OnlineDPO, {"steps": 10, "move_reference_every": 3}, "multiple"),
    (OnlineDPO, {"steps": 9, "move_reference_every": 3, "adaptive_beta": True}, "adaptive_beta"),
    (RLVR, {"algorithm": "dpo"}, "algorithm"),
    (RLVR, {"reward": "model"}, "verifier"),
    (RLVR, {"gae_lambda": 0.9}, "no option gae_lambda"),
    (
        RLVR,
        {"algorithm": "ppo", "kl_in": "reward", "num_iterations": 2},
        "no option kl_in, num_iterations",
    ),
    (RLVR, {"algorithm": "rloo", "std_normalise": True}, "no option std_normalise"),
    (RLVR, {"algorithm": "rloo", "num_iterations": 2}, "clip_range"),
    (RLVR, {"reward_members": 3}, "reward model"),
]


@pytest.mark.parametrize(("cls", "options", "says"), REFUSED)
def test_what_makes_no_sense_is_refused(cls, options, says):
    cls().check()
    with pytest.raises(ValueError, match=says):
        cls(**options).check()


GRANTED = [
    (GRPO, {"kl_in": "reward", "kl_estimator": "k1"}),
    (GRPO, {"kl_estimator": "k2", "num_iterations": 3}),
    (GRPO, {"std_normalise": False, "loss_aggregation": "constant", "beta": 0.0}),
    (RLOO, {"num_iterations": 2, "clip_range": 0.2}),
    (RLOO, {"minibatch_size": 32}),
    (ReinforcePP, {"group_baseline": True, "num_generations": 4}),
    (OnlineDPO, {"steps": 9, "move_reference_every": 3}),
    (RLVR, {"algorithm": "ppo", "gae_lambda": 0.9, "beta": 0.1}),
    (RLVR, {"kl_in": "reward", "kl_estimator": "k1", "beta": 0.1}),
    (RAFT, {"beta": 0.1}),
]


@pytest.mark.parametrize(("cls", "options"), GRANTED)
def test_what_makes_sense_is_not(cls, options):
    cls(**options).check()


# -- RLVR is the algorithm it names ----------------------------------------------------------------


def test_rlvr_reaches_every_option_of_its_algorithms():
    ours = {f.name: f.type for f in fields(RLVR)}
    shared = {f.name for f in fields(OnPolicyOptions)}
    for cls in ALGORITHMS.values():
        for f in fields(cls):
            if f.name not in shared | {
                "critic_from_reward"
            }:  # a critic from a reward model: there is none
                assert ours[f.name] == (
                    f.type if f.type.endswith("| None") else f"{f.type} | None"
                ), f.name
    inner = RLVR(
        algorithm="ppo", gae_lambda=0.5, steps=7, batch_size=9, missing_eos_penalty=0.3, beta=0.2
    ).inner()
    assert type(inner).name == "ppo" and (inner.gae_lambda, inner.steps, inner.batch_size) == (
        0.5,
        7,
        9,
    )
    assert (inner.missing_eos_penalty, inner.beta, inner.vf_coef) == (0.3, 0.2, 0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_reward_model_is_needed_for_a_verifier(algorithm):
    assert RLVR(algorithm=algorithm).required() == {"prompts", "verifier"}
    assert ALGORITHMS[algorithm](reward="verifier").required() == {"prompts", "verifier"}
    assert ALGORITHMS[algorithm]().required() == {"prompts", "reward"}


# -- at the bench ----------------------------------------------------------------------------------


class EvenWords(Verifier):
    """Half a point for every other word; None for an answer that has none of the first `blind`
    words' kind.
    """

    name = "even_words"

    def __init__(self, blind=0):
        self.blind = blind

    def verify(self, prompts, completions, golds, ended):
        return [self.grade(text) for text in completions]

    def grade(self, completion):
        numbers = [int(word[1:]) for word in completion.split() if word.startswith("w")]
        if sum(numbers) % 3 < self.blind:
            return None
        return sum(0.5 for n in numbers if n % 2 == 0)


@pytest.fixture
def trained(tmp_path, runtime, meter, accelerator, tokens, tiny_model, make_prompts):
    """Train a method on the tiny model with a verifier; return the loop, the policy's weights and
    the meter.
    """

    def trained(method, verifier=None, name="run"):
        method.check()
        trainer = Trainer(method, accelerator, meter, 2000)
        loop = Loop(
            trainer, Checkpoints(tmp_path / name, SaveInterval(3600.0)), meter, lambda *told: None
        )
        prompts = make_prompts([3, 1, 5, 2] * 4)
        method_inputs = MethodInputs(
            start=InitialCheckpoint.of(tiny_model),
            tokens=tokens,
            prompts=prompts,
            verifier=verifier or EvenWords(),
        )
        policy = method.train(Lab(method, method_inputs, runtime(), loop))
        weights = torch.nn.utils.parameters_to_vector(policy.model.parameters()).detach()
        return types.SimpleNamespace(rows=loop.rows, weights=weights, meter=meter)

    return trained


FEW = {
    "steps": 2,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "reward": "verifier",
    "warmup_ratio": 0.0,
}
METHODS = [
    GRPO(**FEW),
    GRPO(**FEW, kl_in="reward", kl_estimator="k1"),
    RLOO(**FEW),
    RLOO(**FEW, clip_range=0.2),
    ReinforcePP(**FEW, num_generations=4),
    RAFT(**FEW, beta=0.1),
    OnlineDPO(**FEW),
    RLVR(**FEW, beta=0.1),
    RLVR(**FEW, algorithm="rloo", beta=0.1),
    RLVR(**FEW, algorithm="ppo", beta=0.1, num_ppo_epochs=1),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_first_step_starts_at_the_reference(method, trained):
    done = trained(method)
    first, second = done.rows
    assert abs(first["kl"]) < 1e-4 and first["grad_norm"] > 1e-3
    assert first.get("ratio", 1.0) == pytest.approx(1.0, abs=1e-4) and not first.get(
        "clip_fraction"
    )
    if method.name == "grpo":
        assert abs(first["loss"]) < 1e-4  # -mean(A), and k3(1) = 0
    if method.name == "online_dpo":
        assert first["loss"] == pytest.approx(math.log(2) * first["pairs_used"], abs=1e-4)
    assert abs(second["kl"]) > 1e-4  # the first step did something that this test would have seen


@pytest.mark.parametrize("method", [GRPO, RLOO, ReinforcePP, RAFT, RLVR])
def test_without_a_kl_no_reference_is_held(method, trained):
    assert set(trained(method(**FEW, beta=0.0)).meter.models) == {"policy"}
    assert set(trained(method(**FEW, beta=0.1), name="other").meter.models) == {
        "policy",
        "reference",
    }


def test_the_policy_stays_where_it_is_while_the_critic_alone_learns(trained):
    options = FEW | {"steps": 3, "num_ppo_epochs": 1, "critic_from_reward": False}
    first, second, third = trained(PPO(**options, value_pretrain_steps=1)).rows
    assert "grad_norm" not in first and first["grad_norm_value"] > 0
    assert second["grad_norm"] > 0 and abs(second["kl"]) < 1e-4 < abs(third["kl"])
    assert abs(trained(PPO(**options), name="other").rows[1]["kl"]) > 1e-4


class Summed(GDPO):
    """GDPO that compares the sum of the rewards apart with the reward."""

    def scored(self, lab, prompts):
        batch = super().scored(lab, prompts)
        torch.testing.assert_close(batch["reward"], lab.reward(batch), equal_nan=True)
        lab.log(parts=len(lab.rewards(batch)), penalty=lab.rewards(batch)["length"].mean())
        return batch


def test_rewards_apart_sum_to_the_reward(trained):
    options = FEW | {"beta": 0.0, "length_penalty": 0.1, "missing_eos_penalty": 0.5}
    rows = trained(Summed(**options), EvenWords(blind=1)).rows
    assert rows[0]["parts"] == 3 and rows[0]["grad_norm"] > 0
    assert rows[0]["penalty"] == pytest.approx(-0.1 * rows[0]["length"], rel=1e-4)


def test_several_verifiers_are_a_reward_each(trained):
    parts = [Part("all", 0.9, EvenWords()), Part("some", 0.1, EvenWords(blind=1))]

    class Counted(GDPO):
        def scored(self, lab, prompts):
            batch = super().scored(lab, prompts)
            lab.log(parts=len(lab.rewards(batch)))
            return batch

    options = FEW | {"beta": 0.0, "missing_eos_penalty": 0.0}
    rows = trained(Counted(**options), WeightedVerifiers(parts)).rows
    assert rows[0]["parts"] == 2 and {"verdict_all", "verdict_some"} <= set(rows[0])


def test_entropies_cost_one_pass_and_a_bonus_none(trained):
    def run(name, **options):
        done = trained(GRPO(**FEW | {"beta": 0.0}, **options), name=name)
        cost = done.meter.total(("update",))
        return done.rows, cost.flops, cost.tokens_trained

    told = [
        run("plain"),
        run("bonus", entropy_coef=0.5),
        run("uncertain", top_entropy=0.2),
    ]
    (plain, bonus, uncertain), flops, tokens = zip(*told, strict=True)
    # the meter of these tests goes on from run to run
    each = [b - a for a, b in zip((0.0, *flops), flops, strict=False)]
    assert each[1:] == pytest.approx([each[0], 4 / 3 * each[0]], rel=0.05)
    assert tokens[1:] == pytest.approx((2 * tokens[0], 3 * tokens[0]), rel=0.05)
    assert bonus[0]["policy_entropy"] == pytest.approx(plain[0]["entropy"], rel=0.3)
    assert bonus[0]["loss"] < plain[0]["loss"] - 0.4 * bonus[0]["policy_entropy"]
    assert uncertain[0]["grad_norm"] != pytest.approx(plain[0]["grad_norm"], rel=1e-3)


def test_rlvr_is_its_algorithm_to_the_bit(trained):
    theirs = trained(GRPO(**FEW, beta=0.1, kl_estimator="k2", minibatch_size=4), name="a").weights
    options = FEW | {"beta": 0.1, "minibatch_size": 4}
    assert torch.equal(trained(RLVR(**options, kl_estimator="k2"), name="b").weights, theirs)
    assert not torch.equal(trained(RLVR(**options), name="c").weights, theirs)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_unscorable_answers_stop_nothing(method, trained):
    done = trained(method, EvenWords(blind=1))
    assert (
        len(done.rows) == 2 and torch.isfinite(done.weights).all() and done.rows[0]["grad_norm"] > 0
    )
    none = trained(method, EvenWords(blind=3), name="none")
    assert (
        len(none.rows) == 2 and torch.isfinite(none.weights).all() and "reward" not in none.rows[0]
    )
    # Nothing to learn from, and the KL starts at 0. Rounding leaves up to 9e-8 on some CPUs.
    assert none.rows[0].get("grad_norm", 0.0) < 1e-5 < 1e-3 < done.rows[0]["grad_norm"]


def test_moved_reference_is_the_policy(trained):
    rows = trained(OnlineDPO(**FEW | {"steps": 6}, move_reference_every=2)).rows
    moved = [abs(row["kl"]) < 1e-4 for row in rows]
    assert moved == [True, False] * 3
    fixed = trained(OnlineDPO(**FEW | {"steps": 6}), name="fixed").rows
    assert [abs(row["kl"]) < 1e-4 for row in fixed] == [True] + [False] * 5


# -- where they rest -------------------------------------------------------------------------------

N = 4


def table(ties=False, seed=0):
    """One prompt, N completions of one token."""
    ref = (0.5 * draws(1, N, seed=seed).double()).softmax(-1)
    reward = torch.tensor([[1.2, -0.7, 0.1, 0.8]]).double()
    reward = reward.round() if ties else reward
    prefer = torch.sigmoid(reward[:, :, None] - reward[:, None])
    return Enumerated(
        ref,
        reward,
        torch.ones(1, N),
        tuple((i,) for i in range(N)),
        torch.full_like(ref, 1 / N),
        prefer,
    )


def tuples(k):
    """Every way to draw k completions, (N^k, k)."""
    return torch.tensor(list(product(range(N), repeat=k)))


def rest(loss, start, steps=1200, rate=2.0):
    """Follow the exact expected gradient: loss(logp) is a function of (N,) log-probabilities;
    return (1, N).
    """
    logits = start[0].log().clone().requires_grad_()
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1)), logits)
        logits.data -= rate * gradient
    return logits.detach().softmax(-1)[None]


def grouped(method, problem):
    """The expected loss of a method on all groups of G, each weighed by its probability."""
    groups = tuples(method.num_generations)
    ref = problem.ref[0].log()[groups]

    def loss(logp):
        new, old = logp[groups], logp.detach()[groups]
        reward, more = problem.reward[0][groups], {}
        if getattr(method, "kl_in", "reward") == "reward":
            reward = reward - method.beta * (old - ref)
        else:
            more = {
                "ref_logp": ref[..., None],
                "beta": torch.full(groups.shape[:1], method.beta).double(),
            }
        batch = {"old_logp": old[..., None], "advantages": method.advantages(reward)} | more
        values = method.loss(new[..., None], batch)
        values = values[0] if isinstance(values, tuple) else values
        return (old.sum(-1).exp() * values.flatten(1).mean(-1)).sum()

    return loss


def far(a, b):
    """Total variation of two policies of one prompt."""
    return float(total_variation(a, b).max())


FORMS = {
    "the paper's": GRPO(beta=1.0, num_generations=3),
    "Bessel's spread": GRPO(beta=1.0, num_generations=3, ddof=1),
    "no spread": GRPO(beta=1.0, num_generations=3, std_normalise=False),
    "pairs": GRPO(beta=0.7, num_generations=2, std_normalise=False),
    "k2": GRPO(beta=0.5, num_generations=3, std_normalise=False, kl_estimator="k2"),
    "in the reward": GRPO(
        beta=0.5, num_generations=3, std_normalise=False, kl_in="reward", kl_estimator="k1"
    ),
    "rloo": RLOO(beta=0.5, num_generations=3),
    "rlvr": RLVR(beta=0.5, num_generations=3, algorithm="rloo"),
}


@pytest.mark.parametrize("form", FORMS)
def test_group_methods_rest_where_theory_says(form):
    method, problem = FORMS[form], table()
    told = method.optimum(problem)
    inner = method.inner() if form == "rlvr" else method
    reached = rest(grouped(inner, problem), problem.ref)
    assert far(reached, told) < 1e-4
    assert far(problem.ref, told) > 0.05
    if inner.name == "grpo" and inner.kl_in == "loss":
        assert far(problem.tilted(method.beta), told) > 0.02  # not pi*
        swapped = {"k2": "k3", "k3": "k2"}[inner.kl_estimator]
        options = {f.name: getattr(inner, f.name) for f in fields(GRPO)} | {"kl_estimator": swapped}
        assert far(rest(grouped(GRPO(**options), problem), problem.ref), told) > 0.02


def test_spread_moves_nothing_where_the_kl_is_in_the_reward():
    """At pi* every R is the same, so every advantage is 0 for any divisor; elsewhere it is not."""
    problem, method = table(), GRPO(beta=0.5, num_generations=3, kl_in="reward", kl_estimator="k1")

    def slope(policy):
        logits = policy[0].log().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(grouped(method, problem)(logits.log_softmax(-1)), logits)
        return float(gradient.abs().max())

    assert slope(method.optimum(problem)) < 1e-6 < 1e-2 < slope(problem.ref)


def test_wrong_strength_or_sign_rests_elsewhere():
    problem, method = table(), RLOO(beta=0.5, num_generations=3)
    told = method.optimum(problem)

    class Upside(RLOO):
        def loss(self, logp, batch):
            return -super().loss(logp, batch)

    class OwnKL(
        RLOO
    ):  # the mean of all, itself included, for the reward; the KL with no baseline: weights G/(G-1)
        def advantages(self, reward):
            own = super().advantages(reward)
            return own - super().advantages(self.bare) / self.num_generations

    shrunk = OwnKL(beta=0.5, num_generations=3)
    shrunk.bare = problem.reward[0][tuples(3)]
    assert far(rest(grouped(shrunk, problem), problem.ref), problem.tilted(0.5 * 3 / 2)) < 1e-4
    assert far(problem.tilted(0.5 * 3 / 2), told) > 0.02
    assert (
        far(rest(grouped(Upside(beta=0.5, num_generations=3), problem), problem.ref, 300), told)
        > 0.1
    )


def test_closed_form_of_k3_without_a_spread():
    """pi = ref / (1 - (r - E_pi r) / beta), self-consistent; and it maximises E r - beta KL(ref ||
    pi).
    """
    problem = table()
    policy = forward_tilted(problem.ref, problem.reward, 0.8)
    mean = problem.expected(policy)[:, None]
    torch.testing.assert_close(
        policy, problem.ref / (1 - (problem.reward - mean) / 0.8), atol=1e-9, rtol=1e-9
    )

    def objective(p):
        return float(problem.expected(p) - 0.8 * kl(problem.ref, p))

    for seed in range(20):
        near = (policy.log() + 0.1 * draws(1, N, seed=seed).double()).softmax(-1)
        assert objective(near) < objective(policy)


def test_where_no_form_is_known_none_is_told():
    problem = table()
    long = Enumerated(
        problem.ref, problem.reward, 2 * problem.lengths, problem.ids, problem.mu, problem.prefer
    )
    assert (
        GRPO().optimum(long) is None
        and GRPO(std_normalise=False, kl_estimator="k2").optimum(long) is None
    )
    assert GRPO(kl_in="reward", kl_estimator="k1").optimum(long) is not None
    assert (
        GRPO(kl_estimator="k2").optimum(problem) is None
    )  # a spread and reverse KL may have no fixed point
    assert GRPO(num_generations=200).optimum(problem) is None  # too many groups to list
    for cls in (GRPO, RLOO, ReinforcePP, OnlineDPO, RAFT):
        for options in ({"temperature": 0.7}, {"adaptive_beta": True}, {"max_new_tokens": 1}):
            assert cls(**options).optimum(problem) is None
    for cls in (GRPO, RLOO, ReinforcePP, RLVR):
        assert cls(beta=0.0).optimum(problem) is None
    assert OnlineDPO(labels="argmax").optimum(problem) is None


def listed_pairs(method, problem, ref):
    """Online DPO's expected loss over all pairs drawn from the policy, soft labels."""
    two = tuples(2)
    p = method.labelled(problem.reward[0][two], None)
    weight = method.weights(p, two[..., None], torch.ones(*two.shape, 1).double())

    def loss(logp):
        batch = {"ref_logp": ref[0].log()[two][..., None], "p": p, "pair_weight": weight}
        batch["beta"] = torch.full((len(two),), method.beta).double()
        return (
            logp.detach()[two].sum(-1).exp() * method.loss(logp[two][..., None], batch)[0]
        ).sum()

    return loss


def test_online_dpo_rests_at_the_tilted_policy_and_moves_on_with_its_reference():
    problem, method = table(), OnlineDPO(beta=0.6, labels="soft")
    once = rest(listed_pairs(method, problem, problem.ref), problem.ref, 1500, 8.0)
    assert far(once, method.optimum(problem)) < 1e-4
    twice = rest(listed_pairs(method, problem, once), once, 1500, 8.0)
    moving = OnlineDPO(beta=0.6, labels="soft", steps=8, move_reference_every=4)
    assert far(twice, moving.optimum(problem)) < 1e-3
    assert far(once, moving.optimum(problem)) > 0.02
    hard = OnlineDPO(beta=0.6, labels="argmax")
    assert far(rest(listed_pairs(hard, problem, problem.ref), problem.ref, 1500, 8.0), once) > 0.02


def best_of(method, policy, problem):
    """One round of RAFT with exact SFT: all K draws, listed, through the method's selection."""
    draws_ = tuples(method.num_generations)
    score = problem.reward[0] - method.beta * (policy[0] / problem.ref[0]).log()
    score = score.round(decimals=9)[draws_]
    chosen, _ = method.select(score, None)
    kept = draws_.gather(1, chosen[:, None])[:, 0]
    weights = policy[0][draws_].prod(-1)
    return torch.zeros(N).double().index_add(0, kept, weights)[None]


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("ties", [False, True])
def test_raft_is_best_of_k_of_best_of_k(ties, beta):
    problem = table(ties)
    method = RAFT(num_generations=3, steps=2, beta=beta)
    one = best_of(method, problem.ref, problem)
    two = best_of(method, one, problem)
    torch.testing.assert_close(method.optimum(problem), two, atol=1e-9, rtol=0)
    assert far(one, two) > 0.01
    if not beta:
        nine = RAFT(num_generations=9, steps=1).optimum(problem)
        torch.testing.assert_close(nine, two, atol=1e-9, rtol=0)  # BoN_{K^t}
    if ties:  # a formula that takes equals for an order lands elsewhere
        apart = Enumerated(
            problem.ref,
            problem.reward + 1e-3 * torch.arange(N),
            problem.lengths,
            problem.ids,
            problem.mu,
            problem.prefer,
        )
        assert len(set(problem.reward[0].tolist())) < N and far(method.optimum(apart), two) > 0.01
    assert torch.equal(RAFT(selection="random").optimum(problem), problem.ref)


# A tree of two tokens: the end, a, b; a completion is cut at two. Seven of them.
TREE = torch.tensor([[0, 0], [1, 0], [2, 0], [1, 1], [1, 2], [2, 1], [2, 2]])
TREE_MASK = torch.tensor([[1.0, 0.0]] + [[1.0, 1.0]] * 6)


def tree_logp(logits):
    """Return (7, 2) log-probabilities from logits (3, 3) of the states: nothing said, a, b."""
    first, later = logits[0].log_softmax(-1), logits[1:].log_softmax(-1)
    second = later[(TREE[:, 0] - 1).clamp(min=0), TREE[:, 1]]
    return torch.stack([first[TREE[:, 0]], second], 1) * TREE_MASK


@pytest.mark.parametrize("group", [False, True])
def test_reinforce_pp_rests_at_the_tilted_policy(group):
    ref_logits, reward = 0.5 * draws(3, 3, seed=1), draws(7, seed=4)
    ref_logp = tree_logp(ref_logits)
    told = (ref_logp.sum(-1) + reward / 0.5).softmax(-1).double()

    def trained(method, steps=300, n=3000):
        logits, generator = ref_logits.clone().requires_grad_(), torch.Generator().manual_seed(0)
        for step in range(steps):
            logp = tree_logp(logits)
            rows = torch.multinomial(
                logp.sum(-1).exp().detach(), n, True, generator=generator
            ).view(-1, 4)
            new, mask = logp[rows], TREE_MASK[rows]
            old = new.detach()
            advantages = method.advantages(reward[rows], old, ref_logp[rows], mask, 0.5)
            values = method.loss(new, {"old_logp": old, "advantages": advantages})[0]
            (gradient,) = torch.autograd.grad(reduced(values, mask, "token-mean"), logits)
            logits.data -= 2.0 * (1 - step / steps) * gradient
        return tree_logp(logits).sum(-1).exp().double().detach()

    method = ReinforcePP(group_baseline=group, num_generations=4)
    assert far(trained(method)[None], told[None]) < 0.02
    assert far(ref_logp.sum(-1).exp().double()[None], told[None]) > 0.2

    class Clamped(ReinforcePP):  # the KL of every token held above 0, as some released code does
        def advantages(self, reward, logp, ref_logp, mask, beta):
            return super().advantages(reward, torch.maximum(logp, ref_logp), ref_logp, mask, beta)

    assert far(trained(Clamped(group_baseline=group, num_generations=4))[None], told[None]) > 0.02


def test_optimum_of_reinforce_pp_is_pi_star():
    problem = table()
    told = problem.ref * (problem.reward / 0.3).exp()
    torch.testing.assert_close(
        ReinforcePP(beta=0.3).optimum(problem), told / told.sum(-1, keepdim=True)
    )
