"""Radial Attention against a dense oracle: the band token by token, then the tiles that hold it."""

from functools import lru_cache
from itertools import product

import pytest
import torch
from method_oracles import DTYPES, GRIDS, LARGE, assert_close, attend_mask, inputs, large_inputs

from diffattn import RadialConfig, TokenGrid, attend

DECIMATED = TokenGrid(9, 5, 6)  # frames so small that bands are narrower than a tile, and whole distances are dropped
DECIMATION_TILE = 128  # of the released code, whatever its tile size


def half_width(i, j, s, narrowest, tile, decay, model, released=False):
    """Tokens to either side that frame i sees of frame j, None where the pair is dropped.

    The released code drops neighbouring frames by the same rule as those further off.
    """
    distance = abs(i - j)
    band = 2 ** s.bit_length() / 2 ** distance.bit_length()
    if j == 0 and model == "wan":
        return s
    if (distance > 1 or released) and band < narrowest and distance % int(narrowest / band):
        return None
    return s if distance <= 1 else max(tile, band * decay)


@lru_cache(maxsize=64)
def band(s, width):
    """(s, s) bool, tokens at most `width` apart in their frames."""
    return (torch.arange(s)[:, None] - torch.arange(s)).abs() <= width


@lru_cache(maxsize=64)
def tiles_of_band(s, tile, width):
    """(s, s) bool, tokens of two frames whose tiles, counted from the start of each frame, hold a pair of the band."""
    side = -(-s // tile)
    padded = torch.zeros(side * tile, side * tile, dtype=torch.bool)
    padded[:s, :s] = band(s, width)
    held = padded.view(side, tile, side, tile).any(3).any(1)
    return held.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:s, :s]


def aligned_mask(grid, tile, decay, model, tokens):
    """(n, S) bool, what `tokens` see where every frame has tiles of its own."""
    s, mask = grid.frame_tokens, torch.ones(len(tokens), grid.tokens, dtype=torch.bool)
    for row, token in enumerate((tokens - grid.video_start).tolist()):
        if 0 <= token < grid.video_tokens:
            for frame in range(grid.frames):
                width = half_width(token // s, frame, s, tile, tile, decay, model)
                keys = slice(grid.video_start + frame * s, grid.video_start + (frame + 1) * s)
                mask[row, keys] = False if width is None else tiles_of_band(s, tile, width)[token % s]
    return mask


def official_tiles(grid, tile, decay, model):
    """(N, N) bool: each pair of frames drawn where it lies among the tiles, and the tiles it fills well enough."""
    s, side = grid.frame_tokens, -(-grid.tokens // tile)
    blocks = torch.zeros(side, side, dtype=torch.bool)
    whole = grid.video_tokens // tile  # rows and columns from here on are dense
    blocks[whole:], blocks[:, whole:] = True, True
    for i in range(grid.frames):
        for j in range(grid.frames):
            width = half_width(i, j, s, DECIMATION_TILE, tile, decay, model, released=True)
            if width is None:
                continue
            n = -(-s // tile)
            canvas = torch.zeros((n + 1) * tile, (n + 1) * tile)
            top, left = i * s % tile, j * s % tile
            canvas[top : top + s, left : left + s] = band(s, width).float()
            for a in range(min(n, side - i * s // tile)):
                for b in range(min(n, side - j * s // tile)):
                    columns = canvas[a * tile : (a + 1) * tile, b * tile : (b + 1) * tile].sum(0)
                    filled, heavy = int((columns > 0).sum()), int((columns / tile > 1 / 3).sum())
                    if filled and heavy / filled > 0.6:
                        blocks[i * s // tile + a, j * s // tile + b] = True
    return blocks


def official_mask(grid, tile, decay, model):
    """(S, S) bool."""
    tiles = official_tiles(grid, tile, decay, model)
    return tiles.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[: grid.tokens, : grid.tokens]


def check(config, grid, tensors, mask, tokens, dtype):
    query, key, value = (tensor.to(dtype) for tensor in tensors)
    plan = config.plan(grid)
    exact, rounded = (attend_mask(query[:, tokens], key, value, mask, exact) for exact in (True, False))
    assert_close(attend(query, key, value, plan)[:, tokens].transpose(1, 2), exact, rounded)
    return plan


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay, model", [(0.2, "wan"), (0.8, "wan"), (1.0, "hunyuan")])
@pytest.mark.parametrize("grid", [*GRIDS, DECIMATED], ids=str)
def test_aligned_equals_the_dense_oracle(grid, decay, model, dtype):
    config, tokens = RadialConfig(decay=decay, model=model), torch.arange(grid.tokens)
    mask = aligned_mask(grid, 16, decay, model, tokens)
    assert not mask.all()
    plan = check(config, grid, inputs(grid), mask, tokens, dtype)
    assert torch.equal(plan.to_dense_mask()[0, 0], mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_aligned_equals_the_dense_oracle_at_size(grid, dtype):
    tensors, tokens = large_inputs(grid)
    check(RadialConfig(decay=0.8), grid, tensors, aligned_mask(grid, 128, 0.8, "wan", tokens), tokens, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("decay, model", [(0.2, "wan"), (1.0, "hunyuan")])
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if not grid.text_first], ids=str)
def test_official_equals_the_dense_oracle(grid, decay, model, dtype):
    config, tokens = RadialConfig(variant="official", decay=decay, model=model), torch.arange(grid.tokens)
    mask = official_mask(grid, 16, decay, model)
    assert not mask.all()
    plan = check(config, grid, inputs(grid), mask, tokens, dtype)
    assert torch.equal(plan.to_dense_mask()[0, 0], mask)
    assert plan.block_q == 16


@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_official_equals_the_dense_oracle_at_size(grid):
    tensors, tokens = large_inputs(grid)
    mask = official_mask(grid, 128, 1.0, "wan")[tokens]
    check(RadialConfig(variant="official", decay=1.0), grid, tensors, mask, tokens, torch.float32)


def test_official_drops_neighbouring_frames_of_few_tokens():
    """Made by the released code (mit-han-lab/radial-attention at 72788d4)."""
    plan = RadialConfig(variant="official", block_size=64, decay=3.0).plan(TokenGrid(2, 4, 16, text=64))
    assert plan.lists[0].to_mask(3)[0, 0].int().tolist() == [[1, 0, 1], [1, 1, 1], [1, 1, 1]]


SIZES = [(2, 2, 8), (3, 4, 8), (5, 5, 7), (2, 8, 8), (4, 9, 7), (6, 8, 12), (3, 10, 13), (9, 4, 4), (2, 12, 16)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_official_tiles_equal_the_released_rule_token_by_token(size):
    for text, tile, decay, model in product((0, 23, 64), (16, 32, 64, 128), (0.2, 1.0, 3.0), ("wan", "hunyuan")):
        grid = TokenGrid(*size, text=text)
        plan = RadialConfig(variant="official", block_size=tile, decay=decay, model=model).plan(grid)
        wanted = official_tiles(grid, tile, decay, model)
        assert torch.equal(plan.lists[0].to_mask(len(wanted))[0, 0], wanted), (text, tile, decay, model)
