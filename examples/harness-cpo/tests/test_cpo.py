"""The loss by hand, what its gradient must do, and the proofs of a small run."""

import math

import torch
from harness_cpo import CPO

from harness.api.registry import installed
from harness.check import Options, check

LOGP = torch.tensor([[[-1.0, -1.0], [-2.0, -3.0]]])


def test_the_loss_by_hand():
    loss, metrics = CPO(beta=0.5, alpha=2.0).loss(LOGP, {"p": torch.tensor([1.0])})
    assert metrics["margin"].tolist() == [0.5 * (-2.0 - -5.0)]
    assert loss.item() == torch.tensor(math.log(1 + math.exp(-1.5)) + 2 * 2.0).item()


def test_doubt_weighs_both_orders():
    method = CPO(beta=0.5)
    (sure, _), (turned, _) = (method.loss(x, {"p": torch.ones(1)}) for x in (LOGP, LOGP.flip(1)))
    doubt, _ = method.loss(LOGP, {"p": torch.tensor([0.75])})
    torch.testing.assert_close(doubt, 0.75 * sure + 0.25 * turned)


def test_the_chosen_rises_and_without_its_likelihood_the_rejected_falls_as_much():
    logp = LOGP.clone().requires_grad_()
    CPO(alpha=0.0).loss(logp, {"p": torch.ones(1)})[0].sum().backward()
    chosen, rejected = logp.grad.sum(-1)[0]
    assert chosen < 0 and chosen == -rejected


def test_the_proofs_of_a_small_run(tmp_path):
    findings = list(
        check(
            "methods", "my_cpo", installed(), Options(full=False, processes=False, results=tmp_path)
        )
    )
    assert [f for f in findings if f.status == "FAILED"] == []
