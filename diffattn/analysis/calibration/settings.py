"""What a calibration measures, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ...schedule import Schedule
from .runs import Probe

CANDIDATES = (0.07, 0.1, 0.15, 0.22, 0.33, 0.5)  # for a mean of the third; for another one in proportion
MOST = 0.95  # candidates above it are as good as dense
PROBES = ("layer", "head")
CHECKS = 2  # runs of each prompt in the end: as calibrated, and with one density for all


@dataclass(frozen=True)
class Settings:
    """What is measured of every prompt.

    Args:
        parts (`int`, *optional*, defaults to 3): of the sparse steps of a run, with densities of their own.
        probe (`str`, *optional*, defaults to `"layer"`): whether the effect on the prediction is measured for every
            layer, or for every head, which takes as many times more runs as a layer has heads.
        samples (`int`, *optional*, defaults to 2): steps of each part in which errors are measured.
        candidates (`tuple[float, ...]`, *optional*): densities at which errors are measured, ascending; by default
            from about half to three times the density that is asked for.
    """

    parts: int = 3
    probe: str = "layer"
    samples: int = 2
    candidates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("parts", "samples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.probe not in PROBES:
            raise ValueError(f"probe must be one of {', '.join(PROBES)}, got {self.probe!r}")
        if self.candidates is None:
            return
        object.__setattr__(self, "candidates", tuple(self.candidates))
        ascending = list(self.candidates) == sorted(set(self.candidates))
        if not self.candidates or not ascending or not 0 < self.candidates[0] <= self.candidates[-1] < 1:
            raise ValueError(f"candidates must ascend, all between 0 and 1, got {self.candidates!r}")

    def around(self, density: float) -> Settings:
        """The same with candidates, those by default around a density."""
        if self.candidates is not None:
            return self
        scaled = (round(candidate * density / CANDIDATES[2], 4) for candidate in CANDIDATES)
        return replace(self, candidates=tuple(candidate for candidate in scaled if candidate < MOST))


@dataclass(frozen=True)
class Layout:
    """The steps and layers that run sparse.

    Args:
        steps (`int`): of a run.
        parts (`tuple[range, ...]`): the steps of each part.
        layers (`tuple[int, ...]`): numbers of the sparse layers.
        total_layers (`int`): self-attention layers of the model.
        heads (`int`): of each layer.
    """

    steps: int
    parts: tuple[range, ...]
    layers: tuple[int, ...]
    total_layers: int
    heads: int

    @classmethod
    def of(cls, schedule: Schedule, steps: int, layers: int, heads: int, parts: int) -> Layout:
        """Cut the sparse steps of a schedule into parts that are as long as each other.

        Raises:
            ValueError: the schedule leaves nothing to calibrate.
        """
        sparse = schedule.sparse_steps(steps)
        chosen = tuple(layer for layer in range(layers) if not schedule.is_dense_layer(layer, layers))
        if not len(sparse) or not chosen:
            raise ValueError(f"every step or every layer is dense: {schedule}, {steps} steps, {layers} layers")
        count = min(parts, len(sparse))
        bounds = [round(part * len(sparse) / count) for part in range(count + 1)]
        return cls(steps, tuple(sparse[a:b] for a, b in pairwise(bounds)), chosen, layers, heads)

    @property
    def ends(self) -> tuple[float, ...]:
        """Where the parts end, as shares of the run."""
        return (*(part.stop / self.steps for part in self.parts[:-1]), 1.0)

    def sampled(self, samples: int) -> tuple[tuple[int, ...], ...]:
        """Some steps of each part, evenly spaced."""
        return tuple(
            tuple(sorted({part[(2 * i + 1) * len(part) // (2 * samples)] for i in range(samples)}))
            for part in self.parts
        )

    def probe_runs(self, probe: str, turn: int) -> list[dict[int, Probe]]:
        """What runs sparse in the steps of each run; another `turn` brings the same to other steps."""
        heads = [(head,) for head in range(self.heads)] if probe == "head" else [tuple(range(self.heads))]
        targets = [(layer, own) for layer in self.layers for own in heads]
        runs: list[dict[int, Probe]] = []
        for number, part in enumerate(self.parts):
            for place, target in enumerate(targets):
                run, step = divmod(place, len(part))
                runs += [{}] * (run + 1 - len(runs))
                runs[run] = {**runs[run], part[(step + turn) % len(part)]: (number, *target)}
        return runs


@dataclass(frozen=True)
class Estimate:
    """The cost of a calibration.

    Args:
        prompts (`int`): prompts.
        runs (`int`): dense runs of the pipeline, or nearly dense ones, all prompts together.
        steps (`int`): denoising steps in them.
        evaluations (`int`): sparse attention calls beside them, of every layer, for each pass of the model.
        sparse_calls (`float`): their cost in attention calls, by the products they compute.
    """

    prompts: int
    runs: int
    steps: int
    evaluations: int
    sparse_calls: float

    @classmethod
    def of(cls, settings: Settings, layout: Layout, prompts: int, rounds: int) -> Estimate:
        """The cost for so many prompts, with so many rounds of checks."""
        probes = len(layout.probe_runs(settings.probe, 0))
        runs = prompts * (1 + probes + len(layout.parts) + CHECKS + rounds - 1)
        sampled = prompts * len(layout.layers) * sum(map(len, layout.sampled(settings.samples)))
        total = math.fsum(settings.candidates)
        return cls(prompts, runs, runs * layout.steps, sampled * len(settings.candidates), sampled * total)

    def __str__(self) -> str:
        return (
            f"{self.runs} runs of the pipeline for {self.prompts} prompts, {self.steps:,} denoising steps, without "
            f"decoding; {self.evaluations:,} sparse attention calls for each pass of the model besides, which compute "
            f"as much as {self.sparse_calls:,.0f} dense ones"
        )


def nearest(density: float, candidates: Sequence[float]) -> int:
    """Number of the candidate that is nearest to a density, by their ratio."""
    return min(range(len(candidates)), key=lambda at: abs(math.log(candidates[at] / density)))
