"""NABLA against the masks that diffusers' Kandinsky makes."""

import pytest
import torch

from diffattn import NablaConfig, TokenGrid
from diffattn.analysis.synthetic import structured_qkv

kandinsky = pytest.importorskip("diffusers.models.transformers.transformer_kandinsky6_sr")
GRID = TokenGrid(3, 16, 24)
THRESHOLD, WINDOW = 0.8, (3, 1, 3)


def fractal(tokens):
    """`(B, S, H, D)` in the order of the tiles that Kandinsky's blocks are made of, `(B, H, S, D)`."""
    grid = tokens.unflatten(1, (GRID.frames, GRID.height, GRID.width))
    return (
        kandinsky._local_patch(grid, (GRID.frames, GRID.height, GRID.width), (1, 8, 8), 1)
        .flatten(1, 2)
        .transpose(1, 2)
    )


@pytest.mark.parametrize("window", [None, WINDOW])
def test_the_released_mask(window):
    query, key, _ = structured_qkv(GRID, heads=2, dim=16, batch=2)
    near = kandinsky.sliding_tile_mask(3, 2, 3, window or (1, 1, 1), torch.device("cpu"))
    if window is None:
        near = torch.zeros_like(near)
    blocks = kandinsky.nabla_block_mask(fractal(query), fractal(key), near, THRESHOLD).to_dense().bool()
    plan = NablaConfig(threshold=THRESHOLD, window=window).plan(GRID, query, key)
    tiles = plan.lists[0].to_mask(blocks.shape[-1])
    assert torch.equal(tiles, blocks) and 0.1 < plan.density < 0.95
    token = torch.arange(GRID.tokens).view(1, -1, 1, 1)
    assert torch.equal(plan.order.flatten(), fractal(token).flatten().int())


def test_a_threshold_of_one_keeps_everything_and_a_density_its_share():
    grid = TokenGrid(3, 10, 13, text=5)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    assert NablaConfig(threshold=1.0).plan(grid, query, key).to_dense_mask().all()
    plan = NablaConfig(density=0.4, window=(1, 3, 3), block=16).plan(grid, query, key)
    assert plan.density == pytest.approx(0.4, abs=0.03)


def test_the_settings_of_kandinsky_6_sr_are_those_of_its_class():
    made = NablaConfig.from_paper("kandinsky-6-sr")
    config = kandinsky.Kandinsky6SRTransformer3DModel(num_visual_blocks=0).config
    assert (made.threshold, made.window) == (config.nabla_threshold, tuple(config.nabla_window))


def test_a_window_without_a_middle_is_refused():
    with pytest.raises(ValueError, match=r"window must be odd.*\(3, 2, 3\)"):
        NablaConfig(window=(3, 2, 3))
