"""`diffattn density`: what share of the attention a run computes, layer by layer and step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, device_and_dtype, load_pipeline
from . import settings
from .output import check_png
from .recall import PROMPT


def density(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")] = PROMPT,
    method: Annotated[str, typer.Option(help="Attention method.")] = "auto",
    density: settings.Density = None,
    dense_start: settings.DenseStart = 0.2,
    dense_end: Annotated[float, typer.Option(help="Dense last steps: a share below 1, or a count.")] = 0.0,
    dense_layers: settings.DenseLayers = 0,
    impl: settings.Impl = "auto",
    model: settings.Model = TINY,
    frames: settings.Frames = None,
    steps: settings.Steps = None,
    seed: settings.Seed = 0,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The png to draw into.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a model sparsely on PROMPT and print the share of the attention that every layer computes in every step."""
    if output is not None:
        check_png(output, force)
    sizes = {"num_frames": frames, "num_inference_steps": steps}
    inputs = settings.pipeline_options(model, sizes, None, None) | {"prompt": prompt}
    sparse = settings.attention(method, density, dense_start, dense_end, dense_layers, impl)
    if sparse is None:
        raise CommandError("--method must name a sparse method: dense attention has density 1")
    pipe = load_pipeline(model, *device_and_dtype(device, dtype))
    check_frames(pipe, frames)
    shares = _densities(pipe, inputs, sparse, seed)
    if output is not None:
        from ..analysis.pictures import draw_densities

        with user_errors(ImportError):
            draw_densities(shares, output, title=f"{method}: {shares.nanmean():.1%} of the attention computed")
    if as_json:
        cells = [[None if share != share else round(share, 4) for share in row] for row in shares.tolist()]
        typer.echo(json.dumps({"method": method, "layers": cells}, indent=2))
        return
    typer.echo("layer  least  mean   most   over the steps")
    for layer, row in enumerate(shares):
        known = row[~row.isnan()]
        if len(known):
            typer.echo(f"{layer:<5}  {known.min():.3f}  {known.mean():.3f}  {known.max():.3f}")


def _densities(pipe: Any, inputs: dict, sparse: settings.Attention, seed: int) -> Tensor:
    from ..analysis.density import densities

    config, schedule, impl = sparse
    with user_errors(ValueError, TypeError):
        return densities(pipe, inputs, config, schedule=schedule, impl=impl, seed=seed)
