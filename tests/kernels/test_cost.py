"""What a plan costs, in products of dense attention: what `auto` compares, not what was asked for."""

from dataclasses import replace

import pytest
import torch
from diffattn.kernels.backends.dense import GATHER_ROWS, PARTIAL_FACTOR, break_even, plan_cost
from diffattn.kernels.plan.boxes import Boxes

from diffattn import NeighborhoodConfig, Plan, TileList, TokenGrid, VMoBAConfig
from diffattn.analysis.synthetic import structured_qkv


def plan_of(tokens, tile=128, kept=lambda mask: mask):
    rows = torch.arange(-(-tokens // tile) * tile)
    mask = kept(torch.ones(1, 1, len(rows) // tile, len(rows) // tile, dtype=torch.bool))
    return Plan(tokens, rows.where(rows < tokens, -1)[None, None], (TileList.from_mask(mask, tile),), tile)


def test_every_product_of_a_usual_plan_costs_one():
    assert plan_cost(plan_of(2048)) == pytest.approx(1)
    assert plan_cost(plan_of(2048, kept=lambda mask: mask.tril())) == pytest.approx(17 / 32)


def test_padding_is_paid_for_though_it_does_not_count_as_density():
    plan = plan_of(2049)
    assert plan.computed == pytest.approx(1) and plan_cost(plan) == pytest.approx((2176 / 2049) ** 2)


def test_small_tiles_cost_more_in_long_sequences():
    usual, small = (plan_cost(plan_of(2048, tile)) for tile in (128, 16))
    assert small / usual == pytest.approx((1 + GATHER_ROWS / 16) / (1 + GATHER_ROWS / 128))
    assert plan_cost(plan_of(512, 16)) == pytest.approx(1)


def test_partial_tiles_cost_more():
    plan, at = plan_of(2048), torch.arange(2048, dtype=torch.int32)[:, None]
    (lists,) = plan.lists
    half = torch.arange(16).expand(1, 1, 16, 16) < 8
    cut = replace(plan, lists=(replace(lists, partial=half),), boxes=Boxes(at - 1, at, at))
    assert plan_cost(cut) == pytest.approx(1 + PARTIAL_FACTOR / 2)


def test_virtual_rows_count():
    grid = TokenGrid(9, 16, 16)
    plan = VMoBAConfig(density=0.3).plan(grid, *structured_qkv(grid, heads=2, dim=16)[:2])
    assert plan_cost(plan) > plan.computed


def test_windows_of_small_partial_tiles_are_dearer_than_dense_attention():
    grid = TokenGrid(1, 64, 64)
    plan = NeighborhoodConfig(window=(1, 21, 21)).plan(grid)
    assert plan.density < 0.2 and plan_cost(plan) > break_even(grid.tokens)
