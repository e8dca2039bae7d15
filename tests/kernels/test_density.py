"""How much a plan computes, against a count of every product, entry by entry."""

from dataclasses import replace

import pytest
import torch
from diffattn.kernels.plan.density import level_densities
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels_draws import plans

from diffattn import PyramidConfig, RadialConfig, RectifiedConfig, TokenGrid, VMoBAConfig
from diffattn.analysis.synthetic import structured_qkv

DRAWN = {"max_examples": 80, "deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def pick(tensor, batch, head):
    return tensor[min(batch, len(tensor) - 1), min(head, tensor.shape[1] - 1)]


def counted(plan, visual):
    """The share of each level, every product of a query row and a key row counted for itself."""
    shapes = [plan.order.shape, plan.query_shape, *(lists.counts.shape for lists in plan.lists)]
    batch, heads = (max(shape[dim] for shape in shapes) for dim in (0, 1))
    batch = batch if plan.key_mask is None else max(batch, len(plan.key_mask))
    first, last = visual or (0, plan.order.shape[-1])
    products = torch.zeros(len(plan.lists), dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            order, rows = pick(plan.order, b, h).tolist(), pick(plan.query_rows, b, h)
            meant = {token for token in order[first:last] if token >= 0}
            seen = meant if plan.key_mask is None else meant & set(plan.key_mask[b].nonzero().flatten().tolist())
            for level, lists in enumerate(plan.lists):
                span = lists.pool * lists.tile
                for tile, queries in enumerate(rows.split(plan.block_q)):
                    asking = sum(token in meant for token in queries.tolist())
                    for entry in pick(lists.indices, b, h)[tile, : pick(lists.counts, b, h)[tile]].tolist():
                        keys = order[entry * span : (entry + 1) * span]
                        pools = (keys[at : at + lists.pool] for at in range(0, len(keys), lists.pool))
                        products[level] += asking * sum(any(token in seen for token in pool) for pool in pools)
    return products / (batch * heads) / max(len(meant), 1) ** 2


@settings(**DRAWN)
@given(st.data())
def test_density_counts_every_product_once(data):
    plan = data.draw(plans())
    rows = plan.order.shape[-1]
    first = data.draw(st.integers(0, rows))
    visual = data.draw(st.sampled_from([None, (0, rows), (first, rows), (0, first)]))
    order = plan.order[:, :1].expand_as(plan.order)  # visual rows hold the same tokens in every head
    plan = replace(plan, order=order, visual=visual)
    torch.testing.assert_close(level_densities(plan, visual), counted(plan, visual))
    density, computed = plan.density_tensors()
    assert float(density) == pytest.approx(plan.density) and float(computed) == pytest.approx(plan.computed)
    assert list(plan.level_density) == [lists.pool for lists in plan.lists]
    assert plan.computed == pytest.approx(float(counted(plan, None).sum()))


TEXTS = [{}, {"text": 19}, {"text": 19, "text_first": True}]
METHODS = [
    RadialConfig(density=0.5), VMoBAConfig(density=0.3), VMoBAConfig(density=0.3, routing="tile"),
    RectifiedConfig(density=0.3), PyramidConfig(density=0.3),
]  # fmt: skip


def plan_of(config, text, masked=False):
    """A plan whose visual rows are known, and its grid."""
    grid = TokenGrid(4, 12, 16, **text)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plan = config.plan(grid, query, key)
    token = plan.order[0, 0]
    rows = ((token >= grid.video_start) & (token < grid.video_start + grid.video_tokens)).nonzero()[:, 0]
    plan = replace(plan, visual=(int(rows[0]), int(rows[-1]) + 1))
    generator = torch.Generator().manual_seed(0)
    return plan.with_key_mask(torch.rand(1, grid.tokens, generator=generator) < 0.8) if masked else plan, grid


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", TEXTS, ids=str)
@pytest.mark.parametrize("config", METHODS[:-1], ids=repr)
def test_density_is_the_share_of_the_dense_mask_between_visual_tokens(config, text, masked):
    plan, grid = plan_of(config, text, masked)
    mask = plan.to_dense_mask().double()
    video = slice(grid.video_start, grid.video_start + grid.video_tokens)
    assert plan.density == pytest.approx(float(mask[:, :, video, video].mean()))
    assert plan.computed == pytest.approx(float(mask.mean()))
    assert (plan.density == plan.computed) == (not grid.text)


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_a_pooled_key_counts_as_one(text):
    plan, grid = plan_of(METHODS[-1], text)
    levels = plan.to_dense_levels()
    video = slice(grid.video_start, grid.video_start + grid.video_tokens)
    levels = levels[:, :, video, video]  # 12 x 16 tokens a frame fill their tiles, and so their pools
    shares = {pool: float((levels == pool).double().mean()) / pool for pool in plan.level_density}
    assert plan.level_density == pytest.approx(shares) and sum(share > 0 for share in shares.values()) > 2


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_nobody_waits_for_the_device(config):
    plan, _ = plan_of(config, TEXTS[1], masked=True)
    tensors = plan.to("meta").density_tensors()  # where reading a value is an error
    assert [(tensor.shape, tensor.device.type) for tensor in tensors] == [((), "meta")] * 2
