"""Densities for every layer, head and part of a run, from what their errors do to a model's results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ...attention_config import AttentionConfig
from ...hunting.log import SearchLog
from ...methods.calibrated import CalibratedConfig
from ...schedule import Schedule
from .job import Job
from .settings import Estimate, Settings
from .work import Work

logger = logging.get_logger(__name__)


def calibrate(
    pipe: Any,
    prompts: Iterable[str | dict],
    *,
    density: float | None = None,
    error: float | None = None,
    config: str | AttentionConfig = "auto",
    schedule: Schedule | None = None,
    seeds: Sequence[int] | None = None,
    settings: Settings | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> CalibratedConfig:
    """Spend a density where it counts: more of it in some heads, layers and parts of the run, less in others.

    For each prompt, at a few steps of its dense run, the error of every head's output is measured at several
    densities. One layer or head after the other then runs sparse, on the dense trajectory, and the change of the
    model's prediction tells how much its error counts. Runs in which one part is sparse tell how much the error of
    that part is in the result. Densities that minimise the sum of these errors come from convex envelopes of the
    curves and one multiplier. In the end each prompt runs as calibrated, and with one density for all.

    All is measured within runs of the pipeline, one plan at a time. No step cache may be on.

    Args:
        pipe (`DiffusionPipeline`): dense and unguided; with several transformers, all of the same depth.
        prompts (`list`): a few strings, or dicts of pipeline inputs.
        density (`float`, *optional*): mean share of the products between visual tokens in sparse steps and layers.
        error (`float`, *optional*): norm of the change of the latents at the end of a run, over their norm, root mean
            square over the prompts. Give one of the two.
        config (`str` or [`AttentionConfig`], *optional*, defaults to `"auto"`): dynamic method that takes a density.
        schedule ([`Schedule`], *optional*): dense steps and layers, which stay so; the default of [`Schedule`] if not
            given.
        seeds (`list[int]`, *optional*): one for each prompt; 0, 1, 2, ... by default.
        settings ([`~analysis.calibration.settings.Settings`], *optional*): what is measured; see there.
        resume (`str`, *optional*): folder for a log, from which an interrupted calibration resumes.
        progress (`bool`, *optional*, defaults to `True`): show a bar.
        options (*optional*): arguments of the pipeline, as the runs will have them.

    Returns:
        [`CalibratedConfig`]: for [`enable`]; its `save_pretrained` writes a folder for [`enable`]. `expected` holds
        the mean `density`, that of each of the `layers`, the `error` as above with its least and most among the
        prompts, and the `uniform_error` of one density for all.

    Raises:
        ValueError: a density or error out of range, a method without densities by head, a pipeline that is enabled or
            guided, a call that cannot be sparse (with the reason), or a folder of another calibration.

    Example:

    ```python
    >>> calibrated = diffattn.calibrate(pipe, prompts, density=0.2, num_inference_steps=50)
    >>> calibrated.save_pretrained("calibrated")
    >>> diffattn.enable(pipe, "calibrated")
    ```
    """
    job = Job(pipe, prompts, density, error, config, schedule, seeds, settings, options)
    log = SearchLog(None if resume is None else Path(resume), job.describe())
    cost = job.estimate()
    logger.info(f"calibration: {cost}")
    work = Work(
        pipe, job.base, job.schedule, options, job.pairs, job.settings, job.layout,
        job.settings.candidates[job.reference], log, cost if progress else None,
    )  # fmt: skip
    with work:
        return job.run(work)


def estimate(pipe: Any, prompts: Iterable[str | dict], **arguments: Any) -> Estimate:
    """The cost of [`calibrate`] with these arguments; nothing runs."""
    for name in ("resume", "progress"):
        arguments.pop(name, None)
    names = ("density", "error", "config", "schedule", "seeds", "settings")
    given = [arguments.pop(name, "auto" if name == "config" else None) for name in names]
    return Job(pipe, prompts, *given, arguments).estimate()
