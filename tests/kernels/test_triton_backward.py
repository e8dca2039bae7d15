"""Gradients of the Triton kernels in their interpreter against float64, within an error measured on plain torch."""

import pytest
import torch

pytest.importorskip("triton")

from diffattn.kernels.attend import attend
from diffattn.kernels.backends.triton.forward import forward
from diffattn.kernels.plan.plan import Plan
from diffattn.kernels.plan.tile_list import TileList
from diffattn.kernels.plan.transpose import transpose
from triton_plans import inputs, padded_order, plain, random_plan

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def gradients(attention, tensors, weights):
    """Gradients of a random sum of out and of the finite lse."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out, lse = attention(*leaves)
    loss = (out * weights[0].to(out.dtype)).sum()
    loss = loss + (lse.masked_fill(lse == -torch.inf, 0) * weights[1].to(lse.dtype)).sum()
    return torch.autograd.grad(loss, leaves)


def assert_gradients(plan, query, key, value, scale=None):
    """The error is at most twice that of plain torch in the same dtype, plus rounding."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(shape, generator=generator).to(query.device)
               for shape in (query.shape, query.transpose(1, 2).shape[:3])]  # fmt: skip
    exact = gradients(lambda *x: plain(*x, plan, scale), [x.double() for x in (query, key, value)], weights)
    near = gradients(lambda *x: plain(*x, plan, scale), (query, key, value), weights)
    found = gradients(
        lambda *x: attend(*x, plan, scale=scale, impl="triton", return_lse=True), (query, key, value), weights
    )
    for name, got, torch_got, want in zip(("query", "key", "value"), found, near, exact):
        assert got.dtype == query.dtype and want.any()
        error, torch_error = ((x.double() - want).abs().max() for x in (got, torch_got))
        budget = 2 * torch_error + 2 * torch.finfo(got.dtype).eps * want.abs().max()
        assert error <= budget, f"{name}: error {error:.2e}, budget {budget:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [[(1, 64)], [(1, 64), (2, 16), (8, 4)]], ids=["one", "1-2-8"])
def test_levels(levels, dtype):
    plan = random_plan(150, 64, levels, order=padded_order(150, 64), density=0.6)
    assert_gradients(plan, *inputs(plan, dtype=dtype))


@pytest.mark.parametrize("dim", [16, 40, 128])
def test_head_dims(dim):
    plan = random_plan(60, 64, [(1, 64)], order=padded_order(60, 64), density=1)
    assert_gradients(plan, *inputs(plan, dim=dim, dtype=torch.float16))


@pytest.mark.parametrize("block_q, tile", [(16, 128), (64, 1), (48, 32), (24, 12), (256, 48), (64, 192)])
def test_query_and_key_tiles_differ(block_q, tile):
    order = padded_order(70, block_q)
    plan = random_plan(70, block_q, [(1, tile)], order=order, density=0.6)
    assert_gradients(plan, *inputs(plan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_at_once(dtype):
    """Virtual rows, an order for each head, key masks, lists for each head of a group, and empty lists."""
    generator = torch.Generator().manual_seed(1)
    tokens, rows = 56, 64
    order = torch.stack([torch.stack([torch.randperm(rows, generator=generator) for _ in range(2)]) for _ in range(2)])
    order = order.where(order < tokens, -1)
    q_rows = torch.randint(-1, tokens, (1, 1, 96), generator=generator)
    mask = torch.rand(2, tokens, generator=generator) < 0.7
    levels = [(1, 16), (4, 4)]
    plan = random_plan(tokens, 32, levels, (2, 2), density=0.2, order=order, q_rows=q_rows, key_mask=mask)
    assert_gradients(plan, *inputs(plan, batch=2, heads=2, dtype=dtype))


@pytest.mark.parametrize("list_heads", [1, 4])
def test_grouped_heads(list_heads):
    plan = random_plan(64, 64, [(1, 32), (8, 4)], shape=(1, list_heads), order=padded_order(64, 64))
    assert_gradients(plan, *inputs(plan, batch=2, heads=4, kv_heads=2))


def test_negative_scale():
    plan = random_plan(60, 64, [(1, 64)], order=padded_order(60, 64), density=1)
    assert_gradients(plan, *inputs(plan), scale=-0.3)


def test_only_some_gradients_are_wanted():
    plan = random_plan(128, 64, [(1, 64)])
    query, key, value = inputs(plan)
    attend(query.requires_grad_(), key, value, plan, impl="triton").sum().backward()
    assert query.grad.any() and key.grad is None
    attend(query.detach(), key, value.requires_grad_(), plan, impl="triton").sum().backward()
    assert value.grad.any() and key.grad is None


def test_every_row_is_written(monkeypatch):
    """With NaN in fresh memory, and in the gradients of rows without any key, all gradients still come out finite."""
    empty_like, empty = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    lists = [TileList.from_mask(torch.tensor([[[[False] * 6, [False] * 5 + [True]]]]), tile) for tile in (16, 24)]
    for level in lists:
        plan = Plan(6 * level.tile, padded_order(6 * level.tile, 3 * level.tile), (level,), 3 * level.tile)
        query, key, value = (x.transpose(1, 2).requires_grad_() for x in inputs(plan))
        out, lse = forward(query, key, value, plan, 1.0)
        nothing = lse == -torch.inf
        assert nothing.any() and not nothing.all()
        grad_lse = torch.ones_like(lse).masked_fill(nothing, torch.nan)
        grads = torch.autograd.grad((out, lse), (query, key, value), (torch.ones_like(out), grad_lse))
        assert all(grad.isfinite().all() for grad in grads)
        assert not grads[0][nothing].any() and not grads[1][:, :, : 5 * level.tile].any()


def test_runs_give_the_same_bits():
    plan = random_plan(64, 32, [(1, 32), (8, 4)], shape=(1, 2), order=padded_order(64, 64))
    tensors = [x.requires_grad_() for x in inputs(plan, heads=2, kv_heads=1)]
    first, second = (torch.autograd.grad(attend(*tensors, plan, impl="triton").sum(), tensors) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second))


@pytest.mark.parametrize("group", [1, 4, 64])
def test_transposed_lists(group):
    plan = random_plan(1024, 64, [(1, 16)], shape=(2, 3), density=0.3)
    mask = plan.lists[0].to_mask(64)
    found = transpose(plan.lists[0], 64, group)
    assert found.counts.sum() == len(found.tiles) == len(found.bits)
    for batch, head, block in torch.cartesian_prod(*(torch.arange(size) for size in found.counts.shape)):
        first, count = found.first[batch, head, block], found.counts[batch, head, block]
        tiles, bits = (part[first : first + count] for part in (found.tiles, found.bits))
        part = mask[batch, head, :, block * group : (block + 1) * group]
        assert torch.equal(tiles.long(), part.any(-1).nonzero()[:, 0])
        assert torch.equal(bits[:, None] >> torch.arange(group) & 1 == 1, part[tiles.long()])


def test_transposed_lists_of_nothing():
    lists = TileList.from_mask(torch.zeros(1, 1, 2, 5, dtype=torch.bool), 16)
    found = transpose(lists, 5, 2)
    assert found.counts.tolist() == [[[0, 0, 0]]] and len(found.tiles) == 0
