"""Random plans, inputs for them, and the same attention as one masked softmax in plain torch, for error budgets."""

import torch
from diffattn.kernels.attend import attend
from diffattn.kernels.backends.rows import build_pyramid, gather_rows, scatter_rows
from diffattn.kernels.plan.plan import Plan
from diffattn.kernels.plan.tile_list import TileList

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def padded_order(tokens, multiple):
    """Natural order with padding at the end, (1, 1, R)."""
    rows = torch.arange(-(-tokens // multiple) * multiple)
    return rows.where(rows < tokens, -1)[None, None]


def random_plan(tokens, block_q, levels, shape=(1, 1), density=0.5, order=None, seed=0, **kwargs):
    """A plan with random lists at each `(pool, tile)` of `levels`."""
    generator = torch.Generator().manual_seed(seed)
    order = padded_order(tokens, 128) if order is None else order
    query_tiles = kwargs.get("q_rows", order).shape[-1] // block_q
    lists = []
    for pool, tile in levels:
        tiles = -(-order.shape[-1] // (pool * tile))
        kept = torch.rand(*shape, query_tiles, tiles, generator=generator) < density
        lists.append(TileList.from_mask(kept, tile, pool))
    return Plan(tokens, order, tuple(lists), block_q, **kwargs).to(DEVICE)


def inputs(plan, batch=1, heads=1, kv_heads=None, dim=32, dtype=torch.float32, seed=0):
    """Query (B, S, H, D), key and value (B, S, Hkv, D)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (heads, kv_heads or heads, kv_heads or heads)
    return [torch.randn(batch, plan.tokens, size, dim, generator=generator).to(DEVICE, dtype) for size in sizes]


def plain(query, key, value, plan, scale):
    """The same plan as one masked softmax: operands in the dtype of query, sums in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    rows = gather_rows(query, plan.query_rows, plan)
    repeats = query.shape[2] // key.shape[2]
    keys, values = (build_pyramid(x, plan).repeat_interleave(repeats, 1) for x in (key, value))
    logw = plan.kv_logw.expand(key.shape[0], key.shape[2], -1).repeat_interleave(repeats, 1)
    seen = []
    for lists in plan.lists:
        tiles = lists.to_mask(plan.level_rows(lists) // lists.tile).expand(*rows.shape[:2], -1, -1)
        seen.append(tiles.repeat_interleave(lists.tile, 3).repeat_interleave(plan.block_q, 2))
    seen = torch.cat(seen, 3) & (logw > -torch.inf)[:, :, None]
    scores = rows.to(wide) @ keys.to(wide).mT * scale + logw[:, :, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    probs = (scores - lse.where(lse > -torch.inf, 0)[..., None]).exp().to(value.dtype)
    return scatter_rows((probs.to(wide) @ values.to(wide)).to(query.dtype), lse, plan)


def assert_accurate(plan, query, key, value, scale=None):
    """The error of the kernel is at most twice that of plain torch in the same dtype, plus two last places.

    The interpreter cuts bfloat16 off where a GPU rounds, which alone doubles an error of half a unit.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = attend(query, key, value, plan, scale=scale, impl="triton", return_lse=True)
    exact, exact_lse = attend(
        query.double(), key.double(), value.double(), plan, scale=scale, impl="reference", return_lse=True
    )
    near, near_lse = plain(query, key, value, plan, scale)
    assert out.dtype == query.dtype and lse.dtype == torch.float32
    empty = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert not out.transpose(1, 2)[empty].any()
    for name, got, torch_got, want in (
        ("out", out, near, exact),
        ("lse", *(x.masked_fill(empty, 0) for x in (lse, near_lse, exact_lse))),
    ):
        error, torch_error = ((x.double() - want).abs().max() for x in (got, torch_got))
        budget = 2 * torch_error + 2 * torch.finfo(got.dtype).eps * want.abs().max().clamp(min=1)
        assert error <= budget, f"{name}: error {error:.2e}, budget {budget:.2e}"
