"""Turning guidance by perturbed heads on and off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._compat import unwrap_module
from ..attention_config import AttentionConfig
from ..integration.apply import find_transformers
from .cfg import PipelineCfg
from .config import GuidanceConfig
from .engine import Perturber
from .heads import HeadSet, make_selection, resolve_heads
from .hook import GuidanceHook, Phase, find_guidance
from .model import ModelMap, map_model
from .presets import find_preset, preset_for
from .selection import Selection


def guide(
    pipe: Any,
    heads: Any = None,
    *,
    layers: Iterable[int | str] | None = None,
    skip_blocks: Iterable[int | str] | None = None,
    scale: float | None = None,
    strength: float | None = None,
    target: str | None = None,
    rows: str | None = None,
    apply_to: str | None = None,
    start: float | None = None,
    stop: float | None = None,
    rescale: float | None = None,
    schedule: Any = None,
    schedule_by: str | None = None,
    cfg_scale: float | None = None,
    local: AttentionConfig | None = None,
    share_prefix: bool = True,
) -> None:
    """Guide a pipeline away from what its transformer predicts with some attention heads perturbed.

    Every prediction becomes `v_c + (g - 1)(v_c - v_u) + w (v_c - v_p)`: g and `v_u` are the pipeline's own
    classifier-free guidance, if it does any, and `v_p` comes from one more pass, which starts at the first perturbed
    block. Guidance with all heads of a layer is PAG or STG-A, with skipped blocks SLG or STG-R. A second call
    replaces the first.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to guide: all transformers of a pipeline, or one transformer.
        heads (*optional*): `(layer, head)` pairs, with the layer by number or qualified name; `{(layer, head):
            strength}`; a [`HeadSet`]; the name of a preset, a JSON file or a repository of the Hub with one. Without
            heads, layers and blocks: the preset of the model.
        layers (`list`, *optional*): layers of which all heads are perturbed, by number or qualified name.
        skip_blocks (`list`, *optional*): blocks that are skipped.
        scale (`float`, *optional*, defaults to 3.0): w.
        strength (`float`, *optional*, defaults to 1.0): u, from 0 to 1: each head gives `O + u (target - O)`.
            Multiplies the strengths that heads have of their own.
        target, rows, apply_to, start, stop, rescale, schedule, schedule_by (*optional*): see [`GuidanceConfig`].
        cfg_scale (`float`, *optional*): g, where `rescale` or PixArt needs it and the pipeline does not tell.
        local ([`AttentionConfig`], *optional*): the sparse attention of `target="local"`, [`NeighborhoodConfig`] by
            default.
        share_prefix (`bool`, *optional*, defaults to `True`): start the extra pass at its first perturbed block. The
            result is the same; it costs memory for the inputs of one block and the attention output of one layer.

    Raises:
        TypeError: `pipe` has no supported transformer.
        ValueError: unknown heads, layers, presets or options, a head set of another model, or a pipeline whose
            classifier-free guidance is not of the form `u + g (c - u)`. Nothing is changed then.

    Example:

    ```python
    >>> diffattn.guide(pipe, heads=[(7, 3), (9, 11)], scale=3.0, strength=0.5)
    >>> image = pipe(prompt).images[0]
    >>> diffattn.unguide(pipe)
    ```
    """
    options = {"scale": scale, "target": target, "rows": rows, "apply_to": apply_to, "start": start, "stop": stop}
    options |= {"rescale": rescale, "schedule": schedule, "schedule_by": schedule_by}
    hooks = []
    for transformer in _guidable(pipe):
        made = _read(transformer, heads, layers, skip_blocks)
        if scale is not None and (apply_to or made.guidance.apply_to) == "uncond":
            raise ValueError(
                "scale has no meaning with apply_to='uncond', which perturbs v_u of guidance that is there"
            )
        config = made.guidance.changed(**options)
        model = map_model(transformer)
        made = resolve_heads(model, made, strength=strength, guidance=config)
        cfg = PipelineCfg(None if isinstance(pipe, nn.Module) else pipe, cfg_scale)
        perturber = Perturber(transformer, local, share_prefix)
        phases = make_phases(model, made)
        hooks.append(GuidanceHook(perturber, config, phases, cfg, getattr(pipe, "scheduler", None)))
    unguide(pipe)
    for hook in hooks:
        hook.attach()


def unguide(pipe: Any) -> None:
    """Take guidance off again. Without effect where there is none."""
    for transformer in find_transformers(pipe):
        hook = find_guidance(transformer)
        if hook is not None:
            hook.detach()


class Guided:
    """A pipeline while it is guided, with heads that may change between runs.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): that [`guide`] was called with.
    """

    def __init__(self, pipe: Any) -> None:
        self.hooks = [hook for hook in map(find_guidance, find_transformers(pipe)) if hook is not None]

    @property
    def model(self) -> ModelMap:
        """Layers and heads of the (first) transformer."""
        return self.hooks[0].perturber.model

    @property
    def passes(self) -> int:
        """Perturbed passes so far."""
        return sum(hook.passes for hook in self.hooks)

    @property
    def cost(self) -> float:
        """The same in units of whole passes: blocks that ran over all blocks."""
        return sum(hook.cost for hook in self.hooks)

    def set_heads(self, heads: Any, strength: float | None = None) -> None:
        """Other heads from the next step on, the settings as they were.

        Args:
            heads: as in [`guide`].
            strength (`float`, *optional*): as in [`guide`].
        """
        for hook in self.hooks:
            made = resolve_heads(hook.perturber.model, heads, strength=strength, guidance=hook.config)
            hook.phases = make_phases(hook.perturber.model, made)

    def set_heads_per_sample(self, heads: Sequence[Any], strength: float | None = None) -> None:
        """Other heads for every sample of the batch: what one sample perturbs changes no other.

        Args:
            heads (`list`): for each conditional sample of the batch, heads as in [`guide`]; `[]` for none.
            strength (`float`, *optional*): as in [`guide`].
        """
        for hook in self.hooks:
            model = hook.perturber.model
            sets = [resolve_heads(model, own, strength=strength, guidance=hook.config) for own in heads]
            self._set(hook, stack_selections(model, sets, hook.config))

    def set_strengths(self, strengths: dict[str, torch.Tensor]) -> None:
        """u `(1|B, H)` by qualified layer name, as tensors: gradients of the prediction reach them."""
        for hook in self.hooks:
            self._set(hook, make_selection(hook.perturber.model, strengths, (), hook.config))

    def _set(self, hook: GuidanceHook, selection: Selection) -> None:
        if hook.config.schedule:
            raise ValueError("strengths by sample or as tensors do not go with a schedule")
        hook.phases = {-1: Phase(hook.config.scale, hook.config.rescale, selection)}


@contextmanager
def guided(pipe: Any, heads: Any = (), **options: Any) -> Iterator[Guided]:
    """[`guide`] for the time of a `with`; without heads to begin with it does nothing until some are set.

    Example:

    ```python
    >>> with guided(pipe, scale=3.0) as run:
    ...     for candidate in candidates:
    ...         run.set_heads_per_sample(candidate)
    ...         images = pipe(prompts).images
    ```
    """
    guide(pipe, heads, **options)
    try:
        yield Guided(pipe)
    finally:
        unguide(pipe)


def make_phases(model: ModelMap, heads: HeadSet) -> dict[int, Phase]:
    """What each entry of the schedule does, and -1 for there being none."""
    config = heads.guidance
    phases = {-1: Phase(config.scale, config.rescale, heads.select(model, config))}
    for index, (_, changes) in enumerate(config.schedule or ()):
        own = heads
        if {"heads", "layers", "skip_blocks", "strength"} & set(changes):
            chosen = {name: changes[name] for name in ("layers", "skip_blocks", "strength") if name in changes}
            base = changes.get("heads", None if {"layers", "skip_blocks"} & set(changes) else heads)
            own = resolve_heads(model, base, guidance=config, **chosen)
        scale, rescale = changes.get("scale", config.scale), changes.get("rescale", config.rescale)
        phases[index] = Phase(scale, rescale, own.select(model, config))
    return phases


def stack_selections(model: ModelMap, sets: Sequence[HeadSet], config: GuidanceConfig) -> Selection:
    """One selection in which each sample of a batch has its own heads."""
    if len({heads.skip_blocks for heads in sets}) > 1:
        raise ValueError("blocks are skipped for a whole batch: give every sample the same skip_blocks")
    values = {layer: torch.zeros(len(sets), count) for layer, count in model.layers.items()}
    for sample, heads in enumerate(sets):
        for head in heads:
            values[head.layer][sample, head.head] = head.strength
    return make_selection(model, values, sets[0].skip_blocks, config)


def _read(transformer: nn.Module, heads: Any, layers: Any, skip_blocks: Any) -> HeadSet:
    """What was asked for, as a head set of this transformer."""
    if heads is None and layers is None and skip_blocks is None:
        heads = preset_for(transformer)
    elif isinstance(heads, str):
        preset = find_preset(heads)
        heads = HeadSet.load(heads) if preset is None else preset.heads(transformer)
    elif isinstance(heads, Path):
        heads = HeadSet.load(heads)
    return resolve_heads(map_model(transformer), heads, layers=layers, skip_blocks=skip_blocks)


def _guidable(pipe: Any) -> list[nn.Module]:
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
