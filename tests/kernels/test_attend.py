import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffattn.kernels import attend as attend_module
from diffattn.kernels.backends import dense
from diffattn.kernels.backends.rows import attend_rows
from diffattn.kernels.backends.torch import softmax as torch_softmax
from diffattn.kernels.backends.torch.head_groups import attend_by_head_groups
from diffattn.kernels.backends.torch.scratch import Scratch
from diffattn.kernels.backends.torch.tiles import forward
from diffattn.kernels.backends.torch.worklist import Sizes
from diffattn.kernels.plan.boxes import Boxes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels_draws import inputs, plans

from diffattn import Plan, TileList, attend

DRAWN = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def poisoned_buffers():
    """Fresh buffers hold NaN, so that whatever is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def widened(tensors):
    return [tensor.double() for tensor in tensors]


def assert_equals_the_oracle(query, key, value, plan, impl):
    """Errors within a bound of the rounding errors in the scores, the softmax and the sum over keys."""
    run = partial(attend, plan=plan, impl=impl, return_lse=True) if isinstance(impl, str) else impl
    out, lse = run(query, key, value)
    exact, exact_lse = attend(*widened((query, key, value)), plan, impl="reference", return_lse=True)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    assert (out.transpose(1, 2)[exact_lse.isinf()] == 0).all()
    finite = exact_lse.isfinite()
    eps, scale = torch.finfo(query.dtype).eps, query.shape[-1] ** -0.5
    # a rounding of eps in each of D products of a score, and in each term of the sums over keys
    size = scale * query.shape[-1] * float(query.abs().max() * key.abs().max())
    budget = 2 * eps * (size + plan.tokens**0.5 + 4)
    assert float((lse - exact_lse)[finite].abs().max() if finite.any() else 0) <= budget * (1 + size)
    assert float((out - exact).abs().max()) <= budget * float(value.abs().max())


def by_rows(plan, **options):
    """The torch path of all heads at once, with options of its own."""
    kernel = partial(forward, **options)
    return lambda query, key, value: attend_rows(kernel, query, key, value, plan, query.shape[-1] ** -0.5)


@settings(max_examples=300, **DRAWN)
@given(st.data())
def test_torch_equals_the_oracle_on_any_plan(data):
    plan = data.draw(plans())
    assert_equals_the_oracle(*data.draw(inputs(plan)), plan, "torch")


@settings(max_examples=25, **DRAWN)
@given(st.data())
def test_one_head_at_a_time(data):
    plan = data.draw(plans())
    tensors = data.draw(inputs(plan))

    def one_head_at_a_time(*tensors):
        kernel = partial(attend_rows, forward)
        return attend_by_head_groups(kernel, *tensors, plan, tensors[0].shape[-1] ** -0.5, group_bytes=1)

    assert_equals_the_oracle(*tensors, plan, one_head_at_a_time)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out, whole = one_head_at_a_time(*leaves)[0], attend(*leaves, plan, impl="torch")
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    for got, wanted in zip(*(torch.autograd.grad(result, leaves, grad) for result in (out, whole))):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("impl, pools", [("torch", (1,)), ("torch", (1, 4)), ("triton", (1,))])
def test_grouped_heads_with_an_order_each(impl, pools):
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(80, generator=generator) for _ in range(4)])[None]
    plan = replace(full_plan(77, pools=pools), order=order.where(order < 77, -1))
    lists = [replace(level, counts=level.counts - 1) for level in plan.lists]
    plan = replace(plan, lists=tuple(lists)).with_key_mask(torch.arange(77).expand(2, -1) != 5)
    query, key, value = (torch.randn(2, 77, heads, 16, generator=generator) for heads in (4, 2, 2))
    assert_equals_the_oracle(query, key, value, plan, impl)


@settings(max_examples=25, **DRAWN)
@given(st.data())
def test_torch_in_half_precision(data):
    plan = data.draw(plans())
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16]))
    assert_equals_the_oracle(*data.draw(inputs(plan, dtype)), plan, "torch")


@settings(max_examples=8, **DRAWN)
@given(st.data())
def test_triton_equals_the_oracle_on_any_plan(data):
    plan = data.draw(plans())
    assert_equals_the_oracle(*data.draw(inputs(plan)), plan, "triton")


@pytest.mark.parametrize("form", ["FLASH", "MIXED", "PLAIN"])
@settings(max_examples=20, **DRAWN)
@given(data=st.data())
def test_every_softmax_form_equals_the_oracle(form, data):
    if form == "FLASH" and torch_softmax.flash_cpu() is None:
        pytest.skip("this torch has no CPU flash attention that returns lse")
    dtype = torch.bfloat16 if form == "MIXED" else torch.float32
    plan = data.draw(plans())
    tensors = data.draw(inputs(plan, dtype))
    used = getattr(torch_softmax, form)
    if form == "MIXED":
        score_bytes = data.draw(st.sampled_from([1 << 10, 1 << 12, 1 << 21]))
        used = replace(used, attention=partial(used.attention, score_bytes=score_bytes))
    chunk, part = data.draw(st.sampled_from([1, 1 << 21])), data.draw(st.sampled_from([1, 1 << 11, 1 << 22]))
    assert_equals_the_oracle(*tensors, plan, by_rows(plan, form=used, sizes=Sizes(chunk, part)))


@pytest.mark.skipif(torch_softmax.flash_cpu() is None, reason="no CPU flash attention that returns lse")
@pytest.mark.parametrize("window", [None, 20])  # of keys before a query: some queries see none of a part's
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("granules", [1, 2])
@pytest.mark.parametrize("kept_cells", [0, 1 << 20])
def test_long_lists_in_parts_equal_the_oracle(granules, masked, window, kept_cells):
    plan = full_plan(77)
    if window is not None:
        (lists,), at = plan.lists, torch.arange(80, dtype=torch.int32)[:, None]
        lists = replace(lists, partial=torch.ones_like(lists.indices, dtype=torch.bool))
        plan = replace(plan, lists=(lists,), boxes=Boxes(at - window, at - 1, at))
    if masked:
        token = torch.arange(77)
        plan = plan.with_key_mask(torch.stack([(token < 32) | (token > 70), token < 0]))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 77, 2, 16, generator=generator) for _ in range(3))
    seen = []

    def spied(*args):
        seen.append(args[1].shape[-2])
        return torch_softmax.FLASH.attention(*args)

    spy = replace(torch_softmax.FLASH, attention=spied)
    sizes = Sizes(1, granules * 2 * 16 * 16 * key.element_size(), kept_cells)  # one query tile in each chunk
    assert_equals_the_oracle(query, key, value, plan, by_rows(plan, form=spy, sizes=sizes))
    assert set(seen) == ({16} if granules == 1 else {16, 32})


@pytest.mark.parametrize("keys_of_a_part", [12, 50])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [0.5, 50.0])  # with 50, powers of 2 are beyond float32 as they are
def test_mixed_softmax_in_parts_equals_float64(scale, masked, keys_of_a_part):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, rows, 16, generator=generator).bfloat16() for rows in (8, 50, 50))
    key[:, 20:] *= 3  # so that parts have very different weights
    mask = torch.full((2, 1, 50), -2 * scale)
    mask[:, :, 12:24], mask[1] = -torch.inf, -torch.inf  # a part without keys, rows without keys
    mask = mask if masked else None
    scratch = Scratch(query.device)
    out, lse = torch_softmax.MIXED.attention(
        query, key, value, mask, scale, scratch, score_bytes=4 * 2 * 8 * keys_of_a_part
    )
    scores = scale * query.double() @ key.double().mT + (0 if mask is None else mask)
    assert (scores.amax(-1) > 96).any() == (scale == 50)
    torch.testing.assert_close(lse, scores.logsumexp(-1).float())
    exact, live = scores.softmax(-1) @ value.double(), lse > -torch.inf
    # probabilities, the result of each part and their sum are rounded by half an eps each
    assert (out - exact)[live].abs().max() <= 1.5 * torch.finfo(out.dtype).eps * value.abs().max()


@pytest.mark.parametrize("far", [4, 8])  # keys: all of them, or all of one part
def test_mixed_softmax_of_scores_far_below_zero(far):
    query, key = torch.ones(1, 4, 16).bfloat16(), torch.zeros(1, 8, 16).bfloat16()
    key[:, :far] = -20
    value = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 16).bfloat16()
    out, lse = torch_softmax.MIXED.attention(
        query, key, value, None, 1.0, Scratch(query.device), score_bytes=4 * 4 * 4
    )
    assert (out == (5.5 if far == 4 else 3.5)).all()
    torch.testing.assert_close(lse, torch.full((1, 4), math.log(4) if far == 4 else math.log(8) - 320))


@settings(max_examples=25, **DRAWN)
@given(st.data())
def test_gradients_of_out_and_lse(data):
    plan = data.draw(plans())
    tensors = [tensor[:, :, :, :4].double().requires_grad_() for tensor in data.draw(inputs(plan))]

    def run(*tensors):
        out, lse = attend(*tensors, plan, impl="torch", return_lse=True)
        return out, lse.where(lse > -torch.inf, 0)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


def test_a_token_without_any_key_has_no_gradient():
    query, key, value = (t.requires_grad_() for t in torch.randn(3, 1, 32, 1, 8).double())
    lists = (TileList.from_mask(torch.ones(1, 1, 4, 2) > 0, 16),)
    plan = replace(full_plan(32), lists=lists, q_rows=torch.arange(64)[None, None] % 32)
    out, lse = attend(query, key, value, plan.with_key_mask(torch.zeros(1, 32) > 0), impl="torch", return_lse=True)
    assert (out == 0).all() and (lse == -torch.inf).all()
    (out.sum() + lse.where(lse > -torch.inf, 0).sum()).backward()
    assert all((tensor.grad == 0).all() for tensor in (query, key, value))


def full_plan(tokens, tile=16, pools=(1,), rows=None):
    rows = rows or -(-tokens // max(tile, *pools)) * max(tile, *pools)
    order = torch.arange(rows)
    order = order.where(order < tokens, -1)
    mask = [torch.ones(1, 1, rows // tile, -(-rows // (tile * pool)), dtype=torch.bool) for pool in pools]
    return Plan(tokens, order[None, None], tuple(TileList.from_mask(m, tile, p) for m, p in zip(mask, pools)), tile)


@settings(max_examples=60, **DRAWN)
@given(st.data())
def test_auto_equals_the_oracle_where_it_runs_dense_attention(data):
    plan = data.draw(plans(pools=(1,)))
    plan = replace(plan, q_rows=None) if plan.q_rows is None else full_plan(plan.tokens, tile=16)
    tensors = data.draw(inputs(plan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "MASK_TOKENS", 4096)
        assert_equals_the_oracle(*tensors, plan, "auto")


def test_auto_runs_dense_attention_only_where_the_result_is_the_same(monkeypatch):
    chosen = []
    monkeypatch.setattr(attend_module, "_log_choice", lambda choice, reason: chosen.append(choice))
    query = torch.randn(1, 512, 1, 8, generator=torch.Generator().manual_seed(0))
    full = full_plan(512, tile=64)
    nearly = TileList.from_mask(torch.arange(64).view(1, 1, 8, 8) > 3, 64)
    pooled = TileList.from_mask(torch.ones(1, 1, 8, 8) > 0, 32, pool=2)
    cases = [
        (full, "dense"),
        (replace(full, lists=(nearly,)), "dense"),
        (full.with_key_mask(torch.arange(512)[None] > 7), "dense"),
        (replace(full, lists=(pooled,)), "torch"),
        (replace(full, q_rows=full.order), "torch"),
        (replace(full, lists=(TileList.from_mask(torch.arange(64).view(1, 1, 8, 8) > 30, 64),)), "torch"),
    ]
    for plan, choice in cases:
        assert_equals_the_oracle(query, query, query, plan, "auto")
        assert chosen.pop() == choice and not chosen
    attend(query, query, query, full, impl="torch")
    assert not chosen
    leaf = query.clone().requires_grad_()
    attend(leaf, leaf, leaf, full, return_lse=True)  # lse may be differentiated, which torch's attention cannot
    assert chosen == ["torch"]


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_full_plan_is_dense_attention(impl):
    query, key, value = torch.randn(3, 2, 77, 2, 16, generator=torch.Generator().manual_seed(0))
    plan = full_plan(77)
    assert plan.density == pytest.approx(1.0)
    out = attend(query, key, value, plan, impl=impl).transpose(1, 2)
    dense = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)))
    torch.testing.assert_close(out, dense)


def test_more_padding_changes_nothing():
    query, key, value = torch.randn(3, 2, 77, 2, 16, generator=torch.Generator().manual_seed(0)).double()
    for pools in ((1,), (1, 4)):
        outs = [attend(query, key, value, full_plan(77, pools=pools, rows=rows), impl="torch") for rows in (80, 160)]
        torch.testing.assert_close(*outs, rtol=0, atol=1e-14)


def test_constant_keys_and_values_make_every_level_dense():
    query = torch.randn(1, 64, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    pool_of_token = torch.arange(64) // 8
    key, value = (
        torch.randn(8, 8, generator=torch.Generator().manual_seed(s)).double()[pool_of_token] for s in (1, 2)
    )
    key, value = key[None, :, None], value[None, :, None]
    dense = attend(query, key, value, full_plan(64), impl="reference")
    kinds = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    exact = TileList.from_mask(kinds < 0.4, 16)
    pooled = TileList.from_mask(kinds >= 0.4, 2, pool=8)
    plan = replace(full_plan(64), lists=(exact, pooled))
    torch.testing.assert_close(attend(query, key, value, plan, impl="torch"), dense, rtol=0, atol=1e-14)


def test_a_plan_split_in_two_and_merged_by_lse_is_the_whole():
    query, key, value = torch.randn(3, 2, 96, 2, 16, generator=torch.Generator().manual_seed(0)).double()
    mask = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    first = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    whole = replace(full_plan(96), lists=(TileList.from_mask(mask, 16),))
    both = torch.cat([mask & first, mask & ~first], dim=2)
    rows = whole.order.repeat(1, 1, 2)
    split = replace(whole, lists=(TileList.from_mask(both, 16),), q_rows=rows)
    for got, wanted in zip(*(attend(query, key, value, p, impl="torch", return_lse=True) for p in (split, whole))):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q, k, v: (q[:, :, :, 0], k, v), r"query must be floating point \(B, S, H, D\)"),
        (lambda q, k, v: (q.int(), k, v), "query must be floating point"),
        (lambda q, k, v: (q, k[:, :-1], v), "key has 76 tokens, the plan is for 77"),
        (lambda q, k, v: (q, k, v.double()), "value is torch.float64 on cpu, query torch.float32 on cpu"),
        (lambda q, k, v: (q, k[..., :8], v), "must agree in batch and head dim"),
        (lambda q, k, v: (q.repeat(1, 1, 3, 1)[:, :, :3], k, v), "query heads must be a multiple"),
        (lambda q, k, v: (q[:1], k[:1], v), "must agree in batch"),
        (lambda q, k, v: [t.repeat(1, 1, 1, 20) for t in (q, k, v)], "head dim 320 is more than 256"),
        (lambda q, k, v: [t.to("meta") for t in (q, k, v)], r"the plan is on cpu \(order\), query on meta"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    tensors = change(*torch.zeros(3, 2, 77, 2, 16))
    with pytest.raises(ValueError, match=message):
        attend(*tensors, full_plan(77))


def test_wrong_plans_are_named():
    plan = full_plan(77)
    with pytest.raises(ValueError, match=r"lists of level 1 must cover 5 query tiles, got counts \(1, 1, 4\)"):
        replace(plan, lists=(TileList.from_mask(torch.ones(1, 1, 4, 5) > 0, 16),))
    with pytest.raises(ValueError, match="80 rows do not divide into pools of 3"):
        replace(plan, lists=(TileList.from_mask(torch.ones(1, 1, 5, 2) > 0, 16, pool=3),))
    with pytest.raises(ValueError, match="R a multiple of 32"):
        replace(plan, block_q=32)
    with pytest.raises(ValueError, match="each of the 77 tokens exactly once"):
        _ = replace(plan, order=plan.order.clamp(max=75)).row_of_token
    with pytest.raises(ValueError, match=r"key_mask must be bool \(B, 77\), got torch.bool \(1, 76\)"):
        plan.with_key_mask(torch.ones(1, 76, dtype=torch.bool))
    heads = replace(plan, lists=(TileList.from_mask(torch.ones(1, 3, 5, 5) > 0, 16),))
    with pytest.raises(ValueError, match=r"the plan is for heads 3 \(counts of pool 1\), query has 2"):
        attend(*torch.zeros(3, 1, 77, 2, 16), heads)


@pytest.mark.parametrize("impl", ["auto", "torch", "triton", "reference"])
@pytest.mark.parametrize("batch, heads, kv_heads", [(0, 2, 2), (0, 2, 1), (2, 0, 0)])
def test_no_batch_entries_or_no_heads_give_an_empty_result(batch, heads, kv_heads, impl):
    shapes = [(batch, 77, count, 16) for count in (heads, kv_heads, kv_heads)]
    leaves = [torch.empty(shape, requires_grad=True) for shape in shapes]
    out, lse = attend(*leaves, full_plan(77), impl=impl, return_lse=True)
    assert out.shape == (batch, 77, heads, 16) and lse.shape == (batch, heads, 77)
    assert out.dtype == torch.float32 and lse.dtype == (torch.float64 if impl == "reference" else torch.float32)
    grads = torch.autograd.grad(out.sum() + lse.sum(), leaves)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
