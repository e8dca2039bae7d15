"""Plans of some heads each, joined to one."""

import pytest
import torch
from diffattn.kernels.plan.join_heads import join_heads

from diffattn import AutoConfig, PyramidConfig, RectifiedConfig, TokenGrid, VMoBAConfig, attend

GRID = TokenGrid(3, 7, 8, text=5)
HEADS = [[1, 3], [0], [2]]
DENSITIES = (0.15, 0.4, 1.0)


@pytest.fixture(scope="module")
def tensors():
    return torch.randn(3, 2, GRID.tokens, 4, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [AutoConfig, PyramidConfig, RectifiedConfig])
def test_every_head_does_as_in_the_plan_it_came_from(kind, tensors):
    parts = [tensors[:, :, :, own] for own in HEADS]
    plans = [kind(density=density).plan(GRID, *part[:2]) for density, part in zip(DENSITIES, parts)]
    joined = join_heads(plans, HEADS)
    out = attend(*tensors, joined, impl="reference", check=True)
    for plan, own, part in zip(plans, HEADS, parts):
        torch.testing.assert_close(out[:, :, own], attend(*part, plan, impl="reference"), rtol=0, atol=1e-6)
    assert joined.density == pytest.approx(sum(plan.density * len(own) for plan, own in zip(plans, HEADS)) / 4)


def test_a_plan_without_heads_serves_all_of_its_own(tensors):
    query, key, value = tensors
    shared = AutoConfig(density=1.0).plan(GRID, query[:1, :, :1], key[:1, :, :1])
    joined = join_heads([shared, shared], [[0, 2, 3], [1]])
    torch.testing.assert_close(
        attend(query, key, value, joined, impl="reference"), attend(query, key, value, shared, impl="reference")
    )


def test_what_heads_cannot_share_is_refused(tensors):
    query, key, _ = tensors
    fine, coarse = (AutoConfig(block=block).plan(GRID, query, key) for block in (16, 32))
    with pytest.raises(ValueError, match="must share rows, tiles and pools"):
        join_heads([fine, coarse], [[0, 1], [2, 3]])
    routed = VMoBAConfig().plan(GRID, query, key)
    with pytest.raises(ValueError, match="routed queries"):
        join_heads([routed, routed], [[0, 1], [2, 3]])
