"""The default method against a greedy optimum and a dense oracle."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_oracles import (
    DTYPES,
    GRIDS,
    LARGE,
    assert_close,
    attend_levels,
    block_mass,
    inputs,
    large_inputs,
    levels_of,
    nested,
    rows_of_tokens,
)

from diffattn import AutoConfig, PyramidConfig, RectifiedConfig, TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._order import block_size
from diffattn.methods.auto import allocate


def loss(mass, levels):
    """What the allocation minimises."""
    return sum(float(m) * (p ** (1 / 3) - 1) for m, p in zip(mass, levels))


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6), st.floats(0.07, 1))
@settings(max_examples=60, deadline=None)
def test_no_other_allocation_of_the_same_cost_loses_less(mass, density):
    levels = (1, 4, 16)
    mass = torch.tensor(mass)
    chosen = [levels[i] for i in allocate(mass, density, levels).tolist()]
    cost = sum(1 / level for level in chosen)
    assert cost / len(mass) <= density + 1e-6
    best = min(loss(mass, other) for other in product(levels, repeat=len(mass)) if sum(1 / p for p in other) <= cost)
    assert loss(mass, chosen) <= best * (1 + 1e-5)


@pytest.mark.parametrize("mass", [0.0, 1 / 48, 1e-38, torch.nan])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.3, 0.7])
def test_blocks_that_are_all_alike_meet_the_density(mass, density):
    levels = (1, 4, 16)
    chosen = allocate(torch.full((3, 48), mass), density, levels)
    cost = (1 / torch.tensor(levels))[chosen].mean(-1)
    assert (cost <= density + 1e-6).all() and (cost >= density - 1 / 48).all()


def greedy(mass, density, levels):
    """The same optimum by taking refinements in the order of what they gain for their cost."""
    index = torch.full(mass.shape, len(levels) - 1)
    flat, flat_index = mass.reshape(-1, mass.shape[-1]).tolist(), index.view(-1, mass.shape[-1])
    for row, masses in enumerate(flat):
        steps = sorted(
            (-m * (levels[i + 1] ** (1 / 3) - levels[i] ** (1 / 3)) / (1 / levels[i] - 1 / levels[i + 1]), block, i)
            for block, m in enumerate(masses)
            for i in range(len(levels) - 1)
        )
        spent = len(masses) / levels[-1]
        for _, block, i in steps:
            spent += 1 / levels[i] - 1 / levels[i + 1]
            if spent > density * len(masses) + 1e-9:
                break
            flat_index[row, block] = i
    return torch.tensor(levels)[index]


def oracle_levels(query, key, grid, density, block):
    """(B, H, N, N) pool of every block, text at 1."""
    pools = (1, 8, 16) if block == 16 else (1, 4, 16, block)
    row = rows_of_tokens(grid, block, nested)
    scores = block_mass(query, key, row, block, block)
    video = -(-grid.video_tokens // block)
    level = torch.ones_like(scores, dtype=torch.int64)
    level[..., :video, :video] = greedy(scores[..., :video, :video], density, pools)
    return row, pools, level


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_dense_oracle(grid, dtype):
    query, key, value = inputs(grid, dtype)
    plan = AutoConfig(density=0.3).plan(grid, query, key)
    block = block_size(grid, 48)
    row, pools, level = oracle_levels(query, key, grid, 0.3, block)
    assert torch.equal(levels_of(plan), level)
    tokens = torch.arange(grid.tokens)
    exact, rounded = (
        attend_levels(query, key, value, row, block, block, level, pools, tokens, exact) for exact in (True, False)
    )
    assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_equals_the_dense_oracle_at_size(grid, dtype):
    tensors, tokens = large_inputs(grid)
    query, key, value = (x.to(dtype) for x in tensors)
    row, pools, level = oracle_levels(query, key, grid, 0.09, 128)
    exact, rounded = (
        attend_levels(query, key, value, row, 128, 128, level, pools, tokens, exact) for exact in (True, False)
    )
    out = attend(query, key, value, AutoConfig(density=0.09).plan(grid, query, key))
    assert_close(out[:, tokens].transpose(1, 2), exact, rounded)


def test_nothing_is_dropped():
    grid = TokenGrid(5, 9, 10, text=7)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    assert AutoConfig(density=0.15).plan(grid, query, key).to_dense_mask().all()


@pytest.mark.parametrize("density", [0.09, 0.145, 0.25])
def test_beats_pyramid_and_rectified_at_equal_density(density):
    grid = TokenGrid(8, 16, 16)
    query, key, value = structured_qkv(grid, heads=4, dim=32)
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    error = {}
    for kind in (AutoConfig, PyramidConfig, RectifiedConfig):
        plan = kind(density=density).plan(grid, query, key)
        assert plan.density <= 1.1 * density
        error[kind] = (attend(query, key, value, plan).transpose(1, 2) - exact).norm()
    assert error[AutoConfig] <= 0.6 * min(error[PyramidConfig], error[RectifiedConfig])
