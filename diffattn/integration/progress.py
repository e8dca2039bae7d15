"""Which denoising step is running, asked of those who know: the pipeline, the scheduler, the timestep."""

from __future__ import annotations

from typing import Any

import torch


def find_step(context: Any, scheduler: Any, timestep: torch.Tensor | None) -> tuple[int, int] | None:
    """`(step, steps)`, both counted in calls of the scheduler, or None where nobody knows.

    Args:
        context (`CacheContext` or `str`, *optional*): what the pipeline said through `cache_context`.
        scheduler (`SchedulerMixin`, *optional*): the scheduler of the run.
        timestep (`torch.Tensor`, *optional*): the timestep the transformer was called with, any shape.
    """
    # before diffusers 0.41 a context was no more than a name
    said = getattr(context, "step_index", None), getattr(context, "num_inference_steps", None)
    if None not in said:
        return said
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None:
        return None
    step = getattr(scheduler, "step_index", None)
    if step is None and getattr(scheduler, "begin_index", None) is not None:
        step = scheduler.begin_index
    if step is None:
        step = _step_of(timestep, timesteps)
    if step is None and hasattr(scheduler, "step_index"):
        step = 0
    return None if step is None or step >= len(timesteps) else (step, len(timesteps))


def _step_of(timestep: torch.Tensor | None, timesteps: torch.Tensor) -> int | None:
    """Where a run that nobody counts is, or one that begins late (video-to-video of Wan) before its first step."""
    if timestep is None:
        return None
    # image-to-video sets the timesteps of known frames to 0, the largest is the one of the step
    found = (timesteps == timestep.max().to(timesteps)).nonzero().flatten()
    # of two alike a scheduler begins with the second, see `index_for_timestep`
    return int(found[:2][-1]) if len(found) else None
