"""Which denoising step is running, asked of those who know: the pipeline, the scheduler, the timestep."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn


class PresentScheduler:
    """The scheduler that a pipeline has when it is asked: users replace `pipe.scheduler` between two calls.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): held weakly; a transformer alone has no scheduler. The scheduler
            it has now is asked for when the pipeline is gone and another one runs the transformer.
    """

    def __init__(self, pipe: Any) -> None:
        scheduler = None if isinstance(pipe, nn.Module) else getattr(pipe, "scheduler", None)
        self._pipe = (lambda: None) if scheduler is None else weakref.ref(pipe)
        self._first = (lambda: None) if scheduler is None else weakref.ref(scheduler)

    def __call__(self) -> Any:
        """The scheduler, or None where there is none any more."""
        pipe = self._pipe()
        return self._first() if pipe is None else getattr(pipe, "scheduler", None)

    def __deepcopy__(self, memo: dict) -> PresentScheduler:
        return self

    def __reduce__(self) -> tuple:
        return PresentScheduler, (None,)


def find_step(context: Any, scheduler: Any, timestep: torch.Tensor | None) -> tuple[int, int] | None:
    """`(step, steps)` of the denoising, or None where nobody knows.

    A scheduler of second order (Heun) calls the model twice a step; both calls have the same number.

    Args:
        context (`CacheContext` or `str`, *optional*): what the pipeline said through `cache_context`.
        scheduler (`SchedulerMixin`, *optional*): the scheduler of the run.
        timestep (`torch.Tensor`, *optional*): the timestep the transformer was called with, any shape.
    """
    # before diffusers 0.41 a context was no more than a name
    call, calls = getattr(context, "step_index", None), getattr(context, "num_inference_steps", None)
    if None in (call, calls):
        call, calls = find_call(scheduler, timestep)
    if call is None or call >= calls:
        return None
    order = getattr(scheduler, "order", 1)
    return call // order, -(-calls // order)


def find_call(scheduler: Any, timestep: torch.Tensor | None) -> tuple[int | None, int]:
    """Which of its timesteps a scheduler is at, and how many there are; None while it does not run."""
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or getattr(scheduler, "num_inference_steps", None) is None:
        return None, 0
    call = getattr(scheduler, "step_index", None)
    if call is None:
        call = getattr(scheduler, "begin_index", None)
    if call is None:
        call = _step_of(timestep, timesteps)
    if call is None and hasattr(scheduler, "step_index"):
        call = 0
    return call, len(timesteps)


def _step_of(timestep: torch.Tensor | None, timesteps: torch.Tensor) -> int | None:
    """Where a run that nobody counts is, or one that begins late (video-to-video of Wan) before its first step."""
    if timestep is None:
        return None
    # image-to-video sets the timesteps of known frames to 0, the largest is the one of the step
    found = (timesteps == timestep.max().to(timesteps)).nonzero().flatten()
    # of two alike a scheduler begins with the second, see `index_for_timestep`
    return int(found[:2][-1]) if len(found) else None
