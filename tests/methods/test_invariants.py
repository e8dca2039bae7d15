"""What holds for every method: its plans stay the same where attention does, and its configurations are checked."""

import json
from dataclasses import fields, replace

import pytest
import torch
from diffattn.kernels.plan.routed import RoutedRows
from hypothesis import given, settings
from hypothesis import strategies as st

import diffattn
from diffattn import (
    AttentionConfig,
    AutoConfig,
    NablaConfig,
    NeighborhoodConfig,
    PyramidConfig,
    RectifiedConfig,
    SolConfig,
    TokenGrid,
    VMoBAConfig,
    attend,
)
from diffattn.analysis.synthetic import structured_qkv
from diffattn.integration.placement import reorder_plan
from diffattn.methods import METHODS as KNOWN
from diffattn.methods._order import ORDERS, block_order, pack

DYNAMIC = [
    AutoConfig(density=0.3),
    PyramidConfig(density=0.2),
    PyramidConfig(thresholds=(0.3, 0.5, 0.6, 0.9)),
    PyramidConfig(density=0.2, importance="sampled", order="hilbert"),
    RectifiedConfig(density=0.2),
    RectifiedConfig(keep=0.1, mass=0.3, gapr=False),
    NablaConfig(threshold=0.8, window=(1, 1, 3)),
    SolConfig(density=0.3, block=32),
    SolConfig(rule="exact"),
    VMoBAConfig(density=0.2),
    VMoBAConfig(threshold=0.25, scope="head"),
    VMoBAConfig(density=0.2, routing="tile"),
]
METHODS = [*DYNAMIC, NeighborhoodConfig(density=0.2), NeighborhoodConfig(window=(3, 4, 5))]
PRESETS = [kind.from_paper(model) for kind in KNOWN.values() for model in kind.published]
TEXT = TokenGrid(5, 9, 10, text=7, text_first=True)


def name(config):
    return f"{config.method}-{METHODS.index(config) if config in METHODS else 'paper'}"


def tensors_of(plan):
    """Everything a plan decides."""
    parts = [plan.order, plan.query_rows]
    for lists in plan.lists:
        parts += [lists.counts, lists.indices.where(lists.live, -1)]
    return parts + ([] if plan.post is None else [plan.post.scale, plan.post.weights])


