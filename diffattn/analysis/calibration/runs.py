"""Runs of a pipeline that calibration is made of, for one prompt and seed each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..._compat import quiet_pipeline
from ...attention_config import AttentionConfig
from ...hunting.denoised import observed_steps
from ...hunting.prompts import PromptSeed
from ...integration.apply import disable, enable, find_transformers, install_processors
from ...schedule import Schedule
from .meters import Injection, Meter, Survey, plan_stores

Probe = tuple[int, int, tuple[int, ...]]  # part of the run, layer, heads


@dataclass
class Reference:
    """What the dense run of a prompt gave: the model output of every call of the scheduler's step, and the result."""

    predictions: list[Tensor] = field(default_factory=list)
    result: Tensor | None = None


class Runs:
    """Runs a pipeline dense, with single heads sparse along the dense trajectory, and sparse as a whole.

    Args:
        pipe (`DiffusionPipeline`): with a scheduler.
        base ([`AttentionConfig`]): the method.
        schedule ([`Schedule`]): its dense steps and layers stay dense.
        options (`dict`): arguments of the pipeline.
        on_step (`Callable`): called at every step.
    """

    def __init__(
        self, pipe: Any, base: AttentionConfig, schedule: Schedule, options: dict, on_step: Callable[[int], None]
    ) -> None:
        self.pipe, self.base, self.schedule = pipe, base, schedule
        self.options, self.on_step = {"output_type": "latent", **options}, on_step

    def survey(self, pair: PromptSeed, candidates: Sequence[float], at: set[int]) -> tuple[Reference, Survey]:
        """The dense run, and the errors of all heads at the steps `at`."""
        survey = Survey(self.pipe, self.schedule, self.on_step, self.base, candidates, at)
        reference = Reference()
        with observed_steps(self.pipe.scheduler, lambda output, *_: reference.predictions.append(output.cpu())):
            reference.result = self._run(pair, survey)
        return reference, survey

    def probe(
        self, pair: PromptSeed, reference: Reference, density: float, probes: dict[int, Probe]
    ) -> dict[int, tuple[float, float]]:
        """The squared change of the prediction, and the squared error of the heads that made it, by step.

        In each step other heads run sparse, and the run goes on from the dense prediction.

        Args:
            pair ([`PromptSeed`]): prompt and seed.
            reference ([`Reference`]): of its dense run.
            density (`float`): of these heads.
            probes (`dict`): by step.
        """

        def choose(step: int, layer: int) -> Sequence[int] | None:
            probe = probes.get(step)
            return probe[2] if probe is not None and probe[1] == layer else None

        (plans,) = plan_stores(self.base, [density], self.pipe)
        injection = Injection(self.pipe, self.schedule, self.on_step, plans, choose)
        dense, moved = iter(reference.predictions), dict.fromkeys(probes, 0.0)

        def compare(output: Tensor, *_: Any) -> Tensor:
            expected = next(dense).to(output.device)
            if injection.step in probes:
                moved[injection.step] += float((output.float() - expected.float()).square().sum())
            return expected

        with observed_steps(self.pipe.scheduler, compare):
            self._run(pair, injection)
        return {step: (moved[step], injection.errors.get(step, 0.0)) for step in probes}

    def part_error(self, pair: PromptSeed, reference: Reference, density: float, steps: range, heads: int) -> float:
        """The squared relative error of the result where all layers are sparse in these steps only."""
        (plans,) = plan_stores(self.base, [density], self.pipe)

        def choose(step: int, layer: int) -> Sequence[int] | None:
            return range(heads) if step in steps else None

        injection = Injection(self.pipe, self.schedule, self.on_step, plans, choose)
        return relative_error(self._run(pair, injection), reference.result)

    def error(self, pair: PromptSeed, reference: Reference, config: AttentionConfig) -> float:
        """The squared relative error of the result of a run with a method."""
        enable(self.pipe, config, schedule=self.schedule, impl=plan_stores(self.base, [1.0], self.pipe)[0].impl)
        try:
            return relative_error(self._call(pair), reference.result)
        finally:
            disable(self.pipe)

    def _run(self, pair: PromptSeed, meter: Meter) -> Tensor:
        try:
            for transformer in find_transformers(self.pipe):
                install_processors(transformer, meter)
            return self._call(pair)
        finally:
            disable(self.pipe)

    @torch.no_grad()
    def _call(self, pair: PromptSeed) -> Tensor:
        with quiet_pipeline(self.pipe):
            made = self.pipe(**pair.batch(1), **self.options, return_dict=False)[0]
        return torch.as_tensor(made).float().cpu()


def relative_error(result: Tensor, exact: Tensor) -> float:
    """Squared norm of the difference over that of `exact`."""
    return float((result.double() - exact.double()).square().sum() / exact.double().square().sum())


def count_steps(pipe: Any, options: dict) -> int:
    """Denoising steps of a run with these arguments."""
    for name in ("sigmas", "timesteps"):
        if options.get(name) is not None:
            return len(options[name])
    default = inspect.signature(type(pipe).__call__).parameters["num_inference_steps"].default
    return options.get("num_inference_steps", default)
