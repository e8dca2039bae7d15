"""The guidance of a transformer, as a dictionary and as one line."""

from __future__ import annotations

from typing import Any

from .guidance_hook import GuidanceHook
from .phases import Phase


def describe_guidance(hook: GuidanceHook) -> dict[str, Any]:
    """JSON-ready settings, and the perturbed passes so far.

    `perturbed_passes` counts calls, `whole_passes` the blocks they ran over the blocks there are.
    """
    return {
        "model": hook.perturber.model.model,
        "apply_to": hook.config.apply_to,
        "target": hook.config.target,
        "phases": [_describe_phase(hook, phase) for phase in _phases(hook)],
        "perturbed_passes": hook.passes,
        "whole_passes": hook.cost,
    }


def guidance_line(about: dict[str, Any]) -> str:
    """The same as text."""
    passes = f"{about['perturbed_passes']} perturbed passes"
    if about["perturbed_passes"]:
        passes += f" at the cost of {about['whole_passes']:.1f}"
    if about["apply_to"] == "uncond":
        passes = "no pass added"
    phases = "; then ".join(_phase_line(phase, about["apply_to"]) for phase in about["phases"])
    return f"{phases or 'no heads'}, {about['target']}; {passes}"


def _phases(hook: GuidanceHook) -> list[Phase]:
    """Of the schedule, or the one without a schedule; those that do nothing are left out."""
    numbers = range(len(hook.config.schedule)) if hook.config.schedule else (-1,)
    return [hook.phases[number] for number in numbers if hook.phases[number].selection]


def _describe_phase(hook: GuidanceHook, phase: Phase) -> dict[str, Any]:
    model, selection = hook.perturber.model, phase.selection
    numbers = {name: number for number, name in enumerate(model.layers)}
    heads = [f"{numbers[layer]}:{head}" for layer, values in selection.strengths.items() for head in values.perturbed]
    first = selection.first_block(model) if hook.perturber.share_prefix else 0
    return {
        "scale": phase.scale,
        "heads": heads,
        "skip_blocks": list(selection.skipped),
        "first_block": first or 0,
        "blocks": len(model.blocks),
    }


def _phase_line(phase: dict[str, Any], apply_to: str) -> str:
    parts = ["negative pass" if apply_to == "uncond" else f"scale {phase['scale']:g}"]
    if phase["heads"]:
        parts.append(f"heads {' '.join(phase['heads'])}")
    if phase["skip_blocks"]:
        parts.append(f"skips {' '.join(phase['skip_blocks'])}")
    if apply_to == "cond":
        parts.append(f"replays blocks {phase['first_block']} to {phase['blocks'] - 1}")
    return ", ".join(parts)
