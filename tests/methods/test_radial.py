import hashlib
import random

import numpy as np
import pytest
import torch

import diffattn
from diffattn import RadialConfig, Schedule, TokenGrid
from diffattn.methods._radial_official import tile_mask

# frames, tokens of a frame, tokens, tile, decay, model, tiles a side, kept tiles, kept in the first, middle and last
# row, sha256 of the packed mask: what the released code gives (mit-han-lab/radial-attention at 72788d4)
GOLDEN = {
    "tiny": (6, 384, 2304, 128, 1.0, "wan", 18, 285, (12, 16, 15), "54355793685465fa"),
    "tiny hunyuan": (6, 384, 2304, 128, 1.0, "hunyuan", 18, 270, (12, 15, 12), "f0e3fff905a3da63"),
    "64-token tiles": (20, 384, 7680, 64, 0.2, "wan", 120, 5472, (26, 44, 32), "5121b2e14dffa138"),
    "decimated": (34, 256, 8704, 128, 0.8, "wan", 68, 2084, (22, 36, 24), "b780ed2e75090c60"),
    "misaligned, text": (9, 390, 3766, 128, 1.0, "hunyuan", 29, 658, (18, 27, 29), "165a98611c67db14"),
    "wan 768p 69": (18, 3840, 69120, 128, 0.2, "wan", 540, 83728, (92, 148, 120), "0ef2058445758131"),
    "wan 768p 69 decay 1": (18, 3840, 69120, 128, 1.0, "wan", 540, 125656, (126, 202, 154), "22d6c8f0e75763e7"),
    "wan 2.2 77": (20, 3840, 76800, 64, 0.8, "wan", 1200, 502720, (214, 364, 272), "6543e696a16443f5"),
    "hunyuan 117": (30, 3840, 115200, 128, 0.95, "hunyuan", 900, 222452, (144, 199, 144), "bddae0f0c46ab369"),
    "hunyuan text": (30, 3840, 115456, 128, 0.95, "hunyuan", 902, 226056, (146, 228, 902), "352dc95c68911b99"),
    "wan 720p padded": (21, 3600, 75648, 128, 0.2, "wan", 591, 92445, (99, 163, 591), "1233b8bc023cb579"),
    "wan 480p padded": (21, 1560, 32768, 128, 1.0, "wan", 256, 29442, (71, 131, 256), "e577d3129ab8b89d"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_official_masks_are_bit_identical(case):
    frames, s, tokens, block, decay, model, side, kept, rows, sha = GOLDEN[case]
    mask = tile_mask(frames, s, tokens // block, frames * s // block, block, decay, model)
    assert mask.shape == (side, side) and int(mask.sum()) == kept
    assert tuple(mask.sum(-1)[[0, side // 2, -1]].tolist()) == rows
    assert hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:16] == sha


@pytest.mark.parametrize(
    "grid, decay, block, model, kept, density",
    [
        (TokenGrid(18, 48, 80), 0.2, 128, "wan", 83728, 0.287133),
        (TokenGrid(18, 48, 80), 1.0, 128, "wan", 125656, 0.430919),
        (TokenGrid(20, 48, 80), 0.8, 64, "wan", 502720, 0.349111),
        (TokenGrid(30, 48, 80), 0.95, 128, "hunyuan", 222452, 0.274632),
        (TokenGrid(30, 48, 80, text=256), 0.95, 128, "hunyuan", 226056, 0.277845),
    ],
)
def test_official_plans_have_the_published_density(grid, decay, block, model, kept, density):
    config = RadialConfig(variant="official", decay=decay, block_size=block, model=model)
    plan = diffattn.make_plan(config, grid)
    assert int(plan.lists[0].counts.sum()) == kept
    assert plan.computed == pytest.approx(density, abs=5e-7)  # text included


@pytest.mark.parametrize("grid", [TokenGrid(21, 45, 80), TokenGrid(21, 30, 52)])
def test_official_plans_pad_what_the_released_code_cannot_run(grid):
    plan = diffattn.make_plan(RadialConfig(variant="official", decay=1.0, block_size=128), grid)
    frames, s, side = grid.frames, grid.frame_tokens, plan.order.shape[-1] // 128
    expected = tile_mask(frames, s, side, frames * s // 128, 128, 1.0, "wan")
    assert torch.equal(plan.lists[0].to_mask(side)[0, 0], expected)


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_aligned_is_official_where_frames_are_whole_tiles(decay):
    grid = TokenGrid(18, 48, 80, text=256)
    plans = [RadialConfig(variant=variant, decay=decay).plan(grid) for variant in ("aligned", "official")]
    assert torch.equal(*(plan.lists[0].to_mask(542) for plan in plans))


def intended(grid: TokenGrid, tile: int, decay: float, far_only: bool) -> torch.Tensor:
    """Token by token from the formula: what every query row should see of the frames that are not dropped."""
    s, frames = grid.frame_tokens, grid.frames
    offset = (torch.arange(s)[:, None] - torch.arange(s)).abs()
    mask = torch.zeros(frames, s, frames, s, dtype=torch.bool)
    for i in range(frames):
        for j in range(frames):
            d = abs(i - j)
            band = 2 ** s.bit_length() / 2 ** d.bit_length()
            if (d <= 1 or j == 0) and not far_only:
                mask[i, :, j] = True
            elif d > 1 and j > 0 and (band >= tile or d % int(tile / band) == 0):
                mask[i, :, j] = offset <= max(tile, band * decay)
    return mask.view(frames * s, frames * s)


def recall(config: RadialConfig, grid: TokenGrid, far_only: bool = False) -> float:
    """The worst query row's share of what it should see."""
    plan = config.plan(grid)
    wanted = intended(grid, plan.block_q, config.decay, far_only)
    seen = plan.to_dense_mask()[0, 0] & wanted
    return float((seen.sum(-1) / wanted.sum(-1)).nan_to_num(1.0).min())


def test_no_row_loses_an_intended_neighbour_at_any_resolution():
    draw = random.Random(0)
    for _ in range(20):
        grid = TokenGrid(draw.randint(1, 9), draw.randint(3, 24), draw.randint(3, 24))
        for decay in (0.2, 0.8, 1.0):
            assert recall(RadialConfig(decay=decay), grid) == 1.0, (grid, decay)


@pytest.mark.parametrize("size", [(30, 52), (27, 48)])
def test_borders_are_whole_where_the_official_masks_lose_them(size):
    grid = TokenGrid(3, *size)
    assert recall(RadialConfig(decay=0.2, block_size=128), grid, far_only=True) == 1.0
    assert recall(RadialConfig(decay=0.2, block_size=128, variant="official"), grid, far_only=True) < 0.7


@pytest.mark.parametrize(
    "grid, least", [(TokenGrid(9, 16, 16), 0.3), (TokenGrid(13, 30, 45, text=226), 0.3), (TokenGrid(5, 9, 10), 0.5)]
)
def test_density_steers_and_is_never_exceeded(grid, least):
    asked = (least, 0.6, 0.8, 1.0)
    reached = [RadialConfig(density=density).plan(grid).density for density in asked]
    assert reached == sorted(reached) and reached[-1] == pytest.approx(1.0)
    for got, density in zip(reached, asked):
        assert 0.5 * density < got <= density + 1e-9


def test_a_density_out_of_reach_is_said_and_not_hidden(monkeypatch):
    said = []
    monkeypatch.setattr(diffattn.methods.radial.logger, "warning", said.append)
    plan = RadialConfig(density=0.01, block_size=128).plan(TokenGrid(9, 16, 16))
    assert said == [f"radial attention on 9x16x16 has density {plan.density:.3f} at least, 0.01 was asked for"]


def test_text_sees_and_is_seen_by_everything():
    for first in (False, True):
        grid = TokenGrid(4, 9, 10, text=37, text_first=first)
        mask = RadialConfig().plan(grid).to_dense_mask()[0, 0]
        text = slice(grid.text_start, grid.text_start + grid.text)
        assert mask[text].all() and mask[:, text].all() and not mask.all()


def test_from_paper_gives_config_and_schedule():
    assert RadialConfig.from_paper("wan2.2-a14b") == RadialConfig(decay=0.8, block_size=64)
    assert RadialConfig.paper_schedule("wan2.1-14b") == Schedule(dense_start=12 / 50, dense_layers=1)
    assert RadialConfig.from_paper("hunyuan").model == "hunyuan"
    with pytest.raises(ValueError, match=r"no published radial settings for 'mochi', there are: wan2.1-14b"):
        RadialConfig.from_paper("mochi")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"density": 0}, "density must be above 0"),
        ({"density": 1.5}, "density must be above 0 and at most 1, got 1.5"),
        ({"density": 0.5, "decay": 0.5}, "one of density, decay: got density=0.5 and decay=0.5"),
        ({"decay": -1}, "decay must be at least 0"),
        ({"block_size": 100}, "block_size must be one of"),
        ({"variant": "exact"}, "variant must be one of aligned, official"),
        ({"model": "mochi"}, "model must be one of wan, hunyuan"),
        ({"variant": "official", "density": 0.5}, "steered by decay"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RadialConfig(**options)
