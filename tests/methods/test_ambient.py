"""A plan is the same whatever modes of PyTorch surround the call that makes it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from diffattn import (
    AutoConfig,
    NeighborhoodConfig,
    PyramidConfig,
    RadialConfig,
    RectifiedConfig,
    SolConfig,
    TokenGrid,
    VMoBAConfig,
    attend,
)
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods import (
    _allocate,
    _constants,
    _order,
    _partition,
    _pool_statistics,
    _radial_official,
    _window,
    _window_search,
    rectified,
)

CONFIGS = [
    AutoConfig(density=0.35),
    PyramidConfig(density=0.35),
    PyramidConfig(thresholds=(0.3, 0.5, 0.6, 0.9), similarity=(0.5, 0.5, 0.5)),
    PyramidConfig(quantiles=(0.1, 0.2, 0.3, 0.6), importance="sampled", order="hilbert"),
    VMoBAConfig(density=0.35),
    VMoBAConfig(density=0.35, routing="tile"),
    VMoBAConfig(threshold=0.25, scope="head"),
    VMoBAConfig(top_k=(2, 2, 2), raw_scores=True),
    RectifiedConfig(density=0.35),
    RectifiedConfig(keep=0.1, mass=0.3),
    SolConfig(density=0.35, block=16),
    SolConfig(block=32, rule="exact", order="hilbert"),
    RadialConfig(density=0.6),
    RadialConfig(decay=0.8, model="hunyuan"),
    RadialConfig(variant="official"),
    NeighborhoodConfig(density=0.35),
    NeighborhoodConfig(window=(3, 4, 5)),
]
GRID = TokenGrid(5, 9, 10, text=7)
CACHES = [
    *(_order.block_order, _partition.chunk_layout, _window.axis, _radial_official._pair_tiles),
    rectified.neighbor_blocks,
    *(_window_search.window_of_density, _window_search._choices, _window_search.visited_share),
    *(_constants.constant, _pool_statistics.padded_rows, _allocate._costs),
]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "bfloat16 default": lambda: default_dtype(torch.bfloat16),
    "float16 default": lambda: default_dtype(torch.float16),
    "float64 default": lambda: default_dtype(torch.float64),
    "meta default": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
}


def name(config):
    return f"{config.method}-{CONFIGS.index(config)}"


def forget():
    for cache in CACHES:
        cache.cache_clear()


def tensors_of(plan):
    parts = [plan.order, plan.query_rows]
    for lists in plan.lists:
        parts += [lists.counts, lists.indices] + ([] if lists.partial is None else [lists.partial])
    parts += [] if plan.boxes is None else [plan.boxes.low, plan.boxes.high, plan.boxes.coordinate]
    return parts + ([] if plan.post is None else [plan.post.scale, plan.post.weights])


def assert_same(plan, wanted):
    for got, want in zip(tensors_of(plan), tensors_of(wanted), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)
        assert not got.is_inference() and not got.requires_grad


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_a_plan_is_the_same_in_every_mode(config, mode):
    query, key, _ = structured_qkv(GRID, heads=2, dim=16)
    query.requires_grad_(mode == "grad")
    forget()
    wanted = config.plan(GRID, query.detach(), key, layer=2)
    forget()
    with MODES[mode]():
        plan = config.plan(GRID, query, key, layer=2)
    assert_same(plan, wanted)
    assert_same(config.plan(GRID, query, key, layer=2), wanted)  # what the mode left in the caches


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_threads_with_modes_of_their_own_make_the_same_plan(config):
    query, key, _ = structured_qkv(GRID, heads=2, dim=16)
    wanted = config.plan(GRID, query, key, layer=1)
    forget()

    def in_modes():
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            return config.plan(GRID, query, key, layer=1)

    with ThreadPoolExecutor(2) as pool:
        plans = [pool.submit(run) for run in (in_modes, lambda: config.plan(GRID, query, key, layer=1))]
        for plan in plans:
            assert_same(plan.result(), wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_plan_in_another_dtype_is_the_plan_of_those_numbers(config, dtype):
    query, key, _ = (x.to(dtype) for x in structured_qkv(GRID, heads=2, dim=16))
    plan = config.plan(GRID, query, key, layer=2)
    exact = config.plan(GRID, query.float(), key.float(), layer=2)
    # float64 numbers that are rounded again may turn a tie of two blocks
    same = (plan.to_dense_levels() == exact.to_dense_levels()).double().mean()
    assert same == 1 if dtype != torch.float64 else same > 0.99
    assert abs(plan.density - exact.density) < 0.01


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_training_after_validation(config):
    query, key, value = structured_qkv(GRID, heads=2, dim=16)
    forget()
    with torch.inference_mode():
        plan = config.plan(GRID, query.clone(), key.clone(), layer=2)
    value.requires_grad_()
    attend(query, key, value, plan, impl="torch").square().mean().backward()
    assert value.grad.isfinite().all()


def test_a_report_in_inference_mode_leaves_no_inference_tensors():
    forget()
    with torch.inference_mode():
        NeighborhoodConfig(window=(3, 4, 5)).report(GRID)
    line = NeighborhoodConfig(window=(3, 4, 5))._geometry(GRID).axes[0]
    assert not line.low.is_inference()
