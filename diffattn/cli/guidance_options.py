"""Options of guidance by attention heads and by a negative prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..analysis.errors import CommandError, user_errors
from ..guidance import NAGConfig, guide

Heads = Annotated[list[str] | None, typer.Option(help="A head as layer:head, repeated; or a JSON file of `hunt`.")]
Preset = Annotated[str | None, typer.Option(help="Guide by a preset, a JSON file or a Hub repository of heads.")]
Scale = Annotated[float | None, typer.Option(help="w of the guidance by heads.")]
Strength = Annotated[float | None, typer.Option(help="u of the heads, 0 to 1.")]
Nag = Annotated[str | None, typer.Option(help="Negative prompt by attention (NAG), with --guidance-scale 1 too.")]
NagScale = Annotated[float | None, typer.Option(help="s of --nag; the default of the model if not given.")]


def guide_away(pipe: Any, negative: str | None, scale: float | None) -> dict | None:
    """Guide a pipeline away from a negative prompt; returns the options for the sidecar, None without one."""
    if negative is None:
        return None
    with user_errors(ValueError, TypeError):
        guide(pipe, NAGConfig(negative=negative, scale=scale))
    return {"nag": negative, "nag_scale": scale}


def check_nag(negative: str | None, scale: float | None) -> None:
    """Raise where the options contradict each other or are out of range, before anything is loaded."""
    if negative is None and scale is not None:
        raise CommandError("--nag-scale goes with --nag")
    with user_errors(ValueError):
        NAGConfig(negative=negative or "", scale=scale)


def guide_with(
    pipe: Any, heads: list[str] | None, preset: str | None, scale: float | None, strength: float | None
) -> dict | None:
    """Guide a pipeline according to the options; returns their values for the sidecar, None without guidance."""
    check_heads(heads, preset, scale, strength)
    if not heads and preset is None:
        return None
    files = [head for head in heads or () if head.endswith(".json")]
    chosen = Path(files[0]) if files else heads or preset
    with user_errors(ValueError, TypeError, OSError):
        guide(pipe, chosen, scale=scale, strength=strength)
    return {"heads": heads, "preset": preset, "perturbation_scale": scale, "head_strength": strength}


def check_heads(heads: list[str] | None, preset: str | None, scale: float | None, strength: float | None) -> None:
    """Raise where the options contradict each other, before anything is loaded."""
    if heads and preset is not None:
        raise CommandError("give --heads or --guidance-preset, not both")
    if not heads and preset is None and (scale, strength) != (None, None):
        raise CommandError("--perturbation-scale and --head-strength go with --heads or --guidance-preset")
    if heads and len(heads) > 1 and any(head.endswith(".json") for head in heads):
        raise CommandError("give one JSON file of heads, or heads as layer:head")
