"""`density` is the share of visual-visual products: text is exact, on top, and takes nothing from the image."""

from functools import lru_cache

import pytest
import torch

import diffattn
from diffattn import TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods import METHODS

DENSITY = 0.2
GRIDS = {  # as the pipelines make them; Qwen-Image and the videos smaller, with their share of text
    "FLUX 1024": TokenGrid(1, 64, 64, text=512, text_first=True),
    "FLUX 512": TokenGrid(1, 32, 32, text=512, text_first=True),
    "SD3 512": TokenGrid(1, 32, 32, text=333),
    "Qwen-Image": TokenGrid(1, 42, 42, text=64, text_first=True),
    "HunyuanVideo": TokenGrid(9, 16, 20, text=6),
    "CogVideoX": TokenGrid(7, 15, 22, text=30, text_first=True),
    "LTX": TokenGrid(8, 12, 16),
}


def video_rows(grid):
    return slice(grid.video_start, grid.video_start + grid.video_tokens)


@lru_cache(maxsize=2)
def inputs(grid, alone):
    """Query, key and value with text, or those of the image alone, and dense attention in float64."""
    tensors = structured_qkv(grid, heads=1, dim=32)
    if alone:
        tensors = tuple(x[:, video_rows(grid)].contiguous() for x in tensors)
    return tensors, explicit_attention(*tensors)


def explicit_attention(*tensors):
    heads_first = (x.double().transpose(1, 2) for x in tensors)
    return torch.nn.functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def plan_and_error(method, grid, alone):
    tensors, exact = inputs(grid, alone)
    grid = TokenGrid(grid.frames, grid.height, grid.width) if alone else grid
    plan = diffattn.config(method, density=DENSITY).plan(grid, *tensors[:2], layer=2)
    out, exact = (x[:, video_rows(grid)] for x in (attend(*tensors, plan), exact))
    return plan, float((out - exact).norm() / exact.norm())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", GRIDS)
def test_text_costs_the_image_nothing(name, method):
    grid = GRIDS[name]
    plan, error = plan_and_error(method, grid, alone=False)
    alone, error_alone = plan_and_error(method, grid, alone=True)
    assert error <= 1.5 * error_alone
    assert abs(plan.density - alone.density) <= 0.001
    if method == "radial":  # a step function of few steps, which is not exceeded unless its least is
        assert plan.density <= DENSITY or name == "LTX"
    else:  # half a block of at least 20 for each query; of chunks, whose sizes differ, a whole one
        assert abs(plan.density - DENSITY) <= (1 / 20 if method == "vmoba" else 1 / 40)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", ["FLUX 512", "SD3 512", "LTX"])
def test_text_is_computed_on_top(name, method):
    grid = GRIDS[name]
    (query, key, _), _ = inputs(grid, False)
    plan = diffattn.config(method, density=DENSITY).plan(grid, query, key, layer=2)
    visual = (grid.video_tokens / grid.tokens) ** 2
    assert plan.computed == pytest.approx(plan.density * visual + 1 - visual)
    assert (plan.visual is None) == (grid.text == 0)


def test_the_official_mask_of_radial_knows_its_visual_rows():
    grid = TokenGrid(6, 12, 13, text=40)  # text begins inside a tile
    plan = diffattn.RadialConfig(variant="official", block_size=16, decay=0.2).plan(grid)
    mask = plan.to_dense_mask()[0, 0]
    visual = mask[: grid.video_tokens, : grid.video_tokens]
    assert plan.density == pytest.approx(float(visual.double().mean())) and plan.density < 1
    assert plan.computed == pytest.approx(float(mask.double().mean()))


@pytest.mark.parametrize("method", sorted(name for name, kind in METHODS.items() if not kind.plans_references))
def test_a_method_that_plans_one_grid_refuses_references(method):
    with pytest.raises(ValueError, match=f"'{method}' plans one grid.*1, 4, 4"):
        diffattn.config(method).plan(TokenGrid(1, 8, 8, references=((1, 4, 4),)))


@pytest.mark.parametrize("method", sorted(name for name, kind in METHODS.items() if kind.plans_references))
def test_a_reference_costs_the_image_nothing(method):
    """Kontext at 1024 x 1024 with a reference, by half its edges: 64 x 64 tokens each, and 512 of text."""
    grid = TokenGrid(2, 32, 32, text=128, text_first=True)
    tensors, _ = inputs(grid, False)
    edit = TokenGrid(1, 32, 32, text=128, text_first=True, references=((1, 32, 32),))
    alone = TokenGrid(1, 32, 32, text=128, text_first=True)
    image = slice(128, 128 + 1024)
    errors = {}
    for at in (edit, alone):
        query, key, value = (x[:, : at.tokens] for x in tensors)
        plan = diffattn.config(method, density=DENSITY).plan(at, query, key)
        exact = explicit_attention(query, key, value)
        out, exact = (x[:, image] for x in (attend(query, key, value, plan), exact))
        errors[at] = float((out - exact).norm() / exact.norm())
        assert plan.computed <= (0.3 if at is edit else 1) and abs(plan.density - DENSITY) <= 1 / 40
    assert errors[edit] <= 1.5 * errors[alone]
