"""Gao et al.'s forms: known coefficients are recovered, errors are what they say, and peaks are the
maximum.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.statistics.overoptimization import BON, LEAST, RL, fit, fit_seeds


def bon(d, alpha, beta):
    return d * (alpha - beta * d)


def rl(d, alpha, beta):
    return d * (alpha - beta * np.log(d))


FORMS = {BON: bon, RL: rl}
coefficient = st.floats(-5, 5).filter(lambda x: abs(x) > 1e-3)
distances = st.lists(st.integers(1, 60), min_size=3, max_size=12, unique=True).map(
    lambda n: np.array(n) / 10
)


@given(st.sampled_from([BON, RL]), coefficient, coefficient, distances)
def test_known_coefficients_are_recovered(form, alpha, beta, d):
    found = fit(d, FORMS[form](d, alpha, beta), form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), rel=1e-6, abs=1e-6)
    assert (
        found.rmse == pytest.approx(0, abs=1e-9)
        and found.points == len(d)
        and found.largest == d.max()
    )
    assert found.at(d) == pytest.approx(FORMS[form](d, alpha, beta))
    assert found.held_out is None or found.held_out == pytest.approx(0, abs=1e-6)


@given(st.sampled_from([BON, RL]), st.floats(0.1, 5), st.floats(0.3, 5))
def test_peak_is_the_maximum(form, alpha, beta):
    d = np.array([0.5, 1.0, 1.5, 2.0])
    found = fit(d, FORMS[form](d, alpha, beta), form)
    peak = found.peak
    assert float(found.at(peak.d)) == pytest.approx(peak.reward, rel=1e-6)
    assert peak.reward >= found.at(np.linspace(1e-6, 3 * peak.d, 500)).max() - 1e-9
    assert found.peak_is_seen == (0.5 <= peak.d <= 2.0)


def test_peaks_by_the_papers_formulas():
    d = np.linspace(0.5, 3, 6)
    peak = fit(d, bon(d, 1.2, 0.3), BON).peak
    assert (peak.d, peak.reward) == pytest.approx((1.2 / 0.6, 1.2**2 / 1.2))
    peak = fit(d, rl(d, 1.2, 0.6), RL).peak
    assert (peak.d, peak.reward) == pytest.approx(
        (math.exp(1.2 / 0.6 - 1), 0.6 * math.exp(1.2 / 0.6 - 1))
    )


NO_PEAK = [
    (BON, 1, -0.2),
    (BON, -1, 0.2),
    (RL, 1, -0.2),
    (RL, 5, 0.005),
    (RL, -1, 0.2),
    (RL, -0.1, 1),
]


@pytest.mark.parametrize(("form", "alpha", "beta"), NO_PEAK)
def test_form_without_a_peak_claims_none(form, alpha, beta):
    """Convex, a line, and gold that only falls."""
    d = np.linspace(0.5, 3, 6)
    found = fit(d, FORMS[form](d, alpha, beta), form)
    assert found.peak is None and not found.peak_is_seen


@pytest.mark.parametrize(("form", "alpha", "beta"), [(BON, 0.3, 0.5), (RL, 0.2, 0.9)])
def test_peak_before_the_first_point_is_not_seen(form, alpha, beta):
    d = np.linspace(0.5, 3, 6)
    found = fit(d, FORMS[form](d, alpha, beta), form)
    assert 0 < found.peak.d < 0.5 and not found.peak_is_seen


def test_start_takes_no_part_and_order_does_not_matter():
    d = np.array([2.0, 0.0, 0.5, 1.0, 1.5])
    reward = np.array([1.0, 0.0, 0.4, 0.9, 1.1])
    found = fit(d, reward, RL)
    assert found.points == 4 and found == fit(np.sort(d), reward[np.argsort(d)], RL)
    assert fit(d, reward, RL) == fit(
        np.append(d, 0.0), np.append(reward, 7.0), RL
    )  # whatever it says at d = 0
    assert float(found.at(0.0)) == 0.0


@pytest.mark.parametrize("d", [[], [1.0], [0.0, 1.0, 2.0], [1.0, 1.0, 2.0, 2.0]])
def test_too_few_points_are_refused(d):
    with pytest.raises(ValueError, match=f"{LEAST} points of different KL"):
        fit(d, d)
    with pytest.raises(ValueError, match=f"{LEAST} points of different KL"):
        fit_seeds([([1, 2, 3], [1, 2, 3]), (d, d)])


def test_what_cannot_be_a_curve_is_refused():
    for d, reward in (([1, 2, 3], [1, 2]), ([[1, 2, 3]], [[1, 2, 3]])):
        with pytest.raises(ValueError, match="a curve is"):
            fit(d, reward)
    for d, reward in (([1, 2, math.nan], [1, 2, 3]), ([1, 2, 3], [1, math.inf, 3])):
        with pytest.raises(ValueError, match="finite"):
            fit(d, reward)
    with pytest.raises(ValueError, match="there is no form"):
        fit([1, 2, 3], [1, 2, 3], "ppo")
    with pytest.raises(ValueError, match="no curve"):
        fit_seeds([])


@pytest.mark.parametrize("form", [BON, RL])
def test_standard_errors_cover(form):
    rng, d, hits = np.random.default_rng(0), np.linspace(0.4, 4, 12), []
    for _ in range(400):
        found = fit(d, FORMS[form](d, 1.0, 0.3) + 0.1 * rng.normal(size=12), form)
        t = 2.228  # 10 degrees of freedom, 95 %
        hits.append(
            (abs(found.alpha - 1.0) < t * found.alpha_se, abs(found.beta - 0.3) < t * found.beta_se)
        )
        assert found.rmse < 0.25
    assert np.mean(hits, 0) == pytest.approx([0.95, 0.95], abs=0.03)


def test_rmse_is_of_the_residuals():
    d, reward = np.array([0.5, 1.0, 2.0, 3.0]), np.array([0.3, 0.9, 0.7, -0.4])
    found = fit(d, reward, RL)
    assert found.rmse == pytest.approx(math.sqrt(np.mean((reward - found.at(d)) ** 2)))
    slight = [
        fit(d, reward, RL).rmse
        <= math.sqrt(np.mean((reward - rl(d, found.alpha + e, found.beta)) ** 2))
        for e in (-0.05, 0.05)
    ]
    assert all(slight)  # least squares: no other alpha does better


def test_largest_d_are_foretold_by_the_rest():
    d = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    reward = bon(d, 1.0, 0.2)
    reward[-2:] += 0.7  # another law holds beyond
    found = fit(d, reward, BON)
    assert found.held_out == pytest.approx(0.7) and found.rmse < 0.5
    assert fit(d[:3], reward[:3], BON).held_out is None  # too few to leave any out
    assert fit(d[:4], reward[:4], BON).held_out == pytest.approx(0, abs=1e-9)


def test_mean_of_seeds_is_the_mean_curve():
    d = [np.linspace(0.5, 2, 5), np.linspace(0.6, 3, 7), np.linspace(0.4, 2.5, 6)]
    known = [(1.0, 0.3), (1.2, 0.5), (0.9, 0.4)]
    curves = [(x, rl(x, a, b)) for x, (a, b) in zip(d, known, strict=True)]
    found = fit_seeds(curves, RL)
    alphas, betas = zip(*known, strict=True)
    assert (found.alpha, found.beta) == pytest.approx((np.mean(alphas), np.mean(betas)))
    assert found.alpha_se == pytest.approx(np.std(alphas, ddof=1) / math.sqrt(3))
    assert found.beta_se == pytest.approx(np.std(betas, ddof=1) / math.sqrt(3))
    assert (found.seeds, found.points, found.smallest, found.largest) == (3, 18, 0.4, 3.0)
    x = np.linspace(0.1, 3, 9)
    assert found.at(x) == pytest.approx(np.mean([fit(*curve, RL).at(x) for curve in curves], 0))
    assert fit_seeds(curves[:1], RL) == fit(*curves[0], RL)
