"""The debug check names the tensor, the place and the value."""

from dataclasses import replace

import pytest
import torch
from diffattn.kernels.plan.affine import Affine
from diffattn.kernels.validate import check_contents
from hypothesis import HealthCheck, given, settings
from kernels_draws import plans

from diffattn import Plan, TileList, TokenGrid, VMoBAConfig, attend


def plan_with(counts=2, indices=((0, 1), (1, 0)), order=None, q_rows=None, post=None):
    lists = TileList(
        torch.full((1, 1, 2), counts, dtype=torch.int32), torch.tensor([[indices]], dtype=torch.int32), 16
    )
    order = torch.arange(32) if order is None else order
    return Plan(32, order[None, None], (lists,), 16, q_rows=None if q_rows is None else q_rows[None, None], post=post)


def swapped(at, token):
    order = torch.arange(32)
    order[at] = token
    return order


WRONG = [
    ({"counts": 3}, "counts of the lists of pool 1 must be from 0 to 2, the entries there are, got 3"),
    ({"counts": -1}, "counts of the lists of pool 1 must be from 0 to 2.*got -1"),
    ({"indices": ((0, 1), (1, 2))}, r"indices of the lists of pool 1 must be tiles from 0 to 1, got 2 at \[0, 0, 1"),
    ({"indices": ((0, -1), (1, 0))}, "tiles from 0 to 1, got -1"),
    ({"indices": ((0, 1), (1, 1))}, r"must hold a tile at most once, got 1 at \[0, 0, 1, 1\]"),
    ({"order": swapped(3, 4)}, r"order\[0, 0\] holds token 3 0 times: it must hold each of the 32 tokens"),
    ({"order": swapped(3, 32)}, r"order must be tokens from 0 to 31, or -1 for padding, got 32 at \[0, 0, 3\]"),
    ({"q_rows": swapped(5, -2)}, r"q_rows must be tokens from 0 to 31, or -1 for padding, got -2 at \[0, 0, 5\]"),
    (
        {"post": Affine(torch.tensor([[[1.0, torch.nan]]]), torch.ones(1, 1, 2, 2), 16)},
        r"post.scale must be finite, got nan at \[0, 0, 1\]",
    ),
]  # fmt: skip


@pytest.mark.parametrize("change, message", WRONG)
def test_wrong_contents_are_named_before_anything_runs(change, message):
    query = torch.zeros(1, 32, 1, 8)
    with pytest.raises(ValueError, match=message):
        attend(query, query, query, plan_with(**change), check=True)


def test_wrong_dtypes_are_named():
    with pytest.raises(TypeError, match=r"q_rows must be torch.int32 or torch.int64, got torch.float32"):
        check_contents(plan_with(q_rows=torch.arange(32).float()))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans())
def test_drawn_plans_pass(plan):
    check_contents(plan)


def test_entries_past_the_count_may_hold_anything():
    check_contents(plan_with(counts=1, indices=((0, 99), (1, 1))))


def test_rows_of_token_routing_take_a_bit_for_each_group():
    grid = TokenGrid(9, 16, 16, text=20)
    query, key = torch.randn(2, 1, grid.tokens, 3, 16, generator=torch.Generator().manual_seed(0))
    plan = VMoBAConfig(density=0.2).plan(grid, query, key)
    check_contents(plan)
    (lists,) = plan.lists
    groups = plan.q_rows.bits.shape[2]
    assert plan.q_rows.nbytes <= 3 * groups * (grid.tokens / 8 + 1) < plan.query_rows.nbytes
    wide = replace(lists, indices=lists.indices.long())
    wider = replace(plan, q_rows=plan.query_rows.long(), order=plan.order.long(), lists=(wide,))
    assert torch.equal(*(attend(query, key, key, each, impl="torch") for each in (plan, wider)))
