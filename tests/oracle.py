"""Independent answers to compare with: masked softmax in float64, and what error a dtype may have."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`(B, S, H, D)` inputs and a boolean mask `(B|1, H|1, Sq, S)`: out `(B, Sq, H, D)` and lse `(B, H, Sq)`."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    scores = (scale * query @ key.mT).masked_fill(~mask, -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp()
    return (probs @ value).transpose(1, 2), lse


def assert_as_exact(name: str, got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """`got` errs from the float64 `exact` at most twice as much as the same maths in plain torch, plus rounding."""
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite), f"{name}: infinities or NaN in other places"
    error, allowed = ((x.double() - exact)[finite].abs().max() for x in (got, plain))
    rounding = 4 * torch.finfo(got.dtype).eps * exact[finite].abs().max()
    assert error <= 2 * allowed + rounding, f"{name}: error {error:.2e}, budget {2 * allowed + rounding:.2e}"


def check_attention(attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: Tensor | None = None):
    """Compare `attention(query, key, value) -> (out, lse)` with the masked softmax, at the queries `rows` only."""
    scale = query.shape[-1] ** -0.5
    out, lse = attention(query, key, value)
    if rows is not None:
        query, out, lse = query[:, rows], out[:, rows], lse[:, :, rows]
    plain = dense_attention(query, key, value, mask, scale)
    exact = dense_attention(query.double(), key.double(), value.double(), mask, scale)
    assert_as_exact("out", out, plain[0], exact[0])
    assert_as_exact("lse", lse, plain[1], exact[1])


def mask_rows(plan, rows: Tensor) -> Tensor:
    """The rows `rows` of a level-1 plan's dense mask `(1, 1, rows, S)`, token by token from order and lists."""
    (lists,) = plan.lists
    row_of_token = {int(token): row for row, token in enumerate(plan.order[0, 0].tolist()) if token >= 0}
    tile_of_key = torch.tensor([row_of_token[token] // lists.tile for token in range(plan.tokens)])
    mask = torch.zeros(len(rows), plan.tokens, dtype=torch.bool)
    for index, token in enumerate(rows.tolist()):
        tile = row_of_token[token] // plan.block_q
        kept = lists.indices[0, 0, tile, : lists.counts[0, 0, tile]]
        mask[index] = torch.isin(tile_of_key, kept.long())
    return mask[None, None]


def structured(grid, batch: int, heads: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """query, key, value `(B, S, H, D)` that vary smoothly over the grid, so that neighbours attend to each other."""
    generator = torch.Generator().manual_seed(seed)
    axes = (torch.arange(size) / size for size in (grid.frames, grid.height, grid.width))
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)  # (T h w, 3)
    wave = torch.randn(3, heads * dim, generator=generator) * 5
    phase = torch.rand(heads * dim, generator=generator) * 6.28
    field = torch.sin(places @ wave + phase)
    field = torch.cat([field, torch.randn(grid.text, heads * dim, generator=generator)])
    field = field.roll(grid.video_start, 0).view(1, grid.tokens, heads, dim)
    noise = torch.randn(3, batch, grid.tokens, heads, dim, generator=generator)
    query, key, value = (field + 0.5 * part for part in noise)
    return (2 * query).to(dtype), key.to(dtype), value.to(dtype)
