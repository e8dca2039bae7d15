"""Rectified SpaAttn against its golden values and a dense oracle."""

import pytest
import torch
from method_oracles import (
    DTYPES,
    GRIDS,
    LARGE,
    assert_close,
    attend_mask,
    golden_inputs,
    inputs,
    large_inputs,
    means,
    nested,
    rows_of_tokens,
)

from diffattn import RectifiedConfig, TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._order import block_size
from diffattn.methods._scores import counts_of, means_and_deviations
from diffattn.methods.rectified import good_blocks, neighbor_blocks, pooled_shares

BUDGETS = [RectifiedConfig(density=0.25), RectifiedConfig(keep=0.1, mass=0.3)]
GOLDEN = RectifiedConfig(keep=0.5, mass=0.3, neighbors=False, block=16, order="raster")


def name(config):
    return "parts" if config.keep is None else "published"


def test_golden_values():
    query, key, value = golden_inputs()
    order = torch.arange(64)
    (q, dq), (k, dk) = (means_and_deviations(tokens, order, 16) for tokens in (query, key))
    shares, _ = pooled_shares(q, k, counts_of(order, 16), key[:, :0])
    torch.testing.assert_close(
        shares[0, 0, 0], torch.tensor([0.971659, 0.004316, 0.000153, 0.023871]), rtol=0, atol=1e-6
    )
    bad = ~good_blocks(q, k, dq, dk)[0, 0]
    assert bad.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    plan = GOLDEN.plan(TokenGrid(4, 4, 4), query, key)
    critical = plan.lists[0].to_mask(4)[0, 0].int().tolist()
    assert critical == [[1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]]
    out = attend(query, key, value, plan)
    torch.testing.assert_close(out[0, 0, 0, :3], torch.tensor([1.002805, 1.170348, 1.277762]), rtol=0, atol=1e-6)
    assert abs(float(out.mean()) - 0.4408397) < 1e-6
    assert abs(float(plan.post.scale.mean()) - 0.998370) < 1e-6


def oracle(query, key, value, grid, config, block, tokens, exact=True):
    """Output (B, H, n, D) and the critical blocks (B, H, N, N) of the video, from the formulas of Sections 3 and 4."""
    row = rows_of_tokens(grid, block, nested)
    video = torch.arange(grid.video_tokens) + grid.video_start
    text = torch.arange(grid.text) + grid.text_start
    of = row[video] // block
    blocks = int(of.max()) + 1
    if config.keep is None:
        shares, text_share, gain = of_parts(query[:, video], key[:, video], key[:, text], row[video], block)
        count = round(config.density * blocks)
        critical = shares.argsort(-1, descending=True).argsort(-1) < count
    else:
        shares, text_share, gain = of_blocks(query[:, video], key[:, video], key[:, text], of)
        everything = torch.cat((shares, text_share), -1) if grid.text else shares
        ranked = everything.sort(-1, descending=True)
        count = ((ranked.values.cumsum(-1) <= config.mass).sum(-1) + 1).clamp(
            min=int((1 - (1 - config.keep)) * blocks)
        )
        critical = (everything.argsort(-1, descending=True).argsort(-1) < count[..., None])[..., :blocks]
        critical = critical | near_blocks(grid, of, blocks)
    weights = gain.masked_fill(critical, 0)
    tile = row[tokens] // block
    mask = torch.ones(*shares.shape[:2], len(tokens), grid.tokens, dtype=torch.bool)
    is_video = tile < blocks
    mask[:, :, is_video] = grid.text > 0
    mask[:, :, is_video.nonzero(), video] = critical[:, :, tile[is_video]][..., of]
    if grid.text:
        mask[:, :, is_video.nonzero(), text] = True
    out = attend_mask(query[:, tokens], key, value, mask, exact)
    mean_value, _ = means(value[:, video], of, blocks)
    rest = weights @ mean_value
    scaled = (1 - weights.sum(-1))[:, :, tile[is_video], None] * out[:, :, is_video] + rest[:, :, tile[is_video]]
    out[:, :, is_video] = scaled if exact else scaled.to(value.dtype).double()
    return out, critical


