"""Options that several commands share, and their checks before any model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, TINY_DEFAULTS
from ..attention_config import METHODS, AttentionConfig, load_settings
from ..kernels.attend import check_impl
from ..methods import config
from ..schedule import Schedule

OPTION_NAMES = {"num_frames": "frames", "num_inference_steps": "steps"}

Model = Annotated[str, typer.Option(help="Hub id or pipeline folder; 'tiny' is the embedded model.")]
Density = Annotated[float | None, typer.Option(help="Share of the products between visual tokens, 0 to 1.")]
DenseStart = Annotated[float, typer.Option(help="Dense first steps: a share below 1, or a count.")]
DenseLayers = Annotated[int, typer.Option(help="First layers that stay dense.")]
Impl = Annotated[str, typer.Option(help="auto, torch, triton or reference.")]
Height = Annotated[int | None, typer.Option(help="Pixels; the model's own default if not given.")]
Width = Annotated[int | None, typer.Option(help="Pixels.")]
Frames = Annotated[int | None, typer.Option(help="Frames of the video.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
GuidanceScale = Annotated[float | None, typer.Option(help="Classifier-free guidance, 1 is off.")]
Seed = Annotated[int, typer.Option(help="Same seed, same video.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]

Attention = tuple[AttentionConfig, Schedule, str]


def pipeline_options(model: str, sizes: dict[str, int | None], fps: int | None, guidance: float | None) -> dict:
    """Arguments of the pipeline: those given, and the defaults of the embedded model."""
    for name, value in {**sizes, "fps": fps}.items():
        if value is not None and value < 1:
            raise CommandError(f"{OPTION_NAMES.get(name, name)} must be at least 1, got {value}")
    given = {name: value for name, value in {**sizes, "guidance_scale": guidance}.items() if value is not None}
    return {**(TINY_DEFAULTS if model == TINY else {}), **given}


def attention(
    method: str, density: float | None, start: float, end: float, layers: int, impl: str
) -> Attention | None:
    """Method, schedule and implementation, checked before anything is loaded; None is dense.

    A method may be a folder with saved settings, which bring their schedule along.
    """
    with user_errors(ValueError, OSError):
        schedule = Schedule(_count_or_share(start), _count_or_share(end), layers)
        check_impl(impl)
        if method not in METHODS and Path(method).is_dir():
            return (*_saved(method, density, schedule), impl)
        if method != "dense":
            return config(method, **({} if density is None else {"density": density})), schedule, impl
        if density not in (None, 1.0):
            raise ValueError(f"method 'dense' has density 1, got {density}")
    return None


def _saved(folder: str, density: float | None, schedule: Schedule) -> tuple[AttentionConfig, Schedule]:
    found, saved = load_settings(folder)
    if density is not None:
        raise ValueError(f"the density is that of {folder}: leave --density out")
    if saved is not None and schedule not in (Schedule(), saved):
        raise ValueError(f"the dense steps and layers are those of {folder}, {saved}: leave the options for them out")
    return found, saved or schedule


def _count_or_share(value: float) -> float | int:
    return int(value) if value >= 1 and value == int(value) else value
