"""The diffusion decoder of LTX-2.5: neighbourhood attention without NATTEN, and without a mask of all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._compat import unwrap_module
from ..grid import TokenGrid
from ..kernels.attend import attend, check_impl
from ..kernels.plan.plan import Plan
from ..methods.neighborhood import NeighborhoodConfig
from .kept import Kept

ATTENTION = "LTX2VideoVaeNeighborhoodAttention"


class NeighborhoodAttnProcessor:
    """A processor for `LTX2VideoVaeNeighborhoodAttention`: every token sees the window of its kernel, by a plan.

    Windows are moved inward at the border. diffusers' own processor makes a block mask from a mask of all pairs of
    tokens, S^2 bytes; plans and attention take memory in proportion to S.

    Args:
        original (`Any`): the processor in whose place it runs.
        plans ([`Kept`]): of the whole decoder.
        impl (`str`): implementation of the kernel, see [`~kernels.attend.attend`].
    """

    def __init__(self, original: Any, plans: Kept, impl: str) -> None:
        self.original, self.plans, self.impl = original, plans, impl

    def __call__(self, attn: nn.Module, hidden_states: Tensor, block_mask: None = None) -> Tensor:
        """Attention `(B, F, H, W, C)` of states of that shape; nobody makes a `block_mask`."""
        sizes = tuple(hidden_states.shape[1:4])
        # queries come scaled
        query, key, value = (part.flatten(1, 3) for part in attn.project_qkv(hidden_states))
        plan = self._plan(sizes, tuple(attn.kernel_size), hidden_states.device)
        out = attend(query, key, value, plan, scale=1.0, impl=self.impl)
        return attn.to_out[0](out.flatten(2).unflatten(1, sizes))

    @torch.compiler.disable(reason="plans are made outside of graphs")
    def _plan(self, sizes: tuple[int, int, int], kernel: tuple[int, int, int], device: torch.device) -> Plan:
        config = NeighborhoodConfig(window=kernel)
        return self.plans.get((sizes, kernel, device), lambda: config.plan(TokenGrid(*sizes), device=device))


def enable_decoder(pipe: Any, *, impl: str = "auto") -> None:
    """Let the diffusion decoder of LTX-2.5 attend by plans, in memory proportional to its tokens.

    The result is that of diffusers' processor, which needs a mask of all pairs of tokens (167 GiB for 69x64x96), and
    of NATTEN, which needs a GPU and remote code. A second call replaces the first.

    Args:
        pipe (`DiffusionPipeline` or `ModelMixin`): a pipeline with a `LTX2VideoDiffusionDecoderModel`, or the model;
            changed in place.
        impl (`str`, *optional*, defaults to `"auto"`): kernel implementation, see [`~kernels.attend.attend`].

    Raises:
        TypeError: there is no such decoder.
        ValueError: an unknown `impl`.

    Example:

    ```python
    >>> diffattn.enable_decoder(pipe)
    >>> video = pipe(latents=latents).frames[0]
    >>> diffattn.disable_decoder(pipe)
    ```
    """
    check_impl(impl)
    modules = _attention_modules(pipe)
    disable_decoder(pipe)
    plans = Kept(16)  # of five stages and, with tiling, of their tiles
    for module in modules:
        module.set_processor(NeighborhoodAttnProcessor(module.processor, plans, impl))


def disable_decoder(pipe: Any) -> None:
    """Put every processor that [`enable_decoder`] replaced back, the very same objects."""
    for module in _attention_modules(pipe):
        if isinstance(module.processor, NeighborhoodAttnProcessor):
            module.set_processor(module.processor.original)


def _attention_modules(pipe: Any) -> list[nn.Module]:
    components = getattr(pipe, "components", None)
    parts = components.values() if isinstance(components, dict) else [pipe]
    models = [unwrap_module(part) for part in parts if isinstance(part, nn.Module)]
    found = [module for model in models for module in model.modules() if type(module).__name__ == ATTENTION]
    if not found:
        raise TypeError(
            f"{type(pipe).__name__} has no diffusion decoder of LTX-2.5 (LTX2VideoDiffusionDecoderModel): "
            "diffattn.enable is for transformers"
        )
    return found
