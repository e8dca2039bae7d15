"""One run of a pipeline, dense or sparse: its video and its cost."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..attention_config import AttentionConfig
from ..integration.apply import disable, enable, find_transformers
from ..integration.hook import find_hook
from ..kernels.plan.plan import Plan
from ..schedule import Schedule
from .summary import summary


@dataclass(frozen=True)
class Trial:
    """What [`run_trial`] measured.

    Args:
        frames (`np.ndarray`): `(frames, height, width, 3)` float32 from 0 to 1.
        seconds (`float`): of the whole call: text encoder, denoising, VAE.
        density (`float`): of the sparse calls, 1 for a dense run.
        attention_computed (`float`): share of all query-key products computed, dense steps and layers included.
        plans (`dict[int, Plan]`): the last plan of each sparse layer by its number, on the CPU; only
            with `keep_plans`.
    """

    frames: np.ndarray
    seconds: float
    density: float = 1.0
    attention_computed: float = 1.0
    plans: dict[int, Plan] = field(default_factory=dict)

    @property
    def plan(self) -> Plan | None:
        """The plan of the middle sparse layer."""
        planned = list(self.plans.values())
        return planned[len(planned) // 2] if planned else None

    def to_dict(self) -> dict:
        """The numbers, JSON-ready."""
        return {
            "seconds": round(self.seconds, 3),
            "density": round(self.density, 4),
            "attention_computed": round(self.attention_computed, 4),
        }


def run_trial(
    pipe: Any,
    inputs: dict,
    config: AttentionConfig | None = None,
    *,
    schedule: Schedule | None = None,
    impl: str = "auto",
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
    keep_plans: bool = False,
) -> Trial:
    """Run a video pipeline once and leave it dense.

    Args:
        pipe (`DiffusionPipeline`): whose call returns `frames`.
        inputs (`dict`): arguments of the call.
        config ([`AttentionConfig`], *optional*): the method, dense if not given.
        schedule, impl: as in [`enable`].
        seed (`int`, *optional*, defaults to 0): of the CPU generator.
        on_step (`Callable[[int, int], None]`, *optional*): called with `(steps done, steps)` after every step; an
            exception from it ends the run.
        keep_plans (`bool`, *optional*, defaults to `False`): keep the last plan of every sparse layer, which takes
            memory.

    Raises:
        TypeError: an unsupported transformer, or a pipeline that makes no video or, with `on_step`, has no callback
            after its steps.
    """
    if on_step is not None:
        inputs = {**inputs, "callback_on_step_end": _callback(pipe, on_step)}
    if config is not None:
        enable(pipe, config, schedule=schedule, impl=impl)
        for transformer in find_transformers(pipe):
            find_hook(transformer).handler.keep_plans = keep_plans
    try:
        start = time.perf_counter()
        result = pipe(**inputs, generator=torch.Generator("cpu").manual_seed(seed), output_type="np")
        seconds = time.perf_counter() - start
        if not hasattr(result, "frames"):
            raise TypeError(f"{type(pipe).__name__} makes no video")
        frames = np.asarray(result.frames[0])
        return Trial(frames, seconds) if config is None else _measured(pipe, frames, seconds)
    finally:
        if config is not None:
            disable(pipe)


def _measured(pipe: Any, frames: np.ndarray, seconds: float) -> Trial:
    found = summary(pipe)
    layers = [layer for model in found.models for layer in model.layers]
    plans = {layer.index: layer.plan.to("cpu") for layer in layers if layer.plan is not None}
    density = 1.0 if found.density is None else found.density
    computed = 1.0 if found.attention_computed is None else found.attention_computed
    return Trial(frames, seconds, density, computed, plans)


def _callback(pipe: Any, on_step: Callable[[int, int], None]) -> Callable[..., dict]:
    if "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        raise TypeError(f"{type(pipe).__name__} has no callback_on_step_end, so its steps cannot be followed")

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        on_step(step + 1, pipe.num_timesteps)
        return tensors

    return after_step