def dyadic(shape, seed):
    """Multiples of 1/4 up to 2: their sums and products below are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator) / 4


def dense(query, key, value):
    parts = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2)


@pytest.mark.parametrize("config", [c for c in DYNAMIC if not (isinstance(c, RectifiedConfig) and c.gapr)], ids=name)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_constant_added_to_the_keys_changes_no_plan(config, layer):
    grid = TokenGrid(4, 8, 8)  # blocks and chunks of powers of 2, so that means are exact as well
    if isinstance(config, VMoBAConfig):
        config = replace(config, frames=1, box=(2, 4, 4))
    query, key = dyadic((1, 256, 2, 16), 0), dyadic((1, 256, 2, 16), 1)
    shift = dyadic((1, 1, 2, 16), 2)
    plans = [tensors_of(config.plan(grid, query, k, layer=layer)) for k in (key, key + shift)]
    assert all(torch.equal(*pair) for pair in zip(*plans))


def test_the_published_scores_do_change_with_a_constant():
    grid = TokenGrid(4, 8, 8)
    query, key = dyadic((1, 256, 2, 16), 0), dyadic((1, 256, 2, 16), 1)
    config = VMoBAConfig(threshold=0.25, scope="head", frames=1, raw_scores=True)
    masks = [config.plan(grid, query, k).to_dense_mask() for k in (key, key + dyadic((1, 1, 2, 16), 2))]
    assert not torch.equal(*masks)


@pytest.mark.parametrize("config", DYNAMIC, ids=name)
def test_samples_of_a_batch_never_influence_each_other(config):
    query, key, value = structured_qkv(TEXT, heads=2, dim=16, batch=2)
    hot = torch.cat((key[:1], 50 * key[1:]))
    quiet, loud = (attend(query, k, value, config.plan(TEXT, query, k, layer=2)) for k in (key, hot))
    assert torch.equal(quiet[0], loud[0])
    # the plan of the pair holds the plan of each alone; only widths of padding may differ
    alone = config.plan(TEXT, query[:1], key[:1], layer=2).to_dense_levels()
    assert torch.equal(config.plan(TEXT, query, hot, layer=2).to_dense_levels()[:1], alone)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_same_inputs_same_plan(config):
    query, key, _ = structured_qkv(TEXT, heads=2, dim=16)
    first = tensors_of(config.plan(TEXT, query, key))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert all(torch.equal(*pair) for pair in zip(first, tensors_of(config.plan(TEXT, query, key))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["auto", "nabla", "pyramid", "rectified", "sol", "vmoba", "neighborhood"])
@pytest.mark.parametrize("grid", [TokenGrid(5, 9, 10), TEXT, TokenGrid(5, 9, 10, text=20)], ids=str)
def test_density_one_is_dense(method, grid):
    query, key, value = structured_qkv(grid, heads=2, dim=16, batch=2)
    exact = dense(query.double(), key.double(), value.double())
    allowed = (dense(query, key, value) - exact).abs().max()
    for layer in range(3):
        plan = diffattn.config(method, density=1.0).plan(grid, query, key, layer=layer)
        assert plan.to_dense_mask().all() and plan.density == pytest.approx(1)
        assert (attend(query, key, value, plan) - exact).abs().max() <= 4 * allowed


@pytest.mark.parametrize(
    "config", [PyramidConfig(thresholds=(1.0,) * 4), VMoBAConfig(threshold=1.0), RectifiedConfig(keep=1.0)], ids=name
)
def test_thresholds_of_one_are_dense(config):
    query, key, _ = structured_qkv(TEXT, heads=2, dim=16)
    assert (config.plan(TEXT, query, key).to_dense_levels() == 1).all()


@pytest.mark.parametrize("config", METHODS, ids=name)
@pytest.mark.parametrize("grid", [TEXT, TokenGrid(5, 9, 10, text=20)], ids=str)
def test_text_is_exact(config, grid):
    query, key, value = structured_qkv(grid, heads=2, dim=16)
    plan = config.plan(grid, query, key, layer=1)
    levels = plan.to_dense_levels()
    text = torch.arange(grid.text) + grid.text_start
    assert (levels[..., text, :] == 1).all() and (levels[..., text] == 1).all()
    exact = dense(query.double(), key.double(), value.double())[:, text]
    allowed = (dense(query, key, value)[:, text] - exact).abs().max()
    assert (attend(query, key, value, plan)[:, text] - exact).abs().max() <= 4 * allowed


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_padded_text_changes_nothing(config):
    padded = TokenGrid(5, 9, 10, text=16)
    query, key, value = structured_qkv(padded, heads=2, dim=16)
    mask = torch.arange(padded.tokens)[None] < padded.tokens - 6
    outputs = []
    for scale in (1.0, 3.0):  # whatever the masked keys and values hold
        noise = torch.where(mask[..., None, None], 1.0, scale)
        plan = config.plan(padded, query, key).with_key_mask(mask)
        outputs.append(attend(query, key * noise, value * noise, plan))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("method", ["auto", "nabla", "pyramid", "rectified", "sol", "vmoba", "neighborhood"])
@pytest.mark.parametrize("density", [0.145, 0.25, 0.6])
@pytest.mark.parametrize("grid", [TokenGrid(6, 12, 20), TokenGrid(9, 16, 16, text=20)], ids=str)
def test_density_is_met(method, density, grid):
    query, key, _ = structured_qkv(grid, heads=1, dim=16)
    for layer in range(3 if method == "vmoba" else 1):
        plan = diffattn.config(method, density=density).plan(grid, query, key, layer=layer)
        # half a block of at least 20 for each query; of chunks, whose sizes differ, a whole one
        assert abs(plan.density - density) <= (1 / 20 if method == "vmoba" else 1 / 40)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.sampled_from([1, 2, 4]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pack_keeps_every_item_once_and_segments_apart(segments, block, seed):
    used = sorted(set(segments))
    segment = torch.tensor([used.index(s) for s in segments])
    rank = torch.randperm(len(segments), generator=torch.Generator().manual_seed(seed))
    rows = pack(segment, rank, block)
    kept = rows[rows >= 0]
    assert sorted(kept.tolist()) == list(range(len(segments))) and len(rows) % block == 0
    keys = list(zip(segment[kept].tolist(), rank[kept].tolist()))
    assert keys == sorted(keys)
    for tile in rows.view(-1, block):
        assert len(set(segment[tile[tile >= 0]].tolist())) == 1


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_routed_rows_hold_every_chosen_pair_once(groups, queries, seed):
    chosen = torch.rand(2, 2, groups, queries, generator=torch.Generator().manual_seed(seed)) < 0.4
    routed = RoutedRows.of(chosen, 4)
    rows, group = routed.rows(), routed.groups()
    assert torch.equal(routed.chosen(), chosen) and rows.shape == routed.shape
    for b in range(2):
        for h in range(2):
            tiles = rows[b, h].view(-1, 4)
            found = [(int(g), t) for g, tile in zip(group[b, h], tiles) for t in tile.tolist() if t >= 0]
            assert sorted(found) == [tuple(pair) for pair in chosen[b, h].nonzero().tolist()]


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_a_plan_moves_with_its_tokens(config):
    query, key, _ = structured_qkv(TEXT, heads=2, dim=16)
    plan = config.plan(TEXT, query, key, layer=2)
    order = torch.randperm(TEXT.tokens, generator=torch.Generator().manual_seed(0))
    moved = reorder_plan(plan, order).to_dense_levels()
    assert torch.equal(moved[:, :, order][..., order], plan.to_dense_levels())


@pytest.mark.parametrize("order", ORDERS)
def test_orders_hold_every_token_once(order):
    rows, video = block_order(TEXT, order, 16)
    assert sorted(rows[rows >= 0].tolist()) == list(range(TEXT.tokens))
    assert video == 464 and sorted(rows[video:][rows[video:] >= 0].tolist()) == list(range(7))


def test_the_hilbert_curve_takes_single_steps():
    rows, _ = block_order(TokenGrid(8, 8, 8), "hilbert", 16)
    at = torch.stack((rows // 64, rows // 8 % 8, rows % 8), -1)
    assert ((at[1:] - at[:-1]).abs().sum(-1) == 1).all()


@pytest.mark.parametrize("config", [*METHODS, *PRESETS], ids=name)
def test_configurations_survive_json(config):
    assert AttentionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("auto", {"density": 0}, "density must be above 0"),
        ("auto", {"block": 100}, "block must be one of"),
        ("pyramid", {"levels": (1, 4, 2)}, "levels must be ascending"),
        ("pyramid", {"levels": (2, 4)}, "levels must be powers of 2"),
        ("pyramid", {"thresholds": (0.5, 0.4, 0.6, 0.8)}, "thresholds must not descend"),
        ("pyramid", {"thresholds": (0.5, 0.4)}, "thresholds must be a tuple of 4"),
        ("pyramid", {"quantiles": (0.1, 0.2, 0.3, 1.4)}, "quantiles must lie between 0 and 1"),
        ("pyramid", {"density": 0.1, "thresholds": (0.4, 0.5, 0.6, 0.8)}, "one of density, thresholds"),
        ("pyramid", {"order": "gilbert"}, "order must be one of nested, hilbert, raster"),
        ("rectified", {"density": 0.1, "keep": 0.2}, "one of density, keep: got density=0.1 and keep=0.2"),
        ("rectified", {"mass": 0.3}, "give keep as well"),
        ("vmoba", {"top_k": (2, 4)}, "top_k must be 3 integers"),
        ("vmoba", {"scope": "batch"}, "scope must be one of query, head"),
        ("vmoba", {"partitions": ("4d",)}, "partitions must be one of 1d, 2d, 3d"),
        ("neighborhood", {"window": (3, 0, 3)}, "window must be -1 or at least"),
        ("neighborhood", {"window": (3, 3, 3), "stride": (1, 4, 1)}, "at least the stride"),
        ("neighborhood", {"stride": (1, 1, 1)}, "stride goes with a window"),
        ("neighborhood", {"window": (3, 3)}, "window must be 3 integers"),
        ("neighborhood", {"density": 0.2, "window": (3, 3, 3)}, "one of density, window: got density=0.2"),
        ("neighborhood", {"causal": (True, False)}, "causal need a value for each"),
        ("pyramid", {"similarity": (0.5, 0.5)}, "similarity must be a tuple of 3"),
        ("pyramid", {"block_k": 16, "levels": (1, 32)}, "levels must be powers of 2 from 1 to 16"),
        ("pyramid", {"seed": -1}, "seed must be an integer of at least 0"),
        ("vmoba", {"threshold": 1.5}, "threshold must lie between 0 and 1"),
        ("vmoba", {"frames": 0}, "frames must be an integer of at least 1"),
        ("vmoba", {"area": (4, 0)}, "area must be 2 integers of at least 1"),
        ("radial", {"decay": -1}, "decay must be at least 0"),
        ("radial", {"density": 0.2, "decay": 0.5}, "one of density, decay: got density=0.2 and decay=0.5"),
        ("radial", {"block_size": 100}, "block_size must be one of"),
        ("auto", {"densty": 0.2}, "auto has no option densty; its options are: density, block"),
        ("neighborhood", {"blur": 1}, "neighborhood has no option blur"),
    ],
)
def test_bad_options_name_the_field(method, options, message):
    with pytest.raises(ValueError, match=message):
        diffattn.config(method, **options)


JUNK = ["x", -1, 0, 1.5, float("nan"), float("inf"), True]
JUNK += [[], {}, [1], ["x"], [-1] * 3, [0] * 3, [1.5, 2, 3], [4, 3, 2, 1]]


@pytest.mark.parametrize("value", JUNK, ids=repr)
def test_every_field_takes_a_value_that_survives_json_or_names_itself(value):
    for method, cls in KNOWN.items():
        for field in fields(cls):
            try:
                config = diffattn.config(method, **{field.name: value})
            except ValueError as error:
                assert field.name in str(error), (method, field.name)
            else:
                text = json.dumps(config.to_dict(), allow_nan=False)
                assert AttentionConfig.from_dict(json.loads(text)) == config


def test_a_method_that_is_no_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown method \['auto'\]"):
        AttentionConfig.from_dict({"method": ["auto"]})


def test_a_window_larger_than_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"window 12 at dilation 1 does not fit 10 width .*at most 10, or -1 for all"):
        NeighborhoodConfig(window=(3, 3, 12)).plan(TokenGrid(5, 9, 10))
