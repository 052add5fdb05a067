"""Gaps under irrelevant variations: rounding of a steep loss passes, a real difference fails."""

import pytest

from harness.check.trials import Trials


def nearly(gaps, loss=0.0):
    trials = Trials.__new__(Trials)  # without a training
    trials.__dict__["_gaps"] = {name: (loss, gap) for name, gap in gaps.items()}
    return trials._nearly("order", "rows in reverse order")


def test_nearly_accepts_rounding():
    assert nearly({"order": 3e-6, "order doubled": 0.0}) == (0.0, 3e-6)
    assert nearly({"order": 1.6e-5, "order doubled": 2e-8}) == (0.0, 1.6e-5)  # a steep loss


@pytest.mark.parametrize(
    ("gaps", "loss", "message"),
    [
        ({"order": 1.6e-5, "order doubled": 1.6e-5}, 0.0, "in double precision, the gradient"),
        ({"order": 2.0, "order doubled": 0.0}, 0.0, "rows in reverse order, the gradient of some"),
        ({"order": 3e-6, "order doubled": 0.0}, 5e-5, "the loss of some step changes"),
    ],
)
def test_nearly_refuses_what_is_no_rounding(gaps, loss, message):
    with pytest.raises(AssertionError, match=message):
        nearly(gaps, loss)
