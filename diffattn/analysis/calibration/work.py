"""The runs of a calibration, each done once: their results are in a log from which it resumes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...attention_config import AttentionConfig
from ...hunting.log import SearchLog, fingerprint
from ...hunting.prompts import PromptSeed
from ...schedule import Schedule
from .meters import Survey
from .runs import Reference, Runs
from .settings import Estimate, Layout, Settings


@dataclass(frozen=True)
class Measured:
    """What was measured of one prompt.

    Args:
        errors (`np.ndarray`): `(parts, layers, candidates, heads)`, squared error of the output of a step.
        reached (`np.ndarray`): `(parts, layers, candidates)`, density.
        probes (`list`): `[part, layer, heads, change of the prediction, error of the heads]`, both squared.
        part_errors (`list[float]`): squared relative error of the result where one part is sparse.
    """

    errors: np.ndarray
    reached: np.ndarray
    probes: list[list]
    part_errors: list[float]


class Work(AbstractContextManager):
    """Does what the log lacks, and shows a bar of denoising steps.

    Args:
        pipe, base, schedule, options: see [`Runs`].
        pairs (`list[PromptSeed]`): prompts and seeds.
        settings, layout: what is measured, and where.
        density (`float`): of probes and parts.
        log ([`SearchLog`]): of results.
        cost ([`Estimate`], *optional*): shown in a bar; no bar without it.
    """

    def __init__(
        self, pipe: Any, base: AttentionConfig, schedule: Schedule, options: dict, pairs: Sequence[PromptSeed],
        settings: Settings, layout: Layout, density: float, log: SearchLog, cost: Estimate | None = None,
    ) -> None:  # fmt: skip
        self.bar = tqdm(total=cost and cost.steps, desc="calibrate", unit="step", disable=cost is None)
        self.runs = Runs(pipe, base, schedule, options, lambda step: self.bar.update())
        self.pairs, self.settings, self.layout, self.density, self.log = pairs, settings, layout, density, log
        self._references: dict[int, Reference] = {}

    def __exit__(self, *error: Any) -> None:
        self.bar.close()

    def measure(self, prompt: int) -> Measured:
        """All that is measured of a prompt before densities are chosen."""
        errors, reached = self._once(("survey", prompt), lambda: self._survey(prompt))
        probes = []
        for number, run in enumerate(self.layout.probe_runs(self.settings.probe, prompt)):
            probes += self._once(("probes", prompt, number), partial(self._probe, prompt, run))
        parts = [
            self._once(("part", prompt, number), partial(self._part, prompt, steps))
            for number, steps in enumerate(self.layout.parts)
        ]
        return Measured(np.array(errors), np.array(reached), probes, parts)

    def check(self, prompt: int, config: AttentionConfig) -> float:
        """Squared relative error of the result of a prompt with a method."""

        def run() -> float:
            return self.runs.error(self.pairs[prompt], self._reference(prompt), config)

        return self._once(("check", prompt, fingerprint(config.to_dict())), run, self.layout.steps)

    def _once(self, key: tuple, run: Any, unseen_steps: int = 0) -> Any:
        """What the log has under a key, or what `run` gives; `unseen_steps` are those that call no `on_step`."""
        if key not in self.log:
            self.log.add([(key, run())])
            self.bar.update(unseen_steps)
        else:
            self.bar.update(self.layout.steps)
        return self.log[key]

    def _survey(self, prompt: int) -> list:
        sampled = self.layout.sampled(self.settings.samples)
        at = {step for steps in sampled for step in steps}
        self._references[prompt], survey = self.runs.survey(self.pairs[prompt], self.settings.candidates, at)
        self._check(survey)
        means = [
            [[sum(table[step, layer] for step in steps) / len(steps) for layer in self.layout.layers]
             for steps in sampled]
            for table in (survey.errors, survey.reached)
        ]  # fmt: skip
        return [[[layer.tolist() for layer in part] for part in table] for table in means]

    def _check(self, survey: Survey) -> None:
        if survey.steps != self.layout.steps:
            raise ValueError(
                f"the run has {survey.steps} steps, {self.layout.steps} were expected: give num_inference_steps"
            )
        if not survey.errors:
            raise ValueError("no self-attention call that diffattn supports was made in the sparse steps of this run")

    def _probe(self, prompt: int, probes: dict) -> list:
        found = self.runs.probe(self.pairs[prompt], self._reference(prompt), self.density, probes)
        return [[*probes[step][:2], list(probes[step][2]), *found[step]] for step in probes]

    def _part(self, prompt: int, steps: range) -> float:
        heads = self.layout.heads
        return self.runs.part_error(self.pairs[prompt], self._reference(prompt), self.density, steps, heads)

    def _reference(self, prompt: int) -> Reference:
        """The dense run of a prompt; a resumed calibration needs it again."""
        if prompt not in self._references:
            self._references[prompt] = self.runs.survey(self.pairs[prompt], (), set())[0]
        return self._references[prompt]
