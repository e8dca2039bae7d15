"""Densities of many heads from the error of each at several densities; it knows no model."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def lower_envelope(cost: np.ndarray, error: np.ndarray) -> list[int]:
    """The points of a curve on its lower convex envelope, by ascending cost, as far as the error falls.

    >>> lower_envelope(np.array([0.1, 0.2, 0.3, 0.4]), np.array([9.0, 8.0, 1.0, 2.0]))
    [0, 2]
    """
    kept: list[int] = []
    for point in np.lexsort((error, cost)):
        if kept and error[point] >= error[kept[-1]]:
            continue
        while len(kept) > 1 and _slope(cost, error, kept[-2], kept[-1]) >= _slope(cost, error, kept[-2], point):
            kept.pop()
        kept.append(int(point))
    return kept


def _slope(cost: np.ndarray, error: np.ndarray, one: int, other: int) -> float:
    run = cost[other] - cost[one]
    return (error[other] - error[one]) / run if run > 0 else -np.inf


def allocate(
    densities: np.ndarray,
    cost: np.ndarray,
    error: np.ndarray,
    weight: np.ndarray,
    *,
    budget: float | None = None,
    allowed: float | None = None,
) -> tuple[np.ndarray, float, float]:
    """The densities with the least sum of errors at a mean cost, or with the least mean cost at a sum of errors.

    On the convex envelope of every curve the best choice is that of one Lagrange multiplier: all heads go up as long
    as that lowers the error by more than the multiplier times the cost. The last head stops in between two points.

    Args:
        densities (`np.ndarray`): `(D,)`, what may be asked for, ascending.
        cost, error (`np.ndarray`): `(N, D)`, density reached and error made by N heads.
        weight (`np.ndarray`): `(N,)`, share of each in the mean cost, of sum 1.
        budget (`float`): mean cost, at most.
        allowed (`float`): sum of errors, at most; give one of the two.

    Returns:
        `tuple`: densities `(N,)`, the mean cost and the sum of errors.

    >>> error = np.array([[4.0, 1.0, 0.5], [1.0, 0.8, 0.7]])
    >>> cost = np.array([[0.1, 0.2, 0.3]] * 2)
    >>> allocate(cost[0], cost, error, np.array([0.5, 0.5]), budget=0.15)
    (array([0.2, 0.1]), 0.15000000000000002, 2.0)
    """
    envelopes = [lower_envelope(*curve) for curve in zip(cost, error)]
    at = np.array([envelope[0] for envelope in envelopes])
    rows = np.arange(len(at))
    chosen, spent, made = densities[at].astype(float), float(weight @ cost[rows, at]), float(error[rows, at].sum())
    for head, low, high in _moves(envelopes, cost, error, weight):
        more, less = weight[head] * (cost[head, high] - cost[head, low]), error[head, low] - error[head, high]
        left = (budget - spent) / more if budget is not None else (made - allowed) / less
        share = min(1.0, max(0.0, left))
        chosen[head] = densities[low] + share * (densities[high] - densities[low])
        spent, made = spent + share * more, made - share * less
        if share < 1:
            break
    return chosen, spent, made


def _moves(envelopes: list[list[int]], cost: np.ndarray, error: np.ndarray, weight: np.ndarray) -> list[tuple]:
    """`(head, point, next point)` by descending gain per cost; along one envelope gains descend by themselves."""
    moves = [(head, *pair) for head, points in enumerate(envelopes) for pair in pairwise(points)]
    return sorted(moves, key=lambda move: (_slope(cost[move[0]], error[move[0]], *move[1:]) / weight[move[0]], move))
