"""Turns guidance by perturbed heads on and off."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .._compat import unwrap_module
from ..attention_config import AttentionConfig
from ..integration.apply import find_transformers
from ..integration.progress import PresentScheduler
from .cfg import PipelineCfg
from .engine import Perturber
from .guidance_config import takes_guidance_options
from .guidance_hook import GuidanceHook, find_guidance
from .head_names import resolve_heads
from .head_set import HeadSet
from .model import map_model
from .nag.apply import attach_nag
from .nag.config import NAGConfig
from .nag.hook import find_nag
from .phases import make_phases
from .presets import find_preset, preset_for


@takes_guidance_options
def guide(
    pipe: Any,
    heads: Any = None,
    *,
    layers: Iterable[int | str] | None = None,
    skip_blocks: Iterable[int | str] | None = None,
    strength: float | None = None,
    cfg_scale: float | None = None,
    local: AttentionConfig | None = None,
    share_prefix: bool = True,
    **options: Any,
) -> None:
    """Guide a pipeline away from what its transformer makes with perturbed attention heads, or of a negative prompt.

    With a [`NAGConfig`] in place of heads: away from a negative prompt, without classifier-free guidance; no other
    option but `cfg_scale` goes with it. Both kinds may be on at once, and each call replaces guidance of its kind.
    The rest is about heads.

    Every prediction becomes `v_c + (g - 1)(v_c - v_u) + w (v_c - v_p)`. The scale g and the unconditional prediction
    `v_u` belong to the pipeline's classifier-free guidance, if there is any. The perturbed prediction `v_p` comes from
    an extra pass, which starts at the first perturbed block. Perturbing all heads of a layer is PAG or STG-A, skipping
    blocks is SLG or STG-R.

    Offload, step caches, layerwise casting and sparse attention may be turned on and off before or after. Several
    threads may run a guided transformer at the same time.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to guide: all transformers of a pipeline, or one transformer.
        heads (*optional*): a [`NAGConfig`]; or `(layer, head)` pairs, with the layer by number or qualified name;
            `{(layer, head): strength}`; a [`HeadSet`]; the name of a preset, a JSON file or a repository of the Hub
            with one. Without heads, layers and blocks: the preset of the model.
        layers (`list`, *optional*): layers to perturb in all their heads, by number or qualified name.
        skip_blocks (`list`, *optional*): blocks to skip in the perturbed pass, by number or qualified name.
        strength (`float`, *optional*, defaults to 1.0): u, from 0 to 1: each head gives `O + u (target - O)`.
            Multiplies the strengths that heads have of their own.
        cfg_scale (`float`, *optional*): g, where it is needed and the pipeline does not reveal it: with `rescale`,
            with PixArt, or if a copy of `pipe` runs.
        local ([`AttentionConfig`], *optional*): the sparse attention of `target="local"`, [`NeighborhoodConfig`] by
            default.
        share_prefix (`bool`, *optional*, defaults to `True`): start the extra pass at its first perturbed block. The
            result is the same; it costs memory for the inputs of one block and the attention output of one layer.
        options (*optional*): the fields of [`GuidanceConfig`]; by default those of the head set.

    Raises:
        TypeError: `pipe` has no supported transformer, or an option that does not exist.
        ValueError: unknown heads, layers or presets, options out of range, a head set of another model, or a pipeline
            whose classifier-free guidance is not of the form `u + g (c - u)`; a negative prompt that cannot be
            embedded or cannot reach the transformer. Nothing is changed then.

    Example:

    ```python
    >>> diffattn.guide(pipe, heads=[(7, 3), (9, 11)], scale=3.0, strength=0.5)
    >>> image = pipe(prompt).images[0]
    >>> diffattn.unguide(pipe)
    ```
    """
    transformers = _guidable_transformers(pipe)
    if isinstance(heads, NAGConfig):
        _refuse_head_options(layers, skip_blocks, strength, local, *options.values())
        attach_nag(pipe, transformers, heads, cfg_scale)
        return
    hooks = []
    for transformer in transformers:
        found = _read_heads(transformer, heads, layers, skip_blocks)
        config = found.guidance.changed(**options)
        if options.get("scale") is not None and config.apply_to == "uncond":
            raise ValueError(
                "scale has no meaning with apply_to='uncond', which perturbs the pass with the negative prompt"
            )
        perturber = Perturber(transformer, local, share_prefix)
        found = resolve_heads(perturber.model, found, strength=strength, guidance=config)
        cfg = PipelineCfg(None if isinstance(pipe, nn.Module) else pipe, cfg_scale)
        phases = make_phases(perturber.model, found)
        hooks.append(GuidanceHook(perturber, config, phases, cfg, PresentScheduler(pipe)))
    unguide_heads(pipe)
    for hook in hooks:
        hook.attach()


def unguide(pipe: Any) -> None:
    """Remove guidance, by heads and by a negative prompt. No effect on a pipeline that is not guided.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): that [`guide`] was called with.
    """
    unguide_heads(pipe)
    unguide_text(pipe)


def unguide_heads(pipe: Any) -> None:
    """Remove guidance by heads."""
    for hook in filter(None, map(find_guidance, find_transformers(pipe))):
        hook.detach()


def unguide_text(pipe: Any) -> None:
    """Remove guidance by a negative prompt."""
    for hook in filter(None, map(find_nag, find_transformers(pipe))):
        hook.detach()


def _refuse_head_options(*options: Any) -> None:
    if any(option is not None for option in options):
        raise TypeError("a NAGConfig goes without options of head guidance: set its own fields, or call guide twice")


def _read_heads(transformer: nn.Module, heads: Any, layers: Any, skip_blocks: Any) -> HeadSet:
    """The head set of this transformer that was asked for."""
    if heads is None and layers is None and skip_blocks is None:
        heads = preset_for(transformer)
    elif isinstance(heads, str):
        preset = find_preset(heads)
        heads = HeadSet.load(heads) if preset is None else preset.heads(transformer)
    elif isinstance(heads, Path):
        heads = HeadSet.load(heads)
    return resolve_heads(map_model(transformer), heads, layers=layers, skip_blocks=skip_blocks)


def _guidable_transformers(pipe: Any) -> list[nn.Module]:
    found = find_transformers(pipe)
    parts = [pipe] if isinstance(pipe, nn.Module) else pipe.components.values()
    for part in parts:
        whole = isinstance(part, nn.Module) and unwrap_module(part) in found
        if whole and (part is not unwrap_module(part) or part._compiled_call_impl is not None):
            raise ValueError(
                f"{type(unwrap_module(part)).__name__} is compiled as a whole, which leaves no room for a second pass "
                "from the middle: compile its blocks instead, with compile_repeated_blocks()"
            )
    return found
