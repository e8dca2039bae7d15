"""The choice of densities, against all choices there are."""

from itertools import product

import numpy as np
import pytest

from diffattn.analysis.calibration.allocate import allocate, lower_envelope

DENSITIES = np.array([0.1, 0.2, 0.4, 1.0])


def draw(seed, heads=4):
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.uniform(0.05, 1, (heads, 4)), 1)
    weight = rng.uniform(0.5, 2, heads)
    return cost, rng.uniform(0, 1, (heads, 4)), weight / weight.sum()


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_of_whole_points_at_that_cost_has_less_error(seed):
    cost, error, weight = draw(seed)
    heads = np.arange(len(cost))
    budget = float(weight @ cost[:, 0]) * 0.5 + 0.5 * float(weight @ cost[:, -1])
    chosen, spent, made = allocate(DENSITIES, cost, error, weight, budget=budget)
    every = [np.array(points) for points in product(range(4), repeat=len(cost))]
    affordable = [points for points in every if weight @ cost[heads, points] <= budget + 1e-12]
    assert spent <= budget + 1e-12
    assert made <= min(error[heads, points].sum() for points in affordable) + 1e-12
    assert sum(density not in DENSITIES for density in chosen) <= 1
    # for the error that was made, the cost is what it was
    again, least, reached = allocate(DENSITIES, cost, error, weight, allowed=made)
    assert least == pytest.approx(spent) and reached == pytest.approx(made)
    np.testing.assert_allclose(again, chosen)


def test_the_envelope_is_below_its_curve_and_convex():
    for seed in range(20):
        cost, error = (part[0] for part in draw(seed)[:2])
        points = lower_envelope(cost, error)
        slopes = np.diff(error[points]) / np.diff(cost[points])
        assert (slopes < 0).all() and (np.diff(slopes) >= 0).all()
        reach = cost >= cost[points[0]]
        assert (np.interp(cost[reach], cost[points], error[points]) <= error[reach] + 1e-12).all()


def test_more_budget_than_needed_is_left():
    cost, error = np.array([[0.1, 0.2, 0.4, 1.0]] * 2), np.array([[3.0, 1.0, 0.0, 0.0]] * 2)
    chosen, spent, made = allocate(DENSITIES, cost, error, np.array([0.5, 0.5]), budget=0.9)
    assert chosen.tolist() == [0.4, 0.4] and (spent, made) == (pytest.approx(0.4), 0)
