"""One calibration: its arguments, checked, and how densities come from what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from diffusers.utils import logging

from ...attention_config import AttentionConfig, check_density
from ...attention_config import config as config_by_name
from ...guidance.guidance_hook import find_guidance
from ...guidance.model import map_model
from ...hunting.hunter import sample_weights
from ...hunting.log import fingerprint
from ...hunting.prompts import describe, make_pairs
from ...integration.apply import find_transformers
from ...integration.hook import find_hook
from ...methods.calibrated import CalibratedConfig, check_base
from ...schedule import Schedule
from .allocate import allocate
from .curves import mean_curves, weights
from .runs import count_steps
from .settings import Estimate, Layout, Settings, nearest
from .work import Work

logger = logging.get_logger(__name__)

ROUNDS = 2  # of choosing densities for an error, the second one with what the first one measured
TYPICAL = 0.15  # density of probes where an error is asked for
UNSET = ("prompt", "generator", "return_dict", "output_type", "latents", "num_videos_per_prompt")


class Job:
    """One calibration: its arguments, checked."""

    def __init__(
        self, pipe: Any, prompts: Iterable[str | dict], density: float | None, error: float | None,
        config: str | AttentionConfig, schedule: Schedule | None, seeds: Sequence[int] | None,
        settings: Settings | None, options: dict,
    ) -> None:  # fmt: skip
        self.pipe, self.density, self.error, self.options = pipe, density, error, options
        base = config_by_name(config) if isinstance(config, str) else config
        _check_target(density, error)
        check_base(base)
        target = TYPICAL if density is None else density
        self.base, self.schedule = replace(base, density=target), schedule or Schedule()
        self.settings = (settings or Settings()).around(target)
        if target < self.settings.candidates[0]:
            raise ValueError(f"density {target} is below all candidates: {self.settings.candidates}")
        if taken := [name for name in UNSET if name in options]:
            raise ValueError(f"calibrate sets {', '.join(taken)} itself: give prompts= and seeds=")
        self.pairs = make_pairs(prompts, seeds)
        self.model, layers, heads = _measure_model(pipe)
        steps = count_steps(pipe, options)
        self.layout = Layout.of(self.schedule, steps, layers, heads, self.settings.parts)
        self.reference = nearest(target, self.settings.candidates)

    def estimate(self) -> Estimate:
        """The cost of it."""
        return Estimate.of(self.settings, self.layout, len(self.pairs), 1 if self.error is None else ROUNDS)

    def describe(self) -> dict:
        """Everything that measurements depend on, JSON-ready."""
        scheduler = self.pipe.scheduler
        return {
            "kind": "calibration",
            "pipeline": type(self.pipe).__name__,
            "weights": fingerprint([sample_weights(part) for part in find_transformers(self.pipe)]),
            "scheduler": fingerprint([type(scheduler).__name__, describe(dict(scheduler.config))]),
            "prompts": [pair.fingerprint() for pair in self.pairs],
            "seeds": [pair.seed for pair in self.pairs],
            "options": describe(self.options),
            "method": {name: value for name, value in self.base.to_dict().items() if name != "density"},
            "schedule": self.schedule.to_dict(),
            "settings": {**vars(self.settings), "candidates": list(self.settings.candidates)},
            "reference": self.reference,
        }

    def run(self, work: Work) -> CalibratedConfig:
        """Measure, choose, and check what was chosen."""
        prompts = range(len(self.pairs))
        cost, error = mean_curves([work.measure(prompt) for prompt in prompts], self.layout, self.reference)
        chosen = self.choose(cost, error)
        found = [work.check(prompt, chosen) for prompt in prompts]
        if self.error is not None:
            # errors do not simply add up: scale the curves to what their choice came to
            made = chosen.expected["sum_of_errors"]
            chosen = self.choose(cost, error * (np.mean(found) / made) if made > 0 else error)
            found = [work.check(prompt, chosen) for prompt in prompts]
        even = replace(self.base, density=chosen.expected["density"])
        uniform = np.mean([work.check(prompt, even) for prompt in prompts])
        return self.with_expectation(chosen, np.array(found), float(uniform))

    def choose(self, cost: np.ndarray, error: np.ndarray) -> CalibratedConfig:
        """The densities that the curves ask for."""
        weight, candidates = weights(self.layout), np.array([*self.settings.candidates, 1.0])
        if self.density is not None and self.density < weight @ cost[:, 0]:
            raise ValueError(
                f"density {self.density} is below {weight @ cost[:, 0]:.3f}, which plans have at the lowest candidate "
                f"of {self.settings.candidates}: ask for more, or give lower ones in settings"
            )
        allowed = None if self.error is None else self.error**2
        found, spent, made = allocate(candidates, cost, error, weight, budget=self.density, allowed=allowed)
        table = np.full((len(self.layout.parts), self.layout.total_layers, self.layout.heads), np.nan)
        table[:, self.layout.layers] = np.round(found, 4).reshape(len(self.layout.parts), -1, self.layout.heads)
        densities = [[None if np.isnan(heads[0]) else tuple(heads) for heads in part] for part in table.tolist()]
        expected = {"density": float(np.round(spent, 4)), "sum_of_errors": made}
        return CalibratedConfig(self.base, densities, self.layout.ends, self.model, self.measured(), expected)

    def measured(self) -> dict:
        """What the result was measured on."""
        return {
            "method": self.base.to_dict(),
            "schedule": self.schedule.to_dict(),
            "steps": self.layout.steps,
            "prompts": len(self.pairs),
            "seeds": [pair.seed for pair in self.pairs],
            "options": describe(self.options),
            "probe": self.settings.probe,
        }

    def with_expectation(self, chosen: CalibratedConfig, found: np.ndarray, uniform: float) -> CalibratedConfig:
        """The result, with what the checks measured."""
        steps = np.array([len(part) for part in self.layout.parts])
        layers = [
            None if rows[0] is None else float(np.round(steps @ np.mean(rows, 1) / steps.sum(), 4))
            for rows in zip(*chosen.densities)
        ]
        error, least, most, of_uniform = (
            float(f"{value**0.5:.4g}") for value in (found.mean(), found.min(), found.max(), uniform)
        )
        if error > of_uniform:
            logger.warning(
                f"on its own prompts this calibration has error {error}, one density for all {of_uniform}: "
                "measure more prompts, or probe every head"
            )
        expected = {
            "density": chosen.expected["density"], "layers": layers,
            "error": error, "least_error": least, "most_error": most, "uniform_error": of_uniform,
        }  # fmt: skip
        return replace(chosen, expected=expected)


def _check_target(density: float | None, error: float | None) -> None:
    if (density is None) == (error is None):
        raise ValueError(f"give one of density and error: got {density!r} and {error!r}")
    check_density(density)
    number = isinstance(error, (int, float)) and not isinstance(error, bool)
    if error is not None and not (number and 0 < error < 1):
        raise ValueError(f"error must be between 0 and 1, got {error!r}")


def _measure_model(pipe: Any) -> tuple[str, int, int]:
    """Class, layers and heads of a pipeline's transformers."""
    transformers = find_transformers(pipe)
    if getattr(pipe, "scheduler", None) is None:
        raise TypeError(f"calibrate needs a pipeline with a scheduler, got {type(pipe).__name__}")
    if any(find_hook(part) or find_guidance(part) for part in transformers):
        raise ValueError("calibrate starts from dense, unguided runs: diffattn.disable and diffattn.unguide first")
    if any(getattr(part, "is_cache_enabled", False) for part in transformers):
        raise ValueError("a step cache is on, which would hide errors: call disable_cache() of the transformer first")
    maps = [map_model(part) for part in transformers]
    found = {(each.model, *each.layers.values()) for each in maps}
    heads = set(maps[0].layers.values())
    if len(found) != 1 or len(heads) != 1:
        raise ValueError(f"calibrate needs transformers of equal layers with equal heads, got {sorted(found)}")
    return maps[0].model, len(maps[0].layers), heads.pop()
