"""Neighborhood attention against the definition of its windows, and the methods it contains."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_oracles import DTYPES, GRIDS, LARGE, assert_close, attend_mask, coordinates, large_inputs

from diffattn import NeighborhoodConfig, TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._window import axis


def sees(x, y, size, window, stride, dilation, causal):
    """Whether the query at x sees the key at y along one axis, as generalized neighborhood attention defines it."""
    if x % dilation != y % dilation:
        return False
    x, y, size = x // dilation, y // dilation, len(range(x % dilation, size, dilation))
    if window == -1:
        return y <= x if causal else True
    if causal:
        leader = min(x // stride * stride + stride - 1, size - 1)
        return max(leader - window + 1, 0) <= y <= x
    left, right = window // 2, window // 2 + window % 2 - 1
    leader = min(x // stride * stride + stride // 2, size - 1)
    centre = min(max(leader, left), size - 1 - right)
    return centre - left <= y <= centre + right


def oracle_mask(grid, config, tokens=None):
    """(S, S) bool, or the rows of `tokens`."""
    at = torch.tensor(coordinates(grid))
    tokens = torch.arange(grid.tokens) if tokens is None else tokens
    mask = torch.ones(len(tokens), grid.tokens, dtype=torch.bool)
    video = torch.arange(grid.video_tokens) + grid.video_start
    rows = torch.isin(tokens, video).nonzero()
    asking = at[tokens[rows[:, 0]] - grid.video_start]
    seen = torch.ones(len(rows), len(video), dtype=torch.bool)
    stride = config.stride or (1, 1, 1)
    for i, size in enumerate((grid.frames, grid.height, grid.width)):
        rule = (config.window[i], stride[i], config.dilation[i], config.causal[i])
        pairs = torch.tensor([[sees(x, y, size, *rule) for y in range(size)] for x in range(size)])
        seen &= pairs[asking[:, i]][:, at[:, i]]
    mask[rows, video] = seen
    return mask


CONFIGS = [
    NeighborhoodConfig(window=(3, 5, 6)),
    NeighborhoodConfig(window=(2, 4, 5), stride=(2, 3, 4)),
    NeighborhoodConfig(window=(2, 3, 4), dilation=(2, 2, 2), causal=(True, False, False)),
    NeighborhoodConfig(window=(-1, 3, 3), stride=(1, 3, 3), causal=(True, True, False), tile=(2, 3, 3)),
    NeighborhoodConfig.sliding_tile((2, 3, 2), (1, 3, 3)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.window}{config.stride}{config.dilation}")
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_dense_oracle(grid, config):
    plan, mask = config.plan(grid), oracle_mask(grid, config)
    assert torch.equal(plan.to_dense_mask()[0, 0], mask)
    tensors = structured_qkv(grid, heads=1, dim=16, batch=2)
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (x.to(dtype) for x in tensors)
        exact, rounded = (attend_mask(query, key, value, mask, exact) for exact in (True, False))
        assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_equals_the_dense_oracle_at_size(grid, dtype):
    config = NeighborhoodConfig(window=(5, 9, 11))
    tensors, tokens = large_inputs(grid)
    query, key, value = (x.to(dtype) for x in tensors)
    mask = oracle_mask(grid, config, tokens)
    exact, rounded = (attend_mask(query[:, tokens], key, value, mask, exact) for exact in (True, False))
    assert_close(attend(query, key, value, config.plan(grid))[:, tokens].transpose(1, 2), exact, rounded)


def test_partial_tiles_equal_the_reference():
    grid = TokenGrid(3, 6, 7, text=5, text_first=True)
    plan = NeighborhoodConfig(window=(2, 3, 4), tile=(2, 3, 2)).plan(grid)
    assert plan.partial
    query, key, value = structured_qkv(grid, heads=2, dim=8, batch=2)
    key_mask = torch.rand(2, grid.tokens, generator=torch.Generator().manual_seed(0)) < 0.5
    for each in (plan, plan.with_key_mask(key_mask)):
        out, lse = attend(query, key, value, each, return_lse=True)
        exact, exact_lse = attend(query, key, value, each, impl="reference", return_lse=True)
        rounded = attend_mask(query, key, value, each.to_dense_mask(), exact=False).nan_to_num().transpose(1, 2)
        assert_close(out, exact.double(), rounded)
        assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    with pytest.raises(NotImplementedError, match="boxes in partial tiles"):
        attend(query, key, value, plan, impl="triton")


@given(st.integers(2, 14), st.integers(1, 14), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_one_axis_is_the_definition(size, window, stride, dilation, causal, tile):
    window = min(window, size // dilation)
    if window < stride:
        return
    line = axis(size, window, stride, dilation, causal, tile)
    want = torch.tensor(
        [[sees(x, y, size, window, stride, dilation, causal) for y in range(size)] for x in range(size)]
    )
    assert torch.equal(line.pairs(), want)
    assert int(line.sizes.max()) <= tile and int(line.tile_pairs().sum()) == int(want.sum())


def sliding_tile_mask(grid, tile, window):
    """Sliding tile attention by its own definition: whole tiles around the tile of the query, shifted inward."""
    at = torch.tensor(coordinates(grid)) // torch.tensor(tile)
    counts = torch.tensor([grid.frames, grid.height, grid.width]) // torch.tensor(tile)
    half = torch.tensor(window) // 2
    centre = torch.minimum(torch.maximum(at, half), counts - 1 - half)
    return ((at - centre[:, None]).abs() <= half).all(-1)


def inward_mask(grid, height, width):
    """FreeSwim's inward window by its own definition."""
    at = torch.tensor(coordinates(grid))
    seen = torch.ones(len(at), len(at), dtype=torch.bool)
    for i, (reach, size) in enumerate(((height, grid.height), (width, grid.width)), 1):
        x = at[:, i]
        low = (x - reach - (reach + x - size + 1).clamp(min=0)).clamp(min=0)
        high = (x + reach + (reach - x).clamp(min=0)).clamp(max=size - 1)
        seen &= (x >= low[:, None]) & (x <= high[:, None])
    return seen


