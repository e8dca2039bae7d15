"""What a run knows while it goes on: step, token grid, plans; shared by all transformers of a pipeline."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig
from ..grid import TokenGrid
from ..kernels.attend import attend
from ..kernels.backends.dense import break_even
from ..kernels.plan.plan import Plan
from ..models.adapter import NO_OTHERS
from ..schedule import Schedule
from .layer import Layer
from .masks import as_key_mask
from .placement import Placement, in_grid_order, place, reorder_plan

logger = logging.get_logger(__name__)

HELD = "held dense"
KEPT_PLACES = 64
KEPT_PLANS = 8  # static plans: one per token grid and device, a run needs one or two


class Runtime:
    """Decides, call by call, whether attention is sparse, makes or finds the plan, and runs it.

    Args:
        config ([`AttentionConfig`]): the method.
        schedule ([`Schedule`]): dense steps and layers.
        impl (`str`): implementation of the kernel, see [`attend`].
        scheduler (`SchedulerMixin`, *optional*): tells the step where the pipeline does not.
        fixed (`tuple[int, int, int]`, *optional*): the token grid, where it is not to be found in the inputs.
    """

    def __init__(
        self,
        config: AttentionConfig,
        schedule: Schedule,
        impl: str,
        scheduler: Any = None,
        fixed: tuple[int, int, int] | None = None,
    ) -> None:
        self.config, self.schedule, self.impl, self.scheduler, self.fixed = config, schedule, impl, scheduler, fixed
        self.layers: list[Layer] = []
        self.step: tuple[int, int] | None = None
        self.dense_step = False
        self.told = False
        self.grid: TokenGrid | None = None
        self.video: tuple[int, int, int] | None = None
        self.before = NO_OTHERS
        self._no_grid = "the transformer was not entered through its forward"
        self._places: dict[Any, Placement | str] = {}
        self._plans: dict[Any, Plan] = {}
        self._known_mask: tuple[Tensor, tuple, tuple[str | None, Tensor | None]] | None = None
        self._masked: tuple[Plan, Tensor, Plan] | None = None
        self._said: set[str] = set()

    def begin_step(self, step: tuple[int, int] | None) -> None:
        """`step` is `(step, steps)` where known."""
        self.step = step
        self.dense_step = step is not None and self.schedule.is_dense_step(*step)
        for layer in self.layers:
            layer.held = self.dense_step or layer.dense or layer.off
        if step is None and not self.schedule.every_step_alike:
            self.say_once(
                f"the denoising step is not known here, so no step stays dense in spite of {self.schedule}: enable "
                "the whole pipeline, or call the transformer within "
                "`cache_context(name, step_index=, num_inference_steps=)`"
            )

    def begin_forward(self, video: tuple[int, int, int] | None, before: int = NO_OTHERS, reason: str = "") -> None:
        """A transformer starts: `video` is its token grid, or there is a `reason` why there is none."""
        self.video, self.before, self._no_grid = video, before, reason

    def decide(self, layer: Layer, query: Tensor, attn_mask: Any, mask_kind: str) -> tuple[str | None, Tensor | None]:
        """`(None, key mask)`, or `(reason, None)` where the call of a `(B, S, H, D)` query stays dense.

        Read while torch.compile traces: one bool is all that may differ between layers and steps.
        """
        if layer.held:
            return HELD, None
        if self.video is None:
            return self._no_grid, None
        if attn_mask is None:
            return None, None
        if torch.compiler.is_compiling():
            return as_key_mask(attn_mask, query.shape[0], query.shape[1], mask_kind)
        return self._key_mask(attn_mask, query, mask_kind)

    def why_held(self, layer: Layer) -> str:
        """The reason behind `HELD`."""
        return "dense step" if self.dense_step else "dense layer" if layer.dense else "diffattn was disabled"

    def place(self, tokens: int, video: tuple[int, int, int], before: int, ranks: int = 1) -> Placement | str:
        """Where a sequence of so many tokens sits, or why it cannot be sparse; see [`placement.place`]."""
        at = (video, before, tokens, ranks)
        if at not in self._places:
            while len(self._places) >= KEPT_PLACES:
                self._places.pop(next(iter(self._places)))
            self._places[at] = place(*at)
        return self._places[at]

    def run(
        self,
        layer: Layer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        placement: Placement,
        key_mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        """Sparse attention `(B, S, H, D)`."""
        self.grid = placement.grid
        layer.plan = plan = self._plan(placement, layer, query, key)
        layer.sparse_calls += 1
        if key_mask is not None:
            plan = self._mask(plan, key_mask)
        device = query.device.type
        if not torch.is_autocast_enabled(device):
            return attend(query, key, value, plan, scale=scale, impl=self.impl)
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        # as for torch's own attention: kernels know best what to add up in float32
        with torch.autocast(device, enabled=False):
            return attend(query, key, value, plan, scale=scale, impl=self.impl)

    def why_not_worth(self, layer: Layer, query: Tensor, key: Tensor, placement: Placement) -> str | None:
        """With impl `"auto"`, why the model's own dense backend is to serve a call that could be sparse.

        A plan that keeps nearly all, or half of a short sequence, takes longer than dense attention, which keeps the
        rest as well. Of methods that plan every call anew the density asked for decides.
        """
        if self.impl != "auto":
            return None
        if self.config.dynamic:
            density = getattr(self.config, "density", None)
        else:
            density = self._plan(placement, layer, query, key).density
        if density is None or density <= break_even(query.shape[1], query.dtype, query.device.type):
            return None
        return f"plan density {density:.2f}: dense is faster"

    def say_once(self, message: str) -> None:
        """Log a warning, the same one only once in the life of this runtime."""
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    @torch.no_grad()
    def _plan(self, placement: Placement, layer: Layer, query: Tensor, key: Tensor) -> Plan:
        if self.config.dynamic:
            order = placement.order(query.device)
            plan = self.config.plan(placement.grid, *in_grid_order(query, key, order), layer=layer.index)
            return reorder_plan(plan, order)
        at = (placement, query.device)
        plan = self._plans.get(at)
        if plan is None:
            while len(self._plans) >= KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            plan = self.config.plan(placement.grid, layer=layer.index, device=query.device)
            self._warn_if_all(plan, placement.grid)
            plan = self._plans[at] = reorder_plan(plan, placement.order(query.device))
        return plan

    def _key_mask(self, mask: Any, query: Tensor, kind: str) -> tuple[str | None, Tensor | None]:
        """`as_key_mask`, the last answer kept: all layers of a forward are given the same tensor."""
        if not isinstance(mask, Tensor) or mask.is_inference():  # these do not count their changes
            return as_key_mask(mask, query.shape[0], query.shape[1], kind)
        known = self._known_mask
        if known is None or known[0] is not mask or known[1] != (mask._version, query.shape[:2], kind):
            found = as_key_mask(mask, query.shape[0], query.shape[1], kind)
            known = self._known_mask = (mask, (mask._version, query.shape[:2], kind), found)
            self._masked = None
        return known[2]

    def _mask(self, plan: Plan, key_mask: Tensor) -> Plan:
        """The plan with a key mask, the last one kept."""
        known = self._masked
        if known is None or known[0] is not plan or known[1] is not key_mask:
            known = self._masked = (plan, key_mask, plan.with_key_mask(key_mask))
        return known[2]

    def _warn_if_all(self, plan: Plan, grid: TokenGrid) -> None:
        if plan.density < 1 - 1e-9 or getattr(self.config, "density", None) == 1:
            return
        why = ": it needs more than one frame" if grid.frames == 1 else ""
        self.say_once(f"{self.config.method} attention keeps every key on {grid}, nothing is saved{why}")
