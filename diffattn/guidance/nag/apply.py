"""Turns normalised attention guidance on."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...integration.progress import PresentScheduler
from ...models.text_inputs import text_inputs_for
from ..cfg import PipelineCfg
from ..guidance_hook import find_guidance
from .config import NAGConfig
from .defaults import defaults_for
from .hook import NAGHook, find_nag
from .negative import embed_negative


def attach_nag(pipe: Any, transformers: list[nn.Module], config: NAGConfig, cfg_scale: float | None = None) -> None:
    """Guide the transformers of a pipeline away from a negative prompt, in place of an earlier one.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): whose encoder embeds the negative prompt.
        transformers (`list[nn.Module]`): of it.
        config ([`NAGConfig`]): the negative prompt and how strong it is.
        cfg_scale (`float`, *optional*): as in [`guide`].

    Raises:
        ValueError: a family whose text arrives in an unknown way, or as [`embed_negative`]. Nothing is changed then.
    """
    hooks, embedded = [], {}
    cfg_pipe = None if isinstance(pipe, nn.Module) else pipe
    for transformer in transformers:
        text = text_inputs_for(transformer)
        filled = config.filled(defaults_for(text))
        if text.model not in embedded:
            embedded[text.model] = {} if filled.is_off else embed_negative(pipe, config, text)
        cfg = PipelineCfg(cfg_pipe, cfg_scale, affine=False)
        hooks.append(NAGHook(transformer, filled, embedded[text.model], cfg, PresentScheduler(pipe)))
    for transformer, hook in zip(transformers, hooks):
        _replace(transformer, hook)


def _replace(transformer: nn.Module, hook: NAGHook) -> None:
    """Under head guidance, whose hook comes first, see [`GuidanceHook.attach`]."""
    before, heads = find_nag(transformer), find_guidance(transformer)
    for old in filter(None, (before, heads)):
        old.detach()
    for new in filter(None, (hook, heads)):
        new.attach()


def describe_nag(hook: NAGHook) -> dict[str, Any]:
    """JSON-ready settings, and what was guided so far."""
    config, owner = hook.config, hook.transformer
    return {
        "model": type(owner).__name__,
        "negative": config.negative if config.negative_embeds is None else "given as embeddings",
        **config.formula_options(),
        "start": config.start,
        "stop": config.stop,
        "text": "cross-attention" if hook.text.cross_attention is not None else "joint sequence",
        "guided_forwards": hook.forwards,
        "guided_calls": hook.calls,
    }


def nag_line(about: dict[str, Any]) -> str:
    """The same as text."""
    off = about["scale"] == 1 or about["alpha"] == 0
    acted = f"{about['guided_calls']} attention calls in {about['guided_forwards']} forwards"
    part = (
        ""
        if (about["start"], about["stop"]) == (0, 1)
        else f", from {about['start']:g} to {about['stop']:g} of the run"
    )
    return (
        f"negative prompt {about['negative']!r} by {about['text']}, scale {about['scale']:g}, tau {about['tau']:g}, "
        f"alpha {about['alpha']:g}, {about['norm']}{part}; {'off' if off else acted}"
    )
