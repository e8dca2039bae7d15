"""The one hook on a transformer: tells a handler which step and which token grid a forward has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from .._compat import CacheContextListener, add_listener, context_name, find_listener, remove_listener
from ..models.adapter import Adapter, NoGrid
from .handler import AttentionHandler
from .progress import find_step

logger = logging.get_logger(__name__)

HOOK = "diffattn"
OUTSIDE_GRAPHS = "diffattn reads step and grid before each forward: compile the transformer itself, or its blocks"


class SparseAttentionHook(CacheContextListener):
    """Before each forward: the grid from the inputs, the step from the pipeline, the scheduler or the timestep.

    It sits in torch's own hooks of the module, so that the forward belongs to whoever wraps it: accelerate, diffusers.

    Args:
        handler ([`AttentionHandler`]): to be told.
        adapter ([`Adapter`]): of the transformer.
        processors (`list[tuple[nn.Module, object]]`): attention modules and the processors that were put into them.
    """

    def __init__(self, handler: AttentionHandler, adapter: Adapter, processors: list[tuple[nn.Module, Any]]) -> None:
        super().__init__()
        self.handler, self.adapter, self.processors = handler, adapter, processors
        self._said: set[str] = set()

    def attach(self, transformer: nn.Module) -> None:
        """Put it on a transformer."""
        self._names = [name for name in inspect.signature(type(transformer).forward).parameters if name != "self"]
        add_listener(transformer, self, HOOK)
        self._handle = transformer.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def detach(self, transformer: nn.Module) -> None:
        """Take it off."""
        self._handle.remove()
        remove_listener(transformer, HOOK)
        self.handler.forget_runs()

    # torch runs hooks of a compiled module before its graph; the hook is no graph of its own
    @torch.compiler.disable(reason=OUTSIDE_GRAPHS)
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        handler, inputs = self.handler, dict(zip(self._names, args), **kwargs)
        self._name_replaced_processors(module)
        timestep = inputs.get("timestep", inputs.get("timesteps"))
        scheduler = handler.scheduler()
        handler.begin_step(find_step(self.context, scheduler, timestep))
        try:
            grid = handler.fixed_grid or self.adapter.grid(module, inputs)
            adapter, seen = self.adapter, (module, inputs)
            references = () if handler.fixed_grid else adapter.references(*seen)
            before = adapter.tokens_before_grid(*seen)
            handler.begin_forward(grid, before, tile=adapter.tile(*seen), references=references)
        except NoGrid as error:
            handler.begin_forward(None, reason=str(error))
        handler.begin_pass(context_name(self.context), getattr(scheduler, "timesteps", None))

    def _name_replaced_processors(self, module: nn.Module) -> None:
        # while guidance runs a pass, its own processors stand before some of ours
        replaced = [
            (attention, ours)
            for attention, ours in self.processors
            if getattr(attention.processor, "sparse", attention.processor) is not ours
        ]
        if not replaced:
            return
        attention, ours = replaced[0]
        message = (
            f"{len(replaced)} of the {len(self.processors)} attention processors that diffattn put into "
            f"{type(module).__name__} were replaced since, {ours.layer.name} by {type(attention.processor).__name__} "
            "(fuse_qkv_projections, set_attn_processor and IP-Adapters do that): these layers are dense until "
            "diffattn.enable is called again"
        )
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)


def find_hook(transformer: nn.Module) -> SparseAttentionHook | None:
    """The hook of a transformer that diffattn serves."""
    return find_listener(transformer, HOOK)
