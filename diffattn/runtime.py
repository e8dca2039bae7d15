"""What a run knows while it goes on: step, token grid, plans; shared by all transformers of a pipeline."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from .config import AttentionConfig
from .grid import TokenGrid
from .kernels.attend import attend
from .kernels.plan import Plan
from .schedule import Schedule

logger = logging.get_logger(__name__)

KEPT_PLANS = 8  # static plans: one per token grid and device, a run needs one or two


@dataclass
class Layer:
    """One self-attention module of a model and what happened in it."""

    name: str
    index: int
    dense: bool
    plan: Plan | None = None
    sparse_calls: int = 0
    dense_calls: Counter = field(default_factory=Counter)

    def count_dense(self, reason: str) -> None:
        """Note one dense call."""
        self.dense_calls[reason] += 1


class Runtime:
    """Decides, call by call, whether attention is sparse, makes or finds the plan, and runs it.

    Args:
        config ([`AttentionConfig`]): the method.
        schedule ([`Schedule`]): dense steps and layers.
        impl (`str`): implementation of the kernel, see [`attend`].
        scheduler (`SchedulerMixin`, *optional*): tells the step where the pipeline does not.
    """

    def __init__(self, config: AttentionConfig, schedule: Schedule, impl: str, scheduler: Any = None) -> None:
        self.config, self.schedule, self.impl, self.scheduler = config, schedule, impl, scheduler
        self.video: tuple[int, int, int] | None = None
        self.text_first = False
        self.step: tuple[int, int] | None = None
        self.dense_step = False
        self.grid: TokenGrid | None = None
        self._plans: dict[Any, Plan] = {}
        self._warned = False

    def begin_forward(self, video: tuple[int, int, int], text_first: bool, step: tuple[int, int] | None) -> None:
        """A transformer starts: `video` is its token grid, `step` is `(step, steps)` where known."""
        self.video, self.text_first, self.step = video, text_first, step
        self.dense_step = step is not None and self.schedule.is_dense_step(*step)
        if step is None and not self.schedule.every_step_alike and not self._warned:
            self._warned = True
            logger.warning(
                f"the denoising step is not known here, so no step stays dense in spite of {self.schedule}: enable "
                "the whole pipeline, or call the transformer within "
                "`cache_context(name, step_index=, num_inference_steps=)`"
            )

    def decide(
        self, layer: Layer, query: Tensor, key: Tensor, attn_mask: Tensor | None
    ) -> tuple[Plan | None, Tensor | None, str]:
        """`(plan, key mask, "")`, or `(None, None, reason)` where the call stays dense."""
        if self.dense_step:
            return None, None, "dense step"
        if layer.dense:
            return None, None, "dense layer"
        if self.video is None:
            return None, None, "the transformer was not entered through its forward"
        text = query.shape[1] - self.video[0] * self.video[1] * self.video[2]
        if text < 0:
            return None, None, f"{query.shape[1]} tokens are fewer than the grid {self.video}"
        key_mask = None
        if attn_mask is not None:
            key_mask = as_key_mask(attn_mask, query.shape[0], query.shape[1])
            if key_mask is None:
                return None, None, "a mask that is not a key mask"
        self.grid = TokenGrid(*self.video, text=text, text_first=self.text_first)
        return self._plan(self.grid, layer, query, key), key_mask, ""

    def run(
        self,
        layer: Layer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: Plan,
        key_mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        """Sparse attention `(B, S, H, D)`."""
        layer.plan = plan
        layer.sparse_calls += 1
        if key_mask is not None:
            plan = plan.with_key_mask(key_mask)
        return attend(query, key, value, plan, scale=scale, impl=self.impl)

    @torch.no_grad()
    def _plan(self, grid: TokenGrid, layer: Layer, query: Tensor, key: Tensor) -> Plan:
        if self.config.dynamic:
            return self.config.plan(grid, query, key, layer=layer.index)
        at = (grid, query.device)
        if at not in self._plans:
            while len(self._plans) >= KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[at] = self.config.plan(grid, layer=layer.index, device=query.device)
        return self._plans[at]


def as_key_mask(mask: Tensor, batch: int, tokens: int) -> Tensor | None:
    """A `(B|1, 1, 1, S)` or `(B, S)` boolean mask as `(B, S)`, None where it is something else."""
    if mask.dtype != torch.bool or mask.shape[-1] != tokens or mask.numel() not in (tokens, batch * tokens):
        return None
    return mask.reshape(-1, tokens).expand(batch, tokens)
