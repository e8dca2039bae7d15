"""Sparse attention in one pipeline: its method, its schedule and what its layers did."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from ..attention_config import AttentionConfig
from ..grid import TokenGrid
from ..schedule import Schedule
from .attention_inputs import AttentionInputs, RunDense
from .block_masks import BlockLists
from .compiled import compiled_attention, compiled_block_attention
from .decision import Dense, Sparse, decide, ordered_ranks, screen, screen_pattern
from .execute import run_decision
from .handler import AttentionHandler
from .kept_plans import Forward
from .layer import Layer
from .plan_store import PlanStore

logger = logging.get_logger(__name__)


class SparseSession(AttentionHandler):
    """Runs the self-attention of one pipeline by plans, from `enable` to `disable`.

    Args:
        config ([`AttentionConfig`]): the method.
        schedule ([`Schedule`]): dense steps and layers.
        impl (`str`): implementation of the kernel, see [`attend`].
        pipe, grid (*optional*): see [`AttentionHandler`].

    Attributes:
        keep_plans (`bool`): whether layers keep their last plan for looking at, which takes memory.
        grid ([`TokenGrid`], *optional*): of the last sparse call.
    """

    def __init__(
        self,
        config: AttentionConfig,
        schedule: Schedule,
        impl: str,
        pipe: Any = None,
        grid: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(pipe, grid)
        self.config, self.schedule, self.impl = config, schedule, impl
        self.plans = PlanStore(config, impl, self.say_once, schedule.refresh)
        self.grid: TokenGrid | None = None
        self.keep_plans = False
        self._said: set[str] = set()

    def is_dense_layer(self, index: int, layers: int) -> bool:
        return self.schedule.is_dense_layer(index, layers)

    def begin_step(self, step: tuple[int, int] | None) -> None:
        state = self.state
        state.step = step
        state.dense_step = step is not None and self.schedule.is_dense_step(*step)
        for layer in self.layers:
            layer.begin_step(state.dense_step)
        if step is None and not self.schedule.every_step_alike:
            self.say_once(
                f"the denoising step is not known, so no step is dense in spite of {self.schedule}: enable the "
                "pipeline that runs (a copy of it with a scheduler of its own is another pipeline), or call the "
                "transformer within `cache_context(name, step_index=, num_inference_steps=)`"
            )

    def begin_pass(self, name: str | None, timesteps: Tensor | None) -> None:
        kept, state = self.plans.kept, self.state
        if kept.refresh == 1:
            return
        why = "the denoising step is not known here" if state.step is None else None
        if torch.is_grad_enabled():  # a backward may plan again, and must come to the same plan
            why = why or "gradients are recorded"
        if why:
            self.say_once(f"{why}: refresh={kept.refresh} has no effect, every call makes its plan")
            kept.begin_forward(None)
            return
        sparse = self.schedule.sparse_steps(state.step[1])
        kept.begin_forward(Forward(*state.step, sparse, name, timesteps, state.grid))

    def forget_runs(self) -> None:
        self.plans.kept.forget()

    def attend(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int = 1) -> Tensor:
        layer, adapter = processor.layer, processor.adapter
        if torch.compiler.is_compiling():
            return self._attend_in_graph(processor, inputs, run_dense, ranks)
        decision = decide(self.plans, self.state, layer, adapter, inputs, ranks)
        self.note(layer, decision)
        if isinstance(decision, Dense):
            return run_dense(inputs)
        return run_decision(decision, self.state, self.impl)

    def _attend_in_graph(self, processor: Any, inputs: AttentionInputs, run_dense: RunDense, ranks: int) -> Tensor:
        """The graph holds what [`screen`] decides; the rest of the decision is taken inside of the operator."""
        layer, adapter = processor.layer, processor.adapter
        found = screen_pattern(self.plans, self.state, layer, adapter, inputs)
        if isinstance(found, BlockLists):
            return compiled_block_attention(*inputs[:3], *found, processor.handle, inputs.scale)
        reason, key_mask = screen(self.state, layer, adapter, inputs) if found is None else (found, None)
        ranks = ordered_ranks(adapter, ranks)
        if reason is not None or isinstance(ranks, str):
            return run_dense(inputs)
        location, scale = self.state.location, inputs.scale
        return compiled_attention(*inputs[:3], key_mask, processor.handle, location, ranks, scale)

    def note(self, layer: Layer, decision: Sparse | Dense) -> None:
        """Count one call of a layer."""
        if isinstance(decision, Dense):
            layer.count_dense(decision.reason)
            return
        if decision.grid is None and not self.plans.native:
            self.say_once(f"{layer.name} and others bring block masks, which run in place of {self.config.method}")
        self.grid = decision.grid or self.grid
        layer.count_sparse(decision.plan, decision.share, self.keep_plans)

    def say_once(self, message: str) -> None:
        """Log a warning, the same one only once from `enable` to `disable`."""
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)
