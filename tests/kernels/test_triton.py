"""The Triton kernel in its interpreter against the float64 oracle, within an error measured on plain torch."""

import pytest
import torch

triton = pytest.importorskip("triton")

from diffattn.kernels.attend import attend  # noqa: E402
from diffattn.kernels.backends.rows import build_pyramid  # noqa: E402
from diffattn.kernels.backends.triton import forward as triton_forward  # noqa: E402
from diffattn.kernels.backends.triton.common import launch_order  # noqa: E402
from diffattn.kernels.backends.triton.config import ARCHITECTURES, launch_for  # noqa: E402
from diffattn.kernels.backends.triton.forward import forward  # noqa: E402
from diffattn.kernels.plan.plan import Plan  # noqa: E402
from diffattn.kernels.plan.tile_list import TileList  # noqa: E402
from triton_plans import DEVICE, assert_accurate, inputs, padded_order, random_plan  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "levels", [[(1, 64)], [(1, 64), (2, 16), (8, 16)], [(1, 128), (8, 16), (128, 1)]], ids=["one", "1-2-8", "1-8-128"]
)
def test_levels(levels, dtype):
    plan = random_plan(250, 128, levels, shape=(1, 2))
    assert_accurate(plan, *inputs(plan, heads=2, dtype=dtype))


@pytest.mark.parametrize("dim", [16, 32, 40, 64, 80, 128, 256])
def test_head_dims(dim):
    plan = random_plan(100, 64, [(1, 64)], density=0.7)
    assert_accurate(plan, *inputs(plan, dim=dim, dtype=torch.float16))


@pytest.mark.parametrize(
    "block_q, tile", [(16, 128), (32, 4), (64, 1), (128, 16), (256, 64), (48, 32), (96, 48), (24, 12), (64, 192)]
)
def test_query_and_key_tiles_differ(block_q, tile):
    order = padded_order(180, block_q)
    plan = random_plan(180, block_q, [(1, tile)], order=order, density=0.4)
    assert_accurate(plan, *inputs(plan))


@pytest.mark.parametrize("dtype", DTYPES)
def test_everything_at_once(dtype):
    """Virtual rows, an order for each head, key masks, groups of heads and empty lists."""
    generator = torch.Generator().manual_seed(1)
    tokens, rows = 100, 128
    order = torch.stack([torch.stack([torch.randperm(rows, generator=generator) for _ in range(2)]) for _ in range(2)])
    order = order.where(order < tokens, -1)
    q_rows = torch.randint(-1, tokens, (1, 1, 192), generator=generator)
    mask = torch.rand(2, tokens, generator=generator) < 0.7
    levels = [(1, 16), (4, 4)]
    plan = random_plan(tokens, 32, levels, (2, 2), density=0.2, order=order, q_rows=q_rows, key_mask=mask)
    query, key, value = inputs(plan, batch=2, heads=2, dtype=dtype)
    assert_accurate(plan, query, key, value)


def test_first_keys_masked():
    """A whole step without a key, then one with keys; and a sequence without any."""
    mask = torch.tensor([[False, True], [False, False]]).repeat_interleave(64, 1)
    plan = random_plan(128, 64, [(1, 64)], density=1, key_mask=mask)
    assert_accurate(plan, *inputs(plan, batch=2))


def test_grouped_heads():
    plan = random_plan(128, 128, [(1, 64), (8, 16)], shape=(1, 4))
    assert_accurate(plan, *inputs(plan, batch=2, heads=4, kv_heads=2))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 40.0])
@pytest.mark.parametrize("tokens", [100, 128])
def test_scales(scale, tokens):
    plan = random_plan(tokens, 64, [(1, 64)], density=0.7)
    assert_accurate(plan, *inputs(plan), scale=scale)


def test_every_row_is_written(monkeypatch):
    """Memory from torch.empty is not zero on a GPU: with NaN in it, every row must still come out finite or -inf."""
    empty_like, empty = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    lists = TileList.from_mask(torch.tensor([[[[False, False], [True, True]]]]), 64)
    plan = Plan(128, padded_order(128, 128), (lists,), 64).to(DEVICE)
    query, key, value = (x.transpose(1, 2) for x in inputs(plan))
    out, lse = forward(query, key, value, plan, 1.0)
    assert not out[:, :, :64].any() and (lse[:, :, :64] == -torch.inf).all()
    assert out[:, :, 64:].isfinite().all() and lse[:, :, 64:].isfinite().all()
    assert out.stride() == query.stride()  # back to (B, S, H, D) without a copy


def test_entries_beyond_the_count_are_never_read():
    plan = random_plan(128, 64, [(1, 16)], density=0.4)
    lists = plan.lists[0]
    wild = TileList(lists.counts, lists.indices.int().masked_fill(~lists.live, 2**30), lists.tile)
    poisoned = Plan(128, plan.order, (wild,), 64)
    assert torch.equal(*(attend(*inputs(plan), p, impl="triton") for p in (plan, poisoned)))


def test_strides_do_not_change_the_result():
    plan = random_plan(128, 64, [(1, 64), (8, 16)])
    query, key, value = (x.transpose(1, 2) for x in inputs(plan, heads=2))
    key, value = (build_pyramid(x.transpose(1, 2), plan) for x in (key, value))
    fused = torch.stack([key, value], dim=3)  # rows of key and value take turns in memory
    inner = query.mT.contiguous().mT  # the head dim is not the last in memory
    broken = forward(query, fused[:, :, :, 0], fused[:, :, :, 1], plan, 0.2)
    for other in (query.contiguous(), inner):
        for got, want in zip(forward(other, key, value, plan, 0.2), broken):
            assert torch.equal(got, want)


def test_long_lists_start_first():
    plan = random_plan(1024, 64, [(1, 64), (8, 16)], shape=(1, 3))
    order = launch_order(plan)
    work = sum(lists.counts * lists.tile for lists in plan.lists).gather(-1, order.long())
    assert (work.diff(dim=-1) <= 0).all()
    assert torch.equal(order.sort().values.cpu(), torch.arange(16, dtype=torch.int32).expand(1, 3, -1))
    assert launch_order(plan) is order


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
def test_launches_are_powers_of_two(arch, itemsize, kernel):
    for dim in (1, 16, 40, 64, 80, 128, 200, 256):
        for block_q in (1, 16, 48, 64, 128, 256):
            for tile in (1, 16, 48, 64, 128):
                launch = launch_for(arch, dim, itemsize, block_q, (tile,), kernel)
                assert all(size >= 16 and size & (size - 1) == 0 for size in launch[:2])
                assert launch.block_m < max(2 * block_q, 32)


def test_refuses_what_it_cannot_do():
    plan = random_plan(128, 64, [(1, 64)])
    query, key, value = inputs(plan)
    with pytest.raises(ValueError, match="float64"):
        attend(query.double(), key.double(), value.double(), plan, impl="triton")


def test_cpu_without_the_interpreter_is_refused(monkeypatch):
    plan = random_plan(128, 64, [(1, 64)])
    compiled = triton.JITFunction(triton_forward.attention_kernel.fn)
    monkeypatch.setattr(triton_forward, "attention_kernel", compiled)
    with pytest.raises(ValueError, match=r"on cpu: set TRITON_INTERPRET=1 before importing triton.*impl='torch'"):
        forward(*torch.zeros(3, 1, 1, 128, 32), plan, 1.0)
