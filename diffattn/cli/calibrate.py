"""`diffattn calibrate`: spend a density where a model needs it, and save that for `enable`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, device_and_dtype, load_pipeline
from ..attention_config import SETTINGS_FILE
from . import settings
from .hunt import read_prompts


def calibrate(
    prompts: Annotated[Path, typer.Argument(help="Text file, one prompt a line; each has a seed of its own.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write for `enable`.")],
    density: Annotated[float | None, typer.Option(help="Mean share of the products to compute, 0 to 1.")] = None,
    error: Annotated[float | None, typer.Option(help="Instead: relative error of the result, 0 to 1.")] = None,
    method: Annotated[str, typer.Option(help="Attention method.")] = "auto",
    dense_start: settings.DenseStart = 0.2,
    dense_end: Annotated[float, typer.Option(help="Dense last steps: a share below 1, or a count.")] = 0.0,
    dense_layers: settings.DenseLayers = 0,
    probe: Annotated[str, typer.Option(help="layer, or head, which takes many more runs.")] = "layer",
    parts: Annotated[int, typer.Option(help="Parts of the run with densities of their own.")] = 3,
    samples: Annotated[int, typer.Option(help="Steps of each part to measure errors in.")] = 2,
    resume: Annotated[Path | None, typer.Option(help="Folder of the log, from which to resume.")] = None,
    model: settings.Model = TINY,
    height: settings.Height = None,
    width: settings.Width = None,
    frames: settings.Frames = None,
    steps: settings.Steps = None,
    guidance_scale: settings.GuidanceScale = None,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    only_estimate: Annotated[bool, typer.Option("--estimate", help="Only print the cost.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure on PROMPTS which heads, layers and steps of a model need attention, and share out a density by that."""
    from ..analysis.calibration import Settings, estimate
    from ..analysis.calibration import calibrate as run

    if (output / SETTINGS_FILE).exists() and not (force or only_estimate):
        raise CommandError(f"{output / SETTINGS_FILE} exists; --force overwrites it")
    texts = read_prompts(prompts)
    sizes = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
    options = settings.pipeline_options(model, sizes, None, guidance_scale)
    sparse = settings.attention(method, None, dense_start, dense_end, dense_layers, "auto")
    if sparse is None:
        raise CommandError("--method must name a sparse method")
    with user_errors(ValueError):
        measured = Settings(parts=parts, probe=probe, samples=samples)
    pipe = load_pipeline(model, *device_and_dtype(device, dtype))
    check_frames(pipe, options.get("num_frames"))
    arguments = {"density": density, "error": error, "config": sparse[0], "schedule": sparse[1], "settings": measured}
    with user_errors(ValueError, TypeError):
        cost = estimate(pipe, texts, **arguments, **options)
        typer.echo(json.dumps(vars(cost), indent=2) if as_json and only_estimate else str(cost), err=not only_estimate)
        if only_estimate:
            return
        try:
            found = run(pipe, texts, resume=resume, **arguments, **options)
        except KeyboardInterrupt:
            rest = f"; the same command resumes from {resume}" if resume else ", nothing was written"
            raise CommandError(f"interrupted{rest}") from None
    found.save_pretrained(output)
    if as_json:
        typer.echo(json.dumps(found.expected, indent=2))
        return
    expected = found.expected
    typer.echo(f"layer  density by part ({', '.join(f'to {end:.0%}' for end in found.ends)})")
    for layer, rows in enumerate(zip(*found.densities)):
        means = ("dense" if heads is None else f"{sum(heads) / len(heads):.3f}" for heads in rows)
        typer.echo(f"{layer:<5}  {'  '.join(means)}")
    typer.echo(
        f"{output}: density {expected['density']:.3f}, error {expected['error']:.3g} of the result "
        f"({expected['least_error']:.3g} to {expected['most_error']:.3g}), {expected['uniform_error']:.3g} with one "
        "density for all"
    )
