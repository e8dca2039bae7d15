"""The embedded model on coarser grids: what replaces its positions and its decoder in the search benchmark."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from benchmarks.hunt.objectives import pictures
from examples.tiny_wan.forward import StretchedPositions, rotary_tables
from examples.tiny_wan.latents import analytic_latents, normalise, positions
from examples.tiny_wan.rendering import render
from examples.tiny_wan.sampling import sample_scene
from examples.tiny_wan.scenes import frame_times


def test_positions_are_the_stock_ones_at_the_full_size_and_stretched_below():
    stock, ours = WanRotaryPosEmbed(32, (1, 2, 2), 64), StretchedPositions(32)
    latents = torch.empty(1, 6, 9, 32, 32)
    for mine, theirs in zip(ours(latents), stock(latents)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    half = torch.empty(1, 6, 9, 16, 16)
    for mine, trained, wrong in zip(ours(half), rotary_tables(positions((9, 8, 8)), 32), stock(half)):
        assert mine.shape == wrong.shape and torch.equal(mine[0, :, 0, ::2], trained)
        assert (mine - wrong).abs().max() > 0.5


@pytest.mark.parametrize("side", [32, 48])
def test_latents_as_pictures_are_the_clip_made_small(side):
    import numpy as np

    scene = sample_scene(np.random.default_rng(3), objects=1)
    clip = render(scene, frame_times(33), side, side)
    got = pictures(normalise(analytic_latents(clip[None])))[0]
    small = torch.nn.functional.avg_pool2d(clip, 4) / 2 + 0.5
    wanted = torch.cat([small[:1], small[1:].unflatten(0, (16, 2)).mean(1)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