def test_contains_sliding_tile_attention():
    grid = TokenGrid(4, 12, 15)
    plan = NeighborhoodConfig.sliding_tile((2, 4, 3), (1, 3, 3)).plan(grid)
    assert not plan.partial
    assert torch.equal(plan.to_dense_mask()[0, 0], sliding_tile_mask(grid, (2, 4, 3), (1, 3, 3)))


def test_contains_the_inward_window():
    grid = TokenGrid(2, 9, 11)
    plan = NeighborhoodConfig.inward(2, 3).plan(grid)
    assert torch.equal(plan.to_dense_mask()[0, 0], inward_mask(grid, 2, 3))


def test_contains_blocked_attention():
    grid = TokenGrid(4, 6, 6)
    mask = NeighborhoodConfig(window=(2, 3, 3), stride=(2, 3, 3)).plan(grid).to_dense_mask()[0, 0]
    block = torch.tensor(coordinates(grid)) // torch.tensor((2, 3, 3))
    assert torch.equal(mask, (block[:, None] == block).all(-1))


@pytest.mark.parametrize(
    ("grid", "config", "tokens", "visited", "partial"),
    [
        (TokenGrid(30, 48, 80), NeighborhoodConfig(window=(18, 24, 24), tile=(2, 8, 8)), 0.090, 0.184, 0.83),
        (
            TokenGrid(30, 48, 80),
            NeighborhoodConfig(window=(18, 24, 24), stride=(16, 8, 8), tile=(2, 8, 8)),
            0.090, 0.090, 0,
        ),
        (TokenGrid(1, 256, 256), NeighborhoodConfig(window=(-1, 80, 80), tile=(1, 16, 8)), 0.098, 0.133, 0.50),
        (
            TokenGrid(21, 45, 80),
            NeighborhoodConfig(window=(21, 25, 40), stride=(1, 5, 8), tile=(3, 5, 8)),
            0.278, 0.278, 0,
        ),
        (TokenGrid(21, 68, 120), NeighborhoodConfig.inward(15, 26, tile=(21, 2, 3)), 0.201, 0.225, 0.17),
    ],
    ids=["hunyuan", "hunyuan-aligned", "flux", "wan", "freeswim"],
)  # fmt: skip
def test_report_of_the_known_windows(grid, config, tokens, visited, partial):
    report = config.report(grid)
    assert (round(report.tokens, 3), round(report.visited, 3), round(report.partial, 2)) == (tokens, visited, partial)
    assert report.speed_up == pytest.approx(1 / report.visited)


@pytest.mark.parametrize("density", [0.09, 0.145, 0.25, 0.5])
@pytest.mark.parametrize("grid", [*GRIDS[:1], *GRIDS[3:]], ids=str)
def test_density_sets_a_window_of_whole_tiles(grid, density):
    config = NeighborhoodConfig(density=density)
    plan = config.plan(grid)
    text = 1 - grid.video_tokens**2 / grid.tokens**2
    assert plan.density == pytest.approx(config.report(grid).visited)
    assert plan.computed == pytest.approx(config.report(grid).visited * (1 - text) + text)
    assert not plan.partial and abs(plan.density - density) <= 0.15 * density


@pytest.mark.parametrize("size", [(8, 16, 16), (12, 32, 32), (13, 30, 45), (21, 30, 52), (21, 45, 80)], ids=str)
def test_windows_of_a_density_reach_beyond_their_own_tile(size):
    for density in (0.145, 0.25, 0.5):
        report = NeighborhoodConfig(density=density).report(TokenGrid(*size))
        axes = zip(report.window, report.tile, size)
        assert all(window > tile or window in (-1, length) for window, tile, length in axes), (density, report)
