"""Pyramid Sparse Attention against its golden values and a dense oracle."""

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
    golden_inputs,
    inputs,
    large_inputs,
    levels_of,
    nested,
    rows_of_tokens,
)

from diffattn import Plan, PyramidConfig, Schedule, TileList, TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._order import block_size
from diffattn.methods._select import assign_levels, level_ends_of_thresholds, similarity_cap
from diffattn.methods.pyramid import level_ends_of_density

LEVELS = (1, 2, 4, 8)
SCORES = torch.tensor([[((7 * i + 5 * j) % 19 + 1) ** 2 / 400 for j in range(20)] for i in range(3)])


def aligned(ends, block, tile, blocks=20):
    """The released kernel takes the blocks of a level in groups; the planner does not need to."""
    result, previous = [], 0
    for level, end in zip(LEVELS, ends):
        group = -(-level // (block // tile))
        length = max(end - previous, 0)
        previous = min(blocks, previous + -(-length // group) * group)
        result.append(previous)
    return result


def up_to_ties(levels, scores):
    """Levels sorted among blocks of equal score, whose order is not defined."""
    return sorted(zip(scores.tolist(), levels), reverse=True)


@pytest.mark.parametrize(
    ("row", "golden"),
    [
        (0, [0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 4, 1, 0, 8, 2, 0]),
        (1, [0, 8, 1, 0, 0, 4, 1, 0, 8, 2, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0]),
        (2, [4, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 2]),
    ],
)
def test_golden_threshold_masks(row, golden):
    ends = level_ends_of_thresholds(SCORES, (0.4, 0.5, 0.6, 0.8), floor=0.06)[row].tolist()
    levels = assign_levels(SCORES[row], aligned(ends, 128, 32), LEVELS).tolist()
    assert up_to_ties(levels, SCORES[row]) == up_to_ties(golden, SCORES[row])


@pytest.mark.parametrize(
    ("block", "golden"),
    [
        (128, [0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 8, 1, 0, 0, 8, 1, 0, 0, 8, 0]),
        (32, [0, 0, 8, 2, 0, 0, 8, 2, 0, 8, 8, 1, 0, 8, 8, 1, 0, 8, 8, 0]),
    ],
)
def test_golden_quantile_masks(block, golden):
    ends = [int(20 * share + 1e-9) for share in (0.1, 0.15, 0.15, 0.35)]
    assert assign_levels(SCORES[0], aligned(ends, block, 32), LEVELS).tolist() == golden


def test_golden_output():
    level = torch.tensor([[1, 2, 4, 0], [2, 1, 8, 4], [0, 8, 1, 2], [4, 0, 2, 1]])[None, None]
    lists = tuple(TileList.from_mask(level == pool, 16 // pool, pool) for pool in LEVELS)
    plan = Plan(64, torch.arange(64)[None, None], lists, 16)
    out, lse = attend(*golden_inputs(), plan, return_lse=True)
    golden = {0: (1.016710, 1.183521, 1.289254), 17: (0.342606, 0.187935, 0.060899)}
    for row, values in golden.items():
        torch.testing.assert_close(out[0, row, 0, :3], torch.tensor(values), rtol=0, atol=1e-6)
    torch.testing.assert_close(lse[0, 0, [0, 17]], torch.tensor([9.212788, 8.167184]), rtol=0, atol=2e-6)
    assert abs(float(out.mean()) - 0.4398246) < 1e-6


def test_golden_similarity_cap():
    _, key, _ = golden_inputs()
    rows = key.transpose(1, 2)
    sims = (0.9962, 0.9661, 0.8218)
    assert similarity_cap(rows, 16, LEVELS[1:], (0.7, 0.65, 0.6)).flatten().tolist() == [8, 8, 8, 8]
    for i, sim in enumerate(sims):  # block 0 passes a threshold just below its similarity, and none just above
        for step, passes in ((-1e-4, True), (1e-4, False)):
            thresholds = tuple(sim + step if j == i else 1.0 for j in range(3))
            assert (int(similarity_cap(rows, 16, LEVELS[1:], thresholds)[0, 0, 0]) > 1) is passes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_dense_oracle(grid, dtype):
    query, key, value = inputs(grid, dtype)
    config = PyramidConfig(quantiles=(0.1, 0.2, 0.3, 0.6))
    plan = config.plan(grid, query, key)
    block = block_size(grid, 32)
    row = rows_of_tokens(grid, block, nested)
    level = oracle_levels(query, key, row, block, grid, config.quantiles)
    assert torch.equal(levels_of(plan), level)
    tokens = torch.arange(grid.tokens)
    exact, rounded = (
        attend_levels(query, key, value, row, block, block, level, LEVELS, tokens, exact) for exact in (True, False)
    )
    assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_equals_the_dense_oracle_at_size(grid, dtype):
    tensors, tokens = large_inputs(grid)
    query, key, value = (x.to(dtype) for x in tensors)
    config = PyramidConfig(quantiles=(0.03, 0.1, 0.1, 0.3))
    row = rows_of_tokens(grid, 128, nested)
    level = oracle_levels(query, key, row, 128, grid, config.quantiles)
    exact, rounded = (
        attend_levels(query, key, value, row, 128, 128, level, LEVELS, tokens, exact) for exact in (True, False)
    )
    out = attend(query, key, value, config.plan(grid, query, key))
    assert_close(out[:, tokens].transpose(1, 2), exact, rounded)


def oracle_levels(query, key, row, block, grid, quantiles):
    """(B, H, N, N) level of every block, text at level 1."""
    scores = block_mass(query, key, row, block, block)
    blocks = -(-grid.video_tokens // block)
    level = torch.ones_like(scores, dtype=torch.int64)
    rank = scores[..., :blocks, :blocks].argsort(-1, descending=True).argsort(-1)
    level[..., :blocks, :blocks] = 0
    start = 0
    for pool, quantile in zip(LEVELS, quantiles):
        end = int(blocks * quantile)
        level[..., :blocks, :blocks][(rank >= start) & (rank < end)] = pool
        start = max(start, end)
    return level


def test_similarity_cap_never_pools_further():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    free = PyramidConfig(quantiles=(0.1, 0.2, 0.3, 0.6)).plan(grid, query, key).to_dense_levels()
    capped = PyramidConfig(quantiles=(0.1, 0.2, 0.3, 0.6), similarity=(0.9, 0.9, 0.9)).plan(grid, query, key)
    capped = capped.to_dense_levels()
    assert torch.equal(capped > 0, free > 0) and (capped <= free).all() and (capped < free).any()


def test_sampled_importance_depends_on_its_seed_alone():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plans = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)
        config = PyramidConfig(density=0.2, importance="sampled", seed=seed)
        plans.append(config.plan(grid, query, key).to_dense_levels())
    assert torch.equal(plans[0], plans[1]) and not torch.equal(plans[0], plans[2])


@given(st.integers(1, 64), st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_threshold_ends_cross_their_threshold(blocks, seed, thresholds):
    scores = torch.rand(blocks, generator=torch.Generator().manual_seed(seed)) + 1e-3
    thresholds = sorted(thresholds)
    ends = level_ends_of_thresholds(scores, tuple(thresholds), floor=0.0).tolist()
    mass = scores.double().sort(descending=True).values.cumsum(0) / scores.double().sum()
    assert ends == sorted(ends) and ends[-1] <= blocks
    for end, threshold in zip(ends, thresholds):
        assert end == blocks or end == 0 or mass[end - 1] > threshold or threshold < float(mass[0])


@given(st.floats(0.02, 1), st.integers(16, 400))
def test_level_ends_meet_the_density(density, blocks):
    ends = level_ends_of_density(density, blocks, LEVELS)
    counts = [end - start for start, end in zip([0, *ends], ends)]
    reached = sum(count / level for count, level in zip(counts, LEVELS)) / blocks
    assert min(counts) >= 0 and ends[-1] <= blocks
    assert abs(reached - density) <= 1 / blocks + 1e-9


@pytest.mark.parametrize("levels", [(1,), (1, 16), (1, 2, 16), (1, 2, 4, 8, 16)], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
def test_any_levels_meet_the_density(levels, density):
    grid = TokenGrid(6, 12, 20)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plan = PyramidConfig(density=density, levels=levels).plan(grid, query, key)
    assert abs(plan.density - density) <= 1 / 40 and set(plan.level_density) == set(levels)


def test_one_level_takes_thresholds_and_quantiles():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    for options in ({"thresholds": (0.5,)}, {"quantiles": (0.5,)}, {"quantiles": (0.5,), "similarity": ()}):
        plan = PyramidConfig(levels=(1,), **options).plan(grid, query, key)
        assert set(plan.to_dense_levels().unique().tolist()) == {0, 1}


def test_quantiles_are_rounded_as_in_the_released_code():
    grid = TokenGrid(12, 12, 20)  # 180 blocks of 16; 0.35 times 180 is less than 63
    query, key, _ = structured_qkv(grid, heads=1, dim=16)
    plan = PyramidConfig(quantiles=(0.1, 0.15, 0.15, 0.35), block_q=16, block_k=16).plan(grid, query, key)
    assert (sum(lists.counts for lists in plan.lists) == 62).all()


def test_presets_of_the_paper():
    config = PyramidConfig.from_paper("wan2.1-14b")
    assert (config.thresholds, config.block_q, config.order) == ((0.4, 0.5, 0.6, 0.8), 128, "hilbert")
    assert PyramidConfig.paper_schedule("wan2.1-14b") == Schedule(dense_start=0.3, dense_layers=0)
    with pytest.raises(ValueError, match=r"no published pyramid settings for 'x', there are: wan2\.1-14b"):
        PyramidConfig.from_paper("x")