def of_blocks(query, key, words, of):
    """P of blocks and of text, and what of P is good by GAPR; one mean per block, as published."""
    blocks = int(of.max()) + 1
    q, n = means(query, of, blocks)
    k, _ = means(key, of, blocks)
    dq, _ = means((query.double() - q.transpose(1, 2)[:, of]).abs(), of, blocks)
    dk, _ = means((key.double() - k.transpose(1, 2)[:, of]).abs(), of, blocks)
    shares, text_share = given(q, k, n, words)
    good = (q @ k.mT).abs() > (dq @ k.mT).abs() + (q @ dk.mT).abs()
    return shares, text_share, shares.masked_fill(~good, 0)


def of_parts(query, key, words, row, block):
    """P of blocks and of text from parts of blocks, and what of P exceeds its mean deviation from part to part."""
    size = max(4, block // 8)
    blocks, per_block = int(row.max()) // block + 1, block // size
    q, n_q = means(query, row // size, blocks * per_block)
    k, n_k = means(key, row // size, blocks * per_block)
    shares, text_share = given(q, k, n_k, words)
    shares = torch.cat((shares.unflatten(-1, (blocks, per_block)).sum(-1), text_share), -1)
    shares, weight = shares.unflatten(-2, (blocks, per_block)), n_q.view(blocks, per_block, 1)
    weight = weight / weight.sum(-2, keepdim=True)
    mean = (shares * weight).sum(-2, keepdim=True)
    gain = (mean - ((shares - mean).abs() * weight).sum(-2, keepdim=True)).clamp(min=0)
    return mean[..., 0, :-1], mean[..., 0, -1:], gain[..., 0, :-1]


def given(q, k, counts, words):
    """What mean queries give to groups of keys that all score as their mean, and to all words: shares of 1."""
    scale = q.shape[-1] ** -0.5
    per_group = (scale * q @ k.mT).exp() * counts
    per_word = (scale * q @ words.double().transpose(1, 2).mT).exp()
    whole = per_group.sum(-1, keepdim=True) + per_word.sum(-1, keepdim=True)
    return per_group / whole, per_word.sum(-1, keepdim=True) / whole


def near_blocks(grid, of, blocks):
    """(N, N) bool, blocks that hold tokens at most one step apart along every axis."""
    member = torch.nn.functional.one_hot(of, blocks).T.float()  # (N, V)
    volume = member.view(blocks, 1, grid.frames, grid.height, grid.width)
    reached = torch.nn.functional.max_pool3d(volume, 3, stride=1, padding=1).view(blocks, -1)
    return reached @ member.T > 0


@pytest.mark.parametrize("config", BUDGETS, ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_the_dense_oracle(grid, dtype, config):
    query, key, value = inputs(grid, dtype)
    plan = config.plan(grid, query, key)
    block, tokens = block_size(grid, 32), torch.arange(grid.tokens)
    exact, critical = oracle(query, key, value, grid, config, block, tokens)
    rounded, _ = oracle(query, key, value, grid, config, block, tokens, exact=False)
    blocks = critical.shape[-1]
    every = plan.lists[0].to_mask(plan.order.shape[-1] // block)
    assert torch.equal(every[..., :blocks, :blocks], critical)
    assert every[..., blocks:].all() and every[..., blocks:, :].all()
    assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


@pytest.mark.parametrize("config", [RectifiedConfig(density=0.06), RectifiedConfig(keep=0.05, mass=0.1)], ids=name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", LARGE, ids=str)
def test_equals_the_dense_oracle_at_size(grid, dtype, config):
    tensors, tokens = large_inputs(grid)
    query, key, value = (x.to(dtype) for x in tensors)
    exact, rounded = (oracle(query, key, value, grid, config, 128, tokens, exact)[0] for exact in (True, False))
    out = attend(query, key, value, config.plan(grid, query, key))
    assert_close(out[:, tokens].transpose(1, 2), exact, rounded)


def test_float16_cannot_overflow():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = (60 * x for x in structured_qkv(grid, heads=1, dim=16))
    half = RectifiedConfig(density=0.2).plan(grid, query.half(), key.half())
    single = RectifiedConfig(density=0.2).plan(grid, query.half().float(), key.half().float())
    assert torch.equal(half.lists[0].indices, single.lists[0].indices)
    assert torch.equal(half.post.weights, single.post.weights.half())


def test_what_is_dropped_is_corrected_for():
    grid = TokenGrid(5, 9, 10)
    query, key, value = structured_qkv(grid, heads=2, dim=16)
    constant = torch.ones_like(value)
    for given in ({}, {"gapr": False}, {"estimate": "block"}, {"estimate": "block", "gapr": False}):
        config = RectifiedConfig(density=0.1, **given)
        out = attend(query, key, constant, config.plan(grid, query, key))
        # R and the weights of C sum to 1 up to the rounding of a softmax and of two sums
        assert (out - 1).abs().max() <= 8 * torch.finfo(torch.float32).eps


def test_neighbours_are_kept_first():
    grid = TokenGrid(6, 12, 20)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    near = neighbor_blocks(grid, "nested", 32)
    kept = RectifiedConfig(keep=0.05).plan(grid, query, key).lists[0].to_mask(len(near))
    assert kept[..., near].all()
    free = RectifiedConfig(keep=0.05, neighbors=False).plan(grid, query, key).lists[0].to_mask(len(near))
    assert not free[..., near].all() and (free <= kept).all()


def test_with_density_neighbours_are_kept_on_request():
    grid = TokenGrid(6, 12, 20)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    near = neighbor_blocks(grid, "nested", 32)
    plans = [RectifiedConfig(density=0.6, neighbors=asked).plan(grid, query, key) for asked in (None, False, True)]
    free, same, kept = (plan.lists[0].to_mask(len(near)) for plan in plans)
    assert torch.equal(free, same) and kept[..., near].all() and not free[..., near].all()
    assert kept.sum() == free.sum()


@pytest.mark.parametrize("text", [0, 20])
def test_several_means_are_nearer_to_dense_attention_than_one(text):
    grid = TokenGrid(8, 16, 16, text=text)
    query, key, value = structured_qkv(grid)
    mask = torch.ones(1, 1, 1, grid.tokens, dtype=torch.bool)
    exact = attend_mask(query, key, value, mask).transpose(1, 2)
    parts, block = (
        float((attend(query, key, value, config.plan(grid, query, key)) - exact).norm() / exact.norm())
        for config in (RectifiedConfig(density=0.2, estimate=estimate) for estimate in ("parts", "block"))
    )
    assert parts < 0.6 * block


def test_unknown_estimate():
    with pytest.raises(ValueError, match="estimate must be one of parts, block, got 'mean'"):
        RectifiedConfig(estimate="mean")


def test_shares_are_rounded_as_in_the_released_scripts():
    grid = TokenGrid(4, 8, 10)  # 20 blocks of 16; 1 - 0.8 is less than 0.2
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    config = RectifiedConfig(keep=0.2, neighbors=False, block=16)
    assert (config.plan(grid, query, key).lists[0].counts == 3).all()


def test_the_first_frame_sees_itself_on_request():
    grid = TokenGrid(4, 8, 10, text=5, text_first=True)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plain, opened = (
        RectifiedConfig(keep=0.1, neighbors=False, block=16, order="raster", first_frame=first).plan(grid, query, key)
        for first in (False, True)
    )
    frame = slice(5, 85)  # 5 blocks
    before, after = (plan.to_dense_mask() for plan in (plain, opened))
    assert after[..., frame, frame].all() and not before[..., frame, frame].all()
    after[..., frame, frame] = before[..., frame, frame]
    assert torch.equal(after, before)
    assert (
        RectifiedConfig.from_paper("wan2.1-14b").first_frame and not RectifiedConfig.from_paper("hunyuan").first_frame
    )


def test_first_frame_with_a_density_stays_in_the_budget():
    grid = TokenGrid(4, 8, 10)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    config = RectifiedConfig(density=0.3, block=16, order="raster", first_frame=True)
    plan = config.plan(grid, query, key)
    assert plan.to_dense_mask()[..., :80, :80].all() and abs(plan.density - 0.3) <= 1 / 40


def test_presets_of_the_paper():
    config = RectifiedConfig.from_paper("hunyuan")
    assert (config.keep, config.mass, config.block, config.order) == (0.2, 0.3, 128, "hilbert")
    assert RectifiedConfig.paper_schedule("wan2.1-14b").dense_layers == 2
