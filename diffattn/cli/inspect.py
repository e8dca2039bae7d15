"""`diffattn inspect`: what a method would compute on a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..analysis.errors import CommandError, user_errors
from ..attention_config import AttentionConfig
from ..functional import make_plan
from ..grid import TokenGrid
from ..kernels.plan.plan import Plan
from ..methods import config
from .output import check_png


def inspect(
    method: Annotated[str, typer.Option(help="Attention method.")] = "auto",
    frames: Annotated[int, typer.Option(help="Latent frames.")] = 21,
    height: Annotated[int, typer.Option(help="Token rows of a frame.")] = 45,
    width: Annotated[int, typer.Option(help="Token columns of a frame.")] = 80,
    text: Annotated[int, typer.Option(help="Text tokens of the same sequence.")] = 0,
    text_first: Annotated[bool, typer.Option("--text-first", help="Text before the video.")] = False,
    density: Annotated[float | None, typer.Option(help="Share of the products between visual tokens, 0 to 1.")] = None,
    options: Annotated[str, typer.Option(help="The method's other options, as JSON.")] = "{}",
    layer: Annotated[int, typer.Option(help="Self-attention layer; VMoBA partitions differ by layer.")] = 0,
    seed: Annotated[int, typer.Option(help="Of random queries and keys, where a method needs some.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The png to draw the map into.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a method computes on a grid of tokens, and draw its attention map."""
    if output is not None:
        check_png(output, force)
    with user_errors(ValueError, TypeError):
        chosen = _config(method, density, options)
        grid = TokenGrid(frames, height, width, text, text_first)
        plan = _plan(chosen, grid, layer, seed)
    about = describe(chosen, grid, plan)
    if output is not None:
        from ..analysis.pictures import draw_plan

        with user_errors(ImportError):
            draw_plan(plan, output, title=f"{method} on {grid}, density {plan.density:.3f}")
        about["picture"] = str(output)
    if as_json:
        typer.echo(json.dumps(about, indent=2))
        return
    for name, value in about.items():
        typer.echo(f"{name.replace('_', ' '):<16} {_text(value)}")


def describe(chosen: AttentionConfig, grid: TokenGrid, plan: Plan) -> dict:
    """The facts that are printed, as JSON-ready values."""
    from ..methods import NeighborhoodConfig

    about = {
        "method": chosen.method,
        "grid": str(grid),
        "tokens": grid.tokens,
        "density": round(plan.density, 4),
        "level_shares": {f"pool {pool}": round(share, 4) for pool, share in plan.level_density.items()},
        "speed_up_bound": round(1 / plan.density, 2),
        "padding": round(plan.order.shape[-1] / grid.tokens - 1, 4),
        "tiles": [f"{plan.block_q}x{lists.tile}" for lists in plan.lists],
    }
    if isinstance(chosen, NeighborhoodConfig):
        report = chosen.report(grid)
        about |= {"window": list(report.window), "stride": list(report.stride), "tile": list(report.tile)}
        about |= {"in_windows": round(report.tokens, 4), "partial_tiles": round(report.partial, 4)}
    return about


def _config(method: str, density: float | None, options: str) -> AttentionConfig:
    try:
        given = json.loads(options)
    except json.JSONDecodeError as error:
        raise CommandError(f"--options is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise CommandError(f"--options must be a JSON object, got {options}")
    return config(method, **given, **({} if density is None else {"density": density}))


def _plan(chosen: AttentionConfig, grid: TokenGrid, layer: int, seed: int) -> Plan:
    if not chosen.dynamic:
        return make_plan(chosen, grid, layer=layer)
    from ..analysis.synthetic import structured_qkv

    query, key, value = structured_qkv(grid, heads=1, seed=seed)
    return make_plan(chosen, grid, query, key, value=value, layer=layer)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{part} at {name}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
