"""The one hook on a transformer: tells the runtime which step and which token grid a forward has."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ._compat import HookRegistry, ModelHook, StateManager
from .models.adapter import Adapter
from .progress import find_step
from .runtime import Runtime

HOOK = "diffattn"


class _Context(StateManager):
    """Where `cache_context` leaves what the pipeline knows of the step."""

    def __init__(self) -> None:
        super().__init__(None)

    @property
    def known(self) -> Any:
        return self._context


class SparseAttentionHook(ModelHook):
    """Before each forward: the grid from the inputs, the step from the pipeline, the scheduler or the timestep."""

    _is_stateful = True

    def __init__(self, runtime: Runtime, adapter: Adapter) -> None:
        super().__init__()
        self.runtime, self.adapter = runtime, adapter
        self.context = _Context()

    def pre_forward(self, module: nn.Module, *args, **kwargs) -> tuple[tuple, dict]:
        inputs = dict(zip(_parameters(module), args), **kwargs)
        step = find_step(self.context.known, self.runtime.scheduler, inputs.get("timestep"))
        self.runtime.begin_forward(self.adapter.grid(module, inputs), self.adapter.text_first, step)
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


def find_hook(transformer: nn.Module) -> SparseAttentionHook | None:
    """The hook of a transformer that diffattn serves."""
    registry = getattr(transformer, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def add_hook(transformer: nn.Module, hook: SparseAttentionHook) -> None:
    """Put the hook on a transformer."""
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(hook, HOOK)


def remove_hook(transformer: nn.Module) -> None:
    """Take the hook off a transformer, and the registry with it where nothing else is left in it."""
    transformer._diffusers_hook.remove_hook(HOOK, recurse=False)


def _parameters(module: nn.Module) -> list[str]:
    return [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
