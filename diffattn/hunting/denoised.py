"""The clean clip that a denoising step predicts, as a differentiable function of the output of the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..integration.progress import find_call
from .runner import as_clips

DECODED = ("Wan", "HunyuanVideoPipeline", "CogVideoX", "StableDiffusion3")
StepObserver = Callable[[Tensor, Tensor, Any], Tensor | None]


@contextmanager
def observed_steps(scheduler: Any, observe: StepObserver) -> Iterator[None]:
    """Call `observe` with the model output, the sample and the timestep of every step of a scheduler, before the step.

    The step goes on with the model output that `observe` returns, if it returns one. A scheduler of second order takes
    two such steps for each of its own.
    """
    before, step = vars(scheduler).get("step"), scheduler.step
    signature = inspect.signature(step)

    def observed(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        instead = observe(given["model_output"], given["sample"], given["timestep"])
        if instead is not None:
            given["model_output"] = instead
        return step(*bound.args, **bound.kwargs)

    scheduler.step = observed
    try:
        yield
    finally:
        if before is None:
            del scheduler.step
        else:
            scheduler.step = before


def clean_sample(scheduler: Any, output: Tensor, sample: Tensor, timestep: Any) -> tuple[Tensor, float]:
    """The predicted sample without noise, and the share of its noise that this step removes.

    Args:
        scheduler (`SchedulerMixin`): of a flow (`sigmas`), or of a diffusion that predicts noise or velocity.
        output, sample (`torch.Tensor`): of the step.
        timestep (`float` or `torch.Tensor`): of the step.

    Returns:
        `tuple`: x0 in the shape of `sample`, and `(sigma - sigma_next) / sigma`, from 0 to 1.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    call, calls = find_call(scheduler, torch.as_tensor(timestep))
    if kind == "flow_prediction":
        sigma, after = (float(value) for value in scheduler.sigmas[call : call + 2])
        return sample - sigma * output, 1 - after / sigma
    if kind not in ("epsilon", "v_prediction") or not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"the gradient screen does not know {type(scheduler).__name__} with prediction_type={kind!r}")
    alphas = scheduler.alphas_cumprod.double()
    alpha = float(alphas[int(timestep)])
    following = float(alphas[int(scheduler.timesteps[call + 1])]) if call + 1 < calls else 1.0
    sigma, after = (((1 - a) / a) ** 0.5 for a in (alpha, following))
    if kind == "epsilon":
        return sample / alpha**0.5 - sigma * output, 1 - after / sigma
    return alpha**0.5 * sample - (1 - alpha) ** 0.5 * output, 1 - after / sigma


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Clips `(B, T, C, H, W)` in 0..1 of latents, decoded differentiably as the pipeline decodes them.

    Raises:
        ValueError: it is not known how this pipeline decodes latents.
    """
    name = type(pipe).__name__
    if not name.startswith(DECODED):
        raise ValueError(
            f"the gradient screen does not know how {name} decodes latents: give decode=, a differentiable function "
            "of the scheduler's sample to clips (B, T, C, H, W) in 0..1"
        )
    config, latents = pipe.vae.config, latents.to(pipe.vae.dtype)
    if name.startswith("CogVideoX"):
        latents = latents.transpose(1, 2)
    if config.get("latents_mean") is not None:
        mean, std = (latents.new_tensor(config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        latents = latents * std + mean
    else:
        latents = latents / config["scaling_factor"] + (config.get("shift_factor") or 0)
    made = pipe.vae.decode(latents, return_dict=False)[0]
    return as_clips((made.transpose(1, 2) if made.ndim == 5 else made) / 2 + 0.5).clamp(0, 1)
