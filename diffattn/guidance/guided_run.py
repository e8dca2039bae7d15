"""A pipeline that is guided for a while, by heads that change from run to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..integration.apply import find_transformers
from .apply_guidance import guide, unguide_heads
from .guidance_hook import GuidanceHook, find_guidance
from .head_names import resolve_heads
from .model import ModelMap
from .phases import Phase, make_phases, stack_selections
from .selection import Selection, make_selection


class Guided:
    """A guided pipeline whose heads may change between runs.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): the one that [`guide`] was called with.
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
        """Their cost in whole passes: blocks that ran over all blocks."""
        return sum(hook.cost for hook in self.hooks)

    def set_heads(self, heads: Any, strength: float | None = None) -> None:
        """Use other heads from the next step on, with the same settings.

        Args:
            heads: as in [`guide`].
            strength (`float`, *optional*): as in [`guide`].
        """
        for hook in self.hooks:
            found = resolve_heads(hook.perturber.model, heads, strength=strength, guidance=hook.config)
            hook.phases = make_phases(hook.perturber.model, found)

    def set_heads_per_sample(self, heads: Sequence[Any], strength: float | None = None) -> None:
        """Use other heads for every sample of the batch: the heads of one sample do not affect the others.

        Args:
            heads (`list`): for each conditional sample of the batch, heads as in [`guide`]; `[]` for none.
            strength (`float`, *optional*): as in [`guide`].
        """
        for hook in self.hooks:
            model = hook.perturber.model
            sets = [resolve_heads(model, own, strength=strength, guidance=hook.config) for own in heads]
            self._set(hook, stack_selections(model, sets, hook.config))

    def set_strengths(self, strengths: dict[str, torch.Tensor]) -> None:
        """Use u `(1|B, H)` by qualified layer name, as tensors that receive gradients of the prediction."""
        for hook in self.hooks:
            config = hook.config
            selection = make_selection(hook.perturber.model, strengths, target=config.target, rows=config.rows)
            self._set(hook, selection)

    def _set(self, hook: GuidanceHook, selection: Selection) -> None:
        if hook.config.schedule:
            raise ValueError("strengths by sample or as tensors do not go with a schedule")
        hook.phases = {-1: Phase(hook.config.scale, hook.config.rescale, selection)}


@contextmanager
def guided(pipe: Any, heads: Any = (), **options: Any) -> Iterator[Guided]:
    """[`guide`] for the length of a `with` block; without heads it does nothing until some are set.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): what to guide.
        heads, options (*optional*): as in [`guide`].

    Returns:
        [`Guided`]: to change the heads with, and to ask what the perturbed passes cost.

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
        unguide_heads(pipe)
