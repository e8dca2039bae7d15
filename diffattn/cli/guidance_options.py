"""Options of guidance by attention heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..analysis.errors import CommandError, user_errors
from ..guidance import guide

Heads = Annotated[list[str] | None, typer.Option(help="A head as layer:head, repeated; or a JSON file of `hunt`.")]
Preset = Annotated[str | None, typer.Option(help="Guide by a preset, a JSON file or a Hub repository of heads.")]
Scale = Annotated[float | None, typer.Option(help="w of the guidance by heads.")]
Strength = Annotated[float | None, typer.Option(help="u of the heads, 0 to 1.")]


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
