"""What computes attention in `benchmarks.attention`: ours, and what a user would pick instead."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from diffattn import attend

from .case import Case

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Candidate(NamedTuple):
    """One way to compute attention.

    Args:
        name (`str`): as in the table.
        run (`Callable`): query, key, value `(B, S, H, D)` to `(out, lse or None)`.
        blocks (`torch.Tensor`, *optional*): the KV tiles that it computes, None for dense attention.
        masked (`bool`): whether it ignores the masked keys too.
        lse (`bool`): whether it gives lse.
    """

    name: str
    run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
    blocks: Tensor | None = None
    masked: bool = False
    lse: bool = False


def ours(case: Case, blocks: Tensor, impl: str = "auto", lse: bool = True) -> Candidate:
    """`attend` with log-weights and, unless told otherwise, lse."""
    plan = case.plan(blocks)

    def run(query, key, value):
        out = attend(query, key, value, plan, impl=impl, return_lse=lse)
        return out if lse else (out, None)

    return Candidate("diffattn", run, blocks, plan.key_mask is not None, lse)


def dense(case: Case) -> Iterator[Candidate]:
    """Dense attention by every backend; some will refuse."""
    if case.device == "cpu":
        yield Candidate("SDPA", _sdpa)
        return
    for name, backend in BACKENDS.items():
        yield Candidate(name, partial(_sdpa, backend=backend))
    if _importable("xformers"):
        yield Candidate("xformers", _xformers)
    if _importable("flash_attn"):
        yield Candidate("flash-attn", _flash_attn)


def sparse(case: Case, blocks: Tensor) -> Iterator[Candidate]:
    """Other libraries, on the same blocks and without the key mask."""
    yield Candidate("FlexAttention", _flex(case, blocks), blocks, lse=case.device != "cpu")
    if case.device != "cpu" and _importable("flashinfer"):
        yield Candidate("FlashInfer", _flashinfer(case, blocks), blocks)


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _sdpa(query, key, value, backend=None):
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    if backend is None:
        return scaled_dot_product_attention(*heads_first).transpose(1, 2), None
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(*heads_first).transpose(1, 2), None


def _xformers(query, key, value):
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(query, key, value), None


def _flash_attn(query, key, value):
    from flash_attn import flash_attn_func

    return flash_attn_func(query, key, value), None


@cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 256  # past it, every new shape would run uncompiled
    return torch.compile(flex_attention, dynamic=False)


def _flex(case: Case, blocks: Tensor):
    from torch.nn.attention.flex_attention import BlockMask

    counts = blocks.sum(-1, dtype=torch.int32)
    indices = torch.argsort((~blocks).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
    none = torch.zeros_like(counts), torch.zeros_like(indices)
    mask = BlockMask.from_kv_blocks(*none, counts, indices, BLOCK_SIZE=case.tiles)

    def run(query, key, value):
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        if case.device == "cpu":
            return _compiled_flex()(*heads_first, block_mask=mask).transpose(1, 2), None
        out, lse = _compiled_flex()(*heads_first, block_mask=mask, return_lse=True)
        return out.transpose(1, 2), lse

    return run


def _flashinfer(case: Case, blocks: Tensor):
    import flashinfer

    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=case.device)
    wrapper = flashinfer.VariableBlockSparseAttentionWrapper(workspace)
    sizes = [torch.full((case.heads, case.tokens // tile), tile, dtype=torch.int32, device=case.device)
             for tile in case.tiles]  # fmt: skip
    wrapper.plan(blocks[0], *sizes, case.heads, case.heads, case.dim, q_data_type=case.dtype)

    def run(query, key, value):
        heads_first = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return wrapper.run(*heads_first).transpose(0, 1)[None], None

    return run
