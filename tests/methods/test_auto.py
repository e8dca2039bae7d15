"""The default method against dense float64 oracles of its errors, its budget and its output."""

from collections import Counter
from itertools import pairwise, product

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
    inputs,
    large_inputs,
    levels_of,
    nested,
    rows_of_tokens,
)
from torch.utils._python_dispatch import TorchDispatchMode

from diffattn import AutoConfig, PyramidConfig, RectifiedConfig, TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._allocate import allocate
from diffattn.methods._order import block_size

POOLS = (1, 4, 16)
PARTS = {128: 16, 64: 8, 32: 4, 16: 4}
LAUNCHES = 82  # of a plan on a GPU
VIEWS = (
    "view _unsafe_view expand slice select unsqueeze transpose permute alias detach split split_with_sizes unbind t "
    "diagonal as_strided squeeze"
).split()


def total_error(error, level):
    return error.gather(0, level[None]).double().sum().item()


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=6), st.floats(0.07, 1))
@settings(max_examples=80, deadline=None)
def test_no_other_allocation_of_the_same_cost_errs_less(error, density):
    error, cost = torch.tensor(error).sort(-1).values.T.contiguous(), torch.tensor([16, 4, 1])
    level = allocate(error, density, POOLS)
    spent = int(cost[level].sum())
    assert spent <= max(16 * density, 1) * error.shape[1] + 1e-6
    others = torch.tensor(list(product(range(3), repeat=error.shape[1])))
    best = min(total_error(error, other) for other in others if cost[other].sum() <= spent)
    # the last block may have stayed at level 1 where that lies above the chord from level 0 to level 2
    above = (error[1] - error[0].lerp(error[2], 12 / 15)).clamp(min=0).max().item()
    assert total_error(error, level) <= best + above + 1e-6


@pytest.mark.parametrize("density", [0.08, 0.145, 0.3, 0.8])
def test_random_allocations_of_the_same_budget_err_more(density):
    generator = torch.Generator().manual_seed(0)
    error = torch.rand(200, generator=generator) ** 4 * torch.rand(3, 200, generator=generator).sort(0).values
    level, cost = allocate(error, density, POOLS), torch.tensor([16, 4, 1])
    assert 16 * density * 200 - 12 <= cost[level].sum() <= 16 * density * 200
    for _ in range(300):
        other = level[torch.randperm(200, generator=generator)]
        some = torch.rand(200, generator=generator) < 0.1  # near the optimum as well as far from it
        near = level.clone()
        near[some] = level[some][torch.randperm(int(some.sum()), generator=generator)]
        assert total_error(error, level) <= min(total_error(error, other), total_error(error, near)) + 1e-6


def test_a_larger_budget_refines_and_never_coarsens():
    error = torch.rand(3, 2, 500, generator=torch.Generator().manual_seed(0)).sort(0).values
    levels = [allocate(error, density, POOLS) for density in (0.01, 0.1, 0.145, 0.25, 0.5, 1.0)]
    assert (levels[0] == 2).all() and (levels[-1] == 0).all()
    assert all((finer <= coarser).all() for coarser, finer in pairwise(levels))


@pytest.mark.parametrize("error", [0.0, 1 / 48, 1e-38, torch.nan])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.3, 0.7])
def test_blocks_that_are_all_alike_meet_the_density(error, density):
    chosen = allocate(torch.full((3, 48), error) * torch.tensor([0, 0.6, 1.5])[:, None, None], density, POOLS)
    cost = (1 / torch.tensor(POOLS))[chosen].mean(-1)
    assert (cost <= density + 1e-6).all() and (cost >= density - 1 / 48).all()


def padded_tokens(row, total):
    """(total,) token of each row; a row of padding repeats the one before it."""
    tokens = torch.full((total,), -1)
    tokens[row] = torch.arange(len(row))
    for place in range(1, total):
        if tokens[place] < 0:
            tokens[place] = tokens[place - 1]
    return tokens


def in_pools(rows, pool, block):
    """(B, H, N) mean squared distance of the rows (B, H, R, D) of a block to the mean of their pool."""
    parts = rows.unflatten(2, (-1, pool))
    squares = (parts - parts.mean(3, keepdim=True)).square().sum(-1)
    return squares.flatten(2).unflatten(2, (-1, block)).mean(-1)


