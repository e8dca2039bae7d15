"""Sparse attention and plans as functions, without any model."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_config import AttentionConfig
from .grid import TokenGrid
from .kernels.attend import attend, empty_outputs
from .kernels.handles import object_of
from .kernels.opaque import opaque_operator
from .kernels.plan.plan import Plan
from .methods import config as config_by_name


def make_plan(
    config: str | AttentionConfig,
    grid: TokenGrid,
    query: Tensor | None = None,
    key: Tensor | None = None,
    *,
    value: Tensor | None = None,
    layer: int = 0,
    step: int | None = None,
    steps: int | None = None,
) -> Plan:
    """What a method would compute on `grid`.

    Args:
        config (`str` or [`AttentionConfig`]): a method, by name or configured.
        grid ([`TokenGrid`]): S tokens.
        query, key, value (`torch.Tensor`, *optional*): `(B, S, H, D)`, for methods whose plan depends on them.
        layer (`int`, *optional*, defaults to 0): number of the self-attention layer.
        step, steps (`int`, *optional*): number of the denoising step, from 0, and how many the run has.

    Example:

    >>> plan = make_plan("radial", TokenGrid(21, 30, 52))
    >>> print(plan.describe())
    32760 tokens (+6.7% padding), tiles 128x128, density 0.3658 (0.366 at pool 1)
    """
    config = config_by_name(config) if isinstance(config, str) else config
    if config.dynamic and (query is None or key is None):
        raise ValueError(f"plans of {config.method!r} depend on query and key: give both")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor is not None and (tensor.ndim != 4 or tensor.shape[1] != grid.tokens):
            raise ValueError(f"{name} must be (B, {grid.tokens}, H, D) for the grid {grid}, got {tuple(tensor.shape)}")
    if query is not None and 0 in query.shape:  # nobody to plan for: the plan of any batch entry and head fits
        query = key = value = query.new_zeros(1, grid.tokens, 1, max(query.shape[-1], 1))
    device = "cpu" if query is None else query.device
    with torch.no_grad():
        return config.plan(grid, query, key, value=value, layer=layer, step=step, steps=steps, device=device)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: TokenGrid,
    config: str | AttentionConfig,
    key_mask: Tensor | None = None,
    layer: int = 0,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one layer by a sparse method; one node in graphs of torch.compile.

    Args:
        query (`torch.Tensor`): `(B, S, H, D)`, S the tokens of `grid`, after norm and RoPE.
        key, value (`torch.Tensor`): `(B, S, Hkv, D)`.
        grid ([`TokenGrid`]): where the tokens sit.
        config (`str` or [`AttentionConfig`]): a method, by name or configured.
        key_mask (`torch.Tensor`, *optional*): `(B, S)` bool, False for keys nobody attends to (padded text).
        layer, scale, impl, return_lse: as in [`make_plan`] and [`~kernels.attend.attend`].

    Returns:
        `torch.Tensor`: `(B, S, H, D)`; with `return_lse` also the log-sum-exp `(B, H, S)`.

    Example:

    >>> query, key, value = torch.randn(3, 2, 450, 4, 32)
    >>> sparse_attention(query, key, value, grid=TokenGrid(5, 9, 10), config="radial").shape
    torch.Size([2, 450, 4, 32])
    """
    if torch.compiler.is_compiling():
        at = [grid.frames, grid.height, grid.width, grid.text, int(grid.text_first)]
        method = (config, None) if isinstance(config, str) else (None, config.handle)
        out, lse = sparse_attention_operator(query, key, value, key_mask, at, *method, layer, scale, impl)
        return (out, lse) if return_lse else out
    plan = make_plan(config, grid, query, key, value=value, layer=layer)
    if key_mask is not None:
        plan = plan.with_key_mask(key_mask)
    return attend(query, key, value, plan, scale=scale, impl=impl, return_lse=return_lse)


@opaque_operator("diffattn::sparse_attention", lambda *inputs: empty_outputs(inputs[0], inputs[-1]))
def sparse_attention_operator(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, grid: list[int], name: str | None,
    config: Tensor | None, layer: int, scale: float | None, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Out and lse of [`sparse_attention`], the plan made within.

    `grid` is frames, height, width, text and text_first; the method is a name, or the handle of a configuration.
    """
    *sizes, text, text_first = grid
    return sparse_attention(
        query, key, value, grid=TokenGrid(*sizes, text=text, text_first=bool(text_first)),
        config=name or object_of(config), key_mask=key_mask, layer=layer, scale=scale, impl=impl, return_lse=True,
    )  # fmt: skip
