"""How far a method is from dense attention."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffattn import attend

from .contenders import CONTENDERS, ORACLES, best_tokens, contender, dense
from .sources import Sample


@dataclass(frozen=True)
class Result:
    """One contender on one sample or video.

    Args:
        name (`str`): of the contender.
        asked, reached (`float`): density.
        scores (`dict`): what was measured, by name.
        labels (`dict`): what the sample was, to group by.
    """

    name: str
    asked: float
    reached: float
    scores: dict[str, float]
    labels: dict[str, int] = field(default_factory=dict)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of `exact`, over all tokens, heads and channels."""
    return float((out.double() - exact.double()).norm() / exact.double().norm())


@torch.no_grad()
def measure(sample: Sample, densities: Iterable[float]) -> list[Result]:
    """The relative output error of every contender on one sample."""
    exact = dense(sample.query, sample.key, sample.value)
    return [_measure(sample, exact, name, density) for density in densities for name in CONTENDERS]


def _measure(sample: Sample, exact: Tensor, name: str, density: float) -> Result:
    tensors = sample.query, sample.key, sample.value
    if name in ORACLES:
        error = relative_error(best_tokens(*tensors, density, ORACLES[name]), exact)
        return Result(name, density, density, {"error": error}, sample.labels)
    names = dict(zip(("query", "key", "value"), tensors))
    plan = contender(name, density).plan(sample.grid, **names, layer=sample.layer)
    error = relative_error(attend(*tensors, plan), exact)
    return Result(name, density, plan.density, {"error": error}, sample.labels)


def mean(results: list[Result], score: str) -> float:
    """Mean of a score over results."""
    return sum(result.scores[score] for result in results) / len(results)


def grouped(results: list[Result], *labels: str) -> dict[tuple, list[Result]]:
    """Results by `name`, `asked` or any of their labels."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        known = {"name": result.name, "asked": result.asked, **result.labels}
        groups.setdefault(tuple(known[label] for label in labels), []).append(result)
    return groups
