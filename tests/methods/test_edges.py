"""Queries and keys that are no numbers, and batches without entries."""

import pytest
import torch

import diffattn
from diffattn import AutoConfig, PyramidConfig, RectifiedConfig, SolConfig, TokenGrid, VMoBAConfig
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods import METHODS

GRID = TokenGrid(6, 12, 20, text=9, text_first=True)
CONFIGS = [
    AutoConfig(density=0.3),
    PyramidConfig(density=0.3),
    PyramidConfig(density=0.3, importance="sampled"),
    PyramidConfig(thresholds=(0.3, 0.5, 0.6, 0.7)),
    RectifiedConfig(density=0.3),
    RectifiedConfig(density=0.3, estimate="block"),
    RectifiedConfig(keep=0.2, mass=0.3),
    SolConfig(density=0.3),
    SolConfig(density=0.3, rule="exact"),
    SolConfig(),
    VMoBAConfig(density=0.3),
    VMoBAConfig(density=0.3, scope="head"),
    VMoBAConfig(density=0.3, routing="tile"),
    VMoBAConfig(threshold=0.25),
]
BROKEN = {
    "a query": (slice(100, 101), slice(0)),
    "a key": (slice(0), slice(100, 101)),
    "many": (slice(100, 400), slice(300, 600)),
    "a text key": (slice(0), slice(3, 4)),
    "all queries": (slice(None), slice(0)),
    "all keys": (slice(0), slice(None)),
    "everything": (slice(None), slice(None)),
}


def name(config):
    return f"{config.method}-{CONFIGS.index(config)}"


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_what_is_no_number_leaves_the_density(config, where, number):
    query, key, _ = structured_qkv(GRID, heads=2, dim=16)
    clean = config.plan(GRID, query, key, layer=2)
    queries, keys = BROKEN[where]
    query[:, queries], key[:, keys] = number, number
    plan = config.plan(GRID, query, key, layer=2)
    if config.density is None:  # shares of the mass, which may lie elsewhere or everywhere alike
        assert plan.density <= 0.75
    else:
        assert abs(plan.density - clean.density) <= 0.02
    if plan.post is not None:
        assert plan.post.scale.isfinite().all() and plan.post.weights.isfinite().all()


def test_other_heads_and_samples_keep_their_plan():
    grid = TokenGrid(5, 6, 8, text=9)
    query, key, _ = structured_qkv(grid, heads=2, dim=16, batch=2)
    for config in CONFIGS:
        clean = config.plan(grid, query, key, layer=2).to_dense_levels()
        broken = key.clone()
        broken[1, :, 1] = torch.nan
        levels = config.plan(grid, query, broken, layer=2).to_dense_levels()
        assert torch.equal(levels[0], clean[0]) and torch.equal(levels[1, 0], clean[1, 0])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_empty_batch_gives_an_empty_result(method):
    query = torch.empty(0, GRID.tokens, 4, 16)
    key = torch.empty(0, GRID.tokens, 2, 16)
    out, lse = diffattn.sparse_attention(query, key, key, grid=GRID, config=method, return_lse=True)
    assert out.shape == query.shape and lse.shape == (0, 4, GRID.tokens)
