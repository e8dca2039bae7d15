"""The one hook on a transformer: tells the runtime which step and which token grid a forward has."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

from torch import nn

from ._compat import HookRegistry, ModelHook, StateManager
from .models.adapter import Adapter, NoGrid
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
        self.context = _Context()
        self._owner: weakref.ref | None = None

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self._owner = weakref.ref(module)
        return module

    def pre_forward(self, module: nn.Module, *args, **kwargs) -> tuple[tuple, dict]:
        if module is not self._owner():
            raise RuntimeError(
                f"this {type(module).__name__} is a copy of one that diffattn serves, and diffusers' hooks make such "
                "a copy run the weights of the original: call diffattn.disable(copy), then diffattn.enable(copy)"
            )
        self._check_processors(module)
        inputs = dict(zip(_parameters(type(module)), args), **kwargs)
        timestep = inputs.get("timestep", inputs.get("timesteps"))
        self.runtime.begin_step(find_step(self.context.known, self.runtime.scheduler, timestep))
        try:
            grid, reason = self.adapter.grid(module, inputs), ""
        except NoGrid as error:
            grid, reason = None, str(error)
        self.runtime.begin_forward(grid, self.adapter.tokens_before(module, inputs) if grid else "none", reason)
        return args, kwargs

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module

    def _check_processors(self, module: nn.Module) -> None:
        lost = [(attention, ours) for attention, ours in self.served if attention.processor is not ours]
        if lost:
            attention, ours = lost[0]
            self.runtime.say_once(
                f"{len(lost)} of the {len(self.served)} attention processors that diffattn put into "
                f"{type(module).__name__} were replaced since, {ours.layer.name} by "
                f"{type(attention.processor).__name__} (fuse_qkv_projections and set_attn_processor do that): these "
                "layers are dense until diffattn.enable is called again"
            )


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


@functools.cache
def _parameters(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls.forward).parameters if name != "self"]
