"""Which denoising step is running, asked of those who know: the pipeline, the scheduler, the timestep."""

from __future__ import annotations

from typing import Any

import torch


def find_step(context: Any, scheduler: Any, timestep: torch.Tensor | None) -> tuple[int, int] | None:
    """`(step, steps)`, both counted in calls of the scheduler, or None where nobody knows.

    Args:
        context (`CacheContext`, *optional*): what the pipeline said through `cache_context`.
        scheduler (`SchedulerMixin`, *optional*): the scheduler of the run.
        timestep (`torch.Tensor`, *optional*): the timestep the transformer was called with, any shape.
    """
    if context is not None and context.step_index is not None and context.num_inference_steps is not None:
        return context.step_index, context.num_inference_steps
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None:
        return None
    if hasattr(scheduler, "step_index"):
        step = scheduler.step_index
        step = getattr(scheduler, "begin_index", None) or 0 if step is None else step
        return (step, len(timesteps)) if step < len(timesteps) else None
    if timestep is None:
        return None
    # image-to-video sets the timesteps of known frames to 0, the largest is the one of the step
    found = (timesteps == timestep.max().to(timesteps)).nonzero()
    return (int(found[0]), len(timesteps)) if len(found) else None