def expected_errors(query, key, value, grid, density, block):
    """(L, B, H, N, N) float64 error of every pair of blocks of the video, at every level."""
    pools = (1, 8, 16) if block == 16 else (1, 4, 16, block)
    row, size = rows_of_tokens(grid, block, nested), PARTS[block]
    total = (int(row.max()) // block + 1) * block
    tokens = padded_tokens(row, total)
    q, k, v = (x.double()[:, tokens].transpose(1, 2) for x in (query, key, value))
    video = -(-grid.video_tokens // block)
    count = torch.bincount(row // size, minlength=total // size)
    parts_q, parts_k = (x.unflatten(2, (-1, size)).mean(3) for x in (q, k))
    probs = (query.shape[-1] ** -0.5 * parts_q @ parts_k.mT + count.log()).softmax(-1)
    mass = probs.unflatten(-1, (-1, block // size)).sum(-1).unflatten(-2, (-1, block // size)).mean(-2)
    mass = mass[:, :, :video, :video]
    q, k, v = (x[:, :, : video * block] for x in (q, k, v))
    square = q.square().mean(-1).unflatten(-1, (-1, block)).mean(-1)[..., None] / query.shape[-1]
    spread_v = v.var(2, correction=0).sum(-1)[..., None, None]
    variance = torch.stack([square * in_pools(k, pool, block)[..., None, :] for pool in pools])
    values = torch.stack([in_pools(v, pool, block)[..., None, :] / spread_v for pool in pools])
    lost = 1 - (-variance / 2).exp()
    share = density * mass**0.75 / (mass**0.75).mean((-2, -1), keepdim=True)
    alone = (1 / share.clamp(min=1e-30)).log()  # the pool that the mass alone would choose, to the nearest level
    level = (alone[..., None] - torch.tensor(pools).double().log()).abs().argmin(-1)
    mean_lost = (mass * lost.gather(0, level[None])[0]).sum(-1).mean(-1)[..., None, None]
    return pools, row, mass * ((variance * values).sqrt() + (lost - mean_lost).abs())


def least_error(error, cost, budget):
    """A bound from below on the sum of errors of any allocation in the budget, by Lagrange duality, and its price."""
    low, high = -40.0, 20.0
    for _ in range(60):
        price = 2 ** ((low + high) / 2)
        level = (error + price * cost.view(-1, 1, 1)).argmin(0)
        low, high = ((low + high) / 2, high) if cost[level].sum() > budget else (low, (low + high) / 2)
    return float((error + price * cost.view(-1, 1, 1)).amin(0).sum() - price * budget), price


def assert_plan_is_best(plan, query, key, value, grid, density, block):
    pools, row, errors = expected_errors(query, key, value, grid, density, block)
    level = levels_of(plan)
    video = errors.shape[-1]
    assert (level[..., video:, :] == 1).all() and (level[..., video:] == 1).all()
    index = (level[:, :, :video, :video, None] > torch.tensor(pools)).sum(-1)
    cost = 1 / torch.tensor(pools).double()
    budget = density * video**2
    for sample, head in product(*map(range, index.shape[:2])):
        found, error = index[sample, head], errors[:, sample, head]
        spent = float(cost[found].sum())
        assert budget - 1 < spent <= budget + 1e-6
        bound, price = least_error(error, cost, budget)
        # at most one exact block is not bought; the plan is made in float32
        assert error.gather(0, found[None]).sum() <= bound * (1 + 1e-4) + price
    return pools, row, level


@pytest.mark.parametrize("given_value", [True, False], ids=["value", "keys only"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_levels_are_the_best_of_their_budget(grid, given_value):
    query, key, value = inputs(grid)
    value = value if given_value else None
    plan = AutoConfig(density=0.3).plan(grid, query, key, value=value)
    assert_plan_is_best(plan, query, key, value if given_value else key, grid, 0.3, block_size(grid, 48))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_dense_oracle(grid, dtype):
    query, key, value = inputs(grid, dtype)
    plan = AutoConfig(density=0.3).plan(grid, query, key, value=value)
    block = block_size(grid, 48)
    pools, row, level = assert_plan_is_best(plan, query, key, value, grid, 0.3, block)
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
    plan = AutoConfig(density=0.09).plan(grid, query, key, value=value)
    pools, row, level = assert_plan_is_best(plan, query, key, value, grid, 0.09, 128)
    exact, rounded = (
        attend_levels(query, key, value, row, 128, 128, level, pools, tokens, exact) for exact in (True, False)
    )
    out = attend(query, key, value, plan)
    assert_close(out[:, tokens].transpose(1, 2), exact, rounded)


class Launches(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.counts[name] += name not in VIEWS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grid", [TokenGrid(9, 32, 32), TokenGrid(13, 30, 45, text=9)], ids=str)
def test_planning_waits_for_nothing_and_launches_little(grid):
    """A tensor on `meta` has no numbers: whoever asks for one fails, as on a GPU they would wait."""
    query, key, value = (torch.empty(2, grid.tokens, 8, 64, device="meta") for _ in range(3))
    AutoConfig()._plan(grid, query, key, value=value)  # constants of the grid are made once
    with Launches() as launches:
        AutoConfig()._plan(grid, query, key, value=value)
    assert launches.counts.total() <= LAUNCHES, launches.counts


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", range(3))
def test_a_bad_number_spoils_no_budget(bad, which):
    grid = TokenGrid(5, 9, 10)
    tensors = [x.clone() for x in structured_qkv(grid, heads=2, dim=16)]
    tensors[which][0, 7, 0, 3] = bad
    plan = AutoConfig(density=0.3).plan(grid, *tensors[:2], value=tensors[2])
    clean = AutoConfig(density=0.3).plan(grid, *(x[:, :, 1:] for x in tensors[:2]), value=tensors[2][:, :, 1:])
    assert plan.density == pytest.approx(0.3, abs=0.01)
    assert torch.equal(plan.to_dense_levels()[:, 1:], clean.to_dense_levels())


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
