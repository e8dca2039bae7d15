"""What `benchmarks.attention` measures: inputs, random block lists, and what float64 says about the result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from diffattn.kernels.plan.plan import Plan
from diffattn.kernels.plan.tile_list import TileList
from torch import Tensor

SAMPLED = 24  # query tokens per head that are compared with float64
MASKED = 5  # keys at the end that nobody attends to, as padded text: it turns the log-weights on


@dataclass(frozen=True)
class Case:
    """One shape: the inputs are the same for all densities and candidates.

    Args:
        tokens (`int`): S, a multiple of both tile sizes.
        dim (`int`): D.
        tiles (`tuple[int, int]`): rows of a query tile and of a KV tile.
    """

    device: str
    dtype: torch.dtype
    tokens: int
    dim: int
    tiles: tuple[int, int] = (128, 128)
    batch: int = 1
    heads: int = 8

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """query, key, value `(B, S, H, D)`."""
        generator = torch.Generator().manual_seed(self.tokens + self.dim)
        shape = (3, self.batch, self.tokens, self.heads, self.dim)
        return tuple(torch.randn(shape, generator=generator).to(self.device, self.dtype))

    @cached_property
    def grad(self) -> Tensor:
        """A gradient of out, `(B, S, H, D)`."""
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(self.inputs[0].shape, generator=generator, device=self.device).to(self.dtype)

    @cached_property
    def rows(self) -> Tensor:
        """`(R,)` int64, the sampled query tokens, from the first to the last."""
        return torch.linspace(0, self.tokens - 1, min(SAMPLED, self.tokens), device=self.device).long()

    @property
    def products(self) -> float:
        """Floating-point operations of dense attention, forward."""
        return 4.0 * self.batch * self.heads * self.tokens**2 * self.dim

    def blocks(self, density: float) -> Tensor:
        """`(1, H, NQ, NK)` bool, KV tiles drawn for each query tile of each head; no row without any."""
        block_q, tile = self.tiles
        shape = (1, self.heads, self.tokens // block_q, self.tokens // tile)
        draws = torch.rand(shape, generator=torch.Generator().manual_seed(7))
        first = draws.argmin(-1, keepdim=True)
        return (draws < density).scatter(-1, first, True).to(self.device)

    def plan(self, blocks: Tensor) -> Plan:
        """Those lists as a plan; all but full ones ignore the last keys."""
        order = torch.arange(self.tokens, device=self.device, dtype=torch.int32)[None, None]
        plan = Plan(self.tokens, order, (TileList.from_mask(blocks, self.tiles[1]),), self.tiles[0])
        return plan if bool(blocks.all()) else plan.with_key_mask(self._key_mask())

    def _key_mask(self) -> Tensor:
        return torch.arange(self.tokens, device=self.device).expand(self.batch, -1) < self.tokens - MASKED

    def seen(self, blocks: Tensor | None, masked: bool) -> Tensor:
        """`(1, H|1, R, S)` bool, keys of the sampled queries; None for all blocks."""
        if blocks is None:
            return torch.ones(1, 1, len(self.rows), self.tokens, dtype=torch.bool, device=self.device)
        seen = blocks[:, :, self.rows // self.tiles[0]].repeat_interleave(self.tiles[1], -1)
        return seen & self._key_mask()[:1] if masked else seen


def sampled_attention(case: Case, seen: Tensor, dtype: torch.dtype, backward: bool = False) -> list[Tensor]:
    """Masked softmax in plain torch at the sampled queries, sums in `dtype`.

    Returns:
        `list[torch.Tensor]`: out `(B, R, H, D)` and lse `(B, H, R)`; with `backward` the gradients of query at the
        sampled queries, and of key and value, of `sum(out * case.grad)` over the sampled queries.
    """
    query, key, value = (tensor.detach().to(dtype).requires_grad_(backward) for tensor in case.inputs)
    q, k, v = query[:, case.rows].transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    scores = (q @ k.mT * case.dim**-0.5).masked_fill(~seen, -torch.inf)
    peak = scores.amax(-1, keepdim=True)
    weights = (scores - peak).exp()
    if (
        dtype != torch.float64
    ):  # fused kernels round probabilities to the dtype of value, torch's before it adds them up
        weights = weights.to(case.dtype).to(dtype)
    total = weights.sum(-1, keepdim=True)
    out = (weights @ v / total).transpose(1, 2)
    if not backward:
        return [out.to(case.dtype) if dtype != torch.float64 else out, (peak + total.log())[..., 0]]
    grads = torch.autograd.grad(out, (query, key, value), case.grad[:, case.rows].to(dtype))
    return [grads[0][:, case.rows], *grads[1:]]


def error_and_budget(got: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest error, and what is allowed: twice that of plain torch in the same dtype, plus rounding."""
    rounding = 4 * torch.finfo(got.dtype).eps * float(exact.abs().max())
    error, plain_error = (float((x.double() - exact).abs().max()) for x in (got, plain))
    return error, 2 * plain_error + rounding
