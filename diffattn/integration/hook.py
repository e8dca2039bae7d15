"""The one hook on a transformer: tells the runtime which step and which token grid a forward has."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
from torch import nn

from .._compat import ContextParallelSplitHook, HookRegistry, ModelHook, StateManager
from ..models.adapter import Adapter, NoGrid
from .progress import find_step
from .runtime import Runtime

HOOK = "diffattn"
NO_STEP_IN_GRAPHS = (
    "a graph of the whole transformer cannot learn which step it runs, as this pipeline does not use cache_context: "
    "compile the blocks one by one (compile_repeated_blocks, block.compile()), or enable with Schedule(dense_start=0)"
)


class _Context(StateManager):
    """Where `cache_context` leaves what the pipeline knows of the step."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(None)
        self.runtime = runtime
        self.known: Any = None

    def set_context(self, context: Any) -> None:
        """Outside the transformer, and so outside the graph of a compiled one: the place to learn the step."""
        super().set_context(context)
        self.known = context
        step = None if context is None else find_step(context, self.runtime.scheduler, None)
        if step is not None:
            self.runtime.told = True
            self.runtime.begin_step(step)


class SparseAttentionHook(ModelHook):
    """Before each forward: the grid from the inputs, the step from the pipeline, the scheduler or the timestep.

    Args:
        runtime ([`Runtime`]): to be told.
        adapter ([`Adapter`]): of the transformer.
        served (`list[tuple[nn.Module, object]]`): attention modules and the processors that were put into them.
    """

    _is_stateful = True

    def __init__(self, runtime: Runtime, adapter: Adapter, served: list[tuple[nn.Module, Any]]) -> None:
        super().__init__()
        self.runtime, self.adapter, self.served = runtime, adapter, served
        self.context = _Context(runtime)
        self._owner: weakref.ref | None = None
        self._names: list[str] = []

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._owner = weakref.ref(module)
        self._names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        return module

    def pre_forward(self, module: nn.Module, *args, **kwargs) -> tuple[tuple, dict]:
        inputs = dict(zip(self._names, args), **kwargs)
        if not torch.compiler.is_compiling():
            self._check(module)
            timestep = inputs.get("timestep", inputs.get("timesteps"))
            self.runtime.begin_step(find_step(self.context.known, self.runtime.scheduler, timestep))
        elif not (self.runtime.told or self.runtime.schedule.every_step_alike):
            raise RuntimeError(NO_STEP_IN_GRAPHS)
        try:
            grid = self.runtime.fixed or self.adapter.grid(module, inputs)
            self.runtime.begin_forward(grid, self.adapter.tokens_before(module, inputs))
        except NoGrid as error:
            self.runtime.begin_forward(None, reason=str(error))
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module

    def _check(self, module: nn.Module) -> None:
        if module is not self._owner():
            raise RuntimeError(
                f"this {type(module).__name__} is a copy of one that diffattn serves, and diffusers' hooks make such "
                "a copy run the weights of the original: call diffattn.disable(copy), then diffattn.enable(copy)"
            )
        if any(_splits_tokens(hook) for hook in _hooks_before(module, HOOK)):
            raise RuntimeError(
                f"context parallelism was enabled on this {type(module).__name__} after diffattn, which now sees one "
                "rank's share of the tokens: call diffattn.enable again"
            )
        # while guidance runs a pass, its own processors stand before some of ours
        lost = [
            (attention, ours)
            for attention, ours in self.served
            if getattr(attention.processor, "sparse", attention.processor) is not ours
        ]
        if lost:
            attention, ours = lost[0]
            self.runtime.say_once(
                f"{len(lost)} of the {len(self.served)} attention processors that diffattn put into "
                f"{type(module).__name__} were replaced since, {ours.layer.name} by "
                f"{type(attention.processor).__name__} (fuse_qkv_projections and set_attn_processor do that): these "
                "layers are dense until diffattn.enable is called again"
            )


def _hooks_before(module: nn.Module, name: str) -> list[ModelHook]:
    """The hooks of `module` that run before the one called `name` does: those registered later."""
    registry = module._diffusers_hook
    order = registry._hook_order
    return [registry.hooks[later] for later in order[order.index(name) + 1 :]]


def _splits_tokens(hook: ModelHook) -> bool:
    # a share of the timesteps, as Wan has them, does no harm
    return isinstance(hook, ContextParallelSplitHook) and set(hook.metadata) != {"timestep"}


def find_hook(transformer: nn.Module) -> SparseAttentionHook | None:
    """The hook of a transformer that diffattn serves."""
    registry = getattr(transformer, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def add_hook(transformer: nn.Module, hook: SparseAttentionHook) -> None:
    """Put the hook on a transformer."""
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, HOOK)


def remove_hook(transformer: nn.Module) -> None:
    """Take the hook off a transformer."""
    transformer._diffusers_hook.remove_hook(HOOK, recurse=False)
