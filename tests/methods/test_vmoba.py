"""VMoBA against its golden values and a dense oracle."""

from itertools import product

import pytest
import torch
from method_oracles import DTYPES, GRIDS, LARGE, assert_close, attend_mask, coordinates, golden_inputs, large_inputs

from diffattn import TokenGrid, VMoBAConfig, attend
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods._partition import chunk_of_token

GOLDEN = {"partitions": ("1d",), "frames": 1, "raw_scores": True, "block": 16}
SHAPES = {"frames": 2, "area": (4, 3), "box": (2, 5, 4)}


@pytest.mark.parametrize(
    ("options", "counts", "mean"),
    [
        ({"top_k": (2,)}, [38, 29, 26, 35], 0.4394801),
        ({"top_k": (2,), "scope": "head"}, [39, 29, 26, 34], 0.4380832),
        ({"threshold": 0.25, "scope": "head"}, [17, 16, 16, 16], 0.4428675),
        ({"threshold": 0.25}, [38, 29, 26, 35], 0.4394801),
    ],
)
def test_golden_values(options, counts, mean):
    query, key, value = golden_inputs()
    plan = VMoBAConfig(**GOLDEN, **options).plan(TokenGrid(4, 4, 4), query, key)
    seen = plan.to_dense_mask()[0, 0].view(64, 4, 16)
    assert torch.equal(seen.any(-1), seen.all(-1))
    assert seen.any(-1).sum(0).tolist() == counts
    out = attend(query, key, value, plan)
    assert abs(float(out.mean()) - mean) < 1e-6
    if options == {"top_k": (2,)}:
        torch.testing.assert_close(out[0, 40, 0, :3], torch.tensor([0.638495, 0.452747, 0.269721]), rtol=0, atol=1e-6)


def oracle_mask(query, key, grid, layer, options, raw, shapes=SHAPES, tokens=None):
    """(B, H, S, S) bool, or its rows of `tokens`, from Appendix A of the paper; ragged chunks, text kept."""
    in_time, in_space = (shapes["frames"], grid.height, grid.width), (grid.frames, *shapes["area"])
    shape = (in_time, in_space, shapes["box"])[layer % 3]
    corners = [tuple(x // edge for x, edge in zip(at, shape)) for at in coordinates(grid)]
    names = {corner: name for name, corner in enumerate(sorted(set(corners)))}
    chunk = torch.tensor([names[corner] for corner in corners])
    video = torch.arange(grid.video_tokens) + grid.video_start
    q, k = (x[:, video].double().transpose(1, 2) for x in (query, key))
    centre = torch.stack([k[:, :, chunk == c].mean(2) for c in range(len(names))], 2)
    if not raw:
        centre = centre - k.mean(2, keepdim=True)
    gate = q @ centre.mT
    own = torch.nn.functional.one_hot(chunk).bool().expand_as(gate)
    kept = select(gate, own, **options)
    if tokens is None:
        tokens = torch.arange(grid.tokens)
    mask = torch.ones(*gate.shape[:2], len(tokens), grid.tokens, dtype=torch.bool)
    rows = torch.isin(tokens, video).nonzero()
    mask[:, :, rows, video] = kept[:, :, tokens[rows[:, 0]] - grid.video_start][..., chunk]
    return mask


def select(gate, own, top_k=None, threshold=None, scope="query", layer=0):
    """Kept chunks of every query (B, H, V, C)."""
    shape = gate.shape
    if scope == "head":
        gate, own = gate.flatten(2), own.flatten(2)
    if top_k is not None:
        count = top_k[layer] * (shape[2] if scope == "head" else 1)
        kept = (gate + 1e9 * own).argsort(-1, descending=True).argsort(-1) < count
        return (kept | own).view(shape)
    low, high = gate.amin(-1, keepdim=True), gate.amax(-1, keepdim=True)
    z = (gate - low) / (high - low)
    total = z.sum(-1, keepdim=True) + 1e-6
    left = (threshold - (z * own).sum(-1, keepdim=True) / total).clamp(min=0)
    order = z.masked_fill(own, -1).argsort(-1, descending=True)
    ordered = z.masked_fill(own, 0).gather(-1, order).cumsum(-1) / total
    cut = (ordered >= left).double().argmax(-1, keepdim=True)
    kept = order.argsort(-1) <= cut
    return (kept | own).view(shape)


OPTIONS = [
    {"top_k": (2, 4, 5)},
    {"top_k": (2, 4, 5), "scope": "head"},
    {"threshold": 0.25},
    {"threshold": 0.25, "scope": "head"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("layer", range(3))
def test_equals_the_dense_oracle(layer, options):
    grid = GRIDS[1]
    tensors = structured_qkv(grid, heads=2, dim=16, batch=2)
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = (x.to(dtype) for x in tensors)
        plan = VMoBAConfig(**SHAPES, **options, block=16).plan(grid, query, key, layer=layer)
        mask = oracle_mask(query, key, grid, layer, {**options, "layer": layer}, raw=False)
        assert torch.equal(plan.to_dense_mask(), mask)
        exact, rounded = (attend_mask(query, key, value, mask, exact) for exact in (True, False))
        assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [GRIDS[0], *GRIDS[2:]], ids=str)
def test_equals_the_dense_oracle_on_other_grids(grid, dtype):
    query, key, value = (x.to(dtype) for x in structured_qkv(grid, heads=1, dim=16, batch=2))
    plan = VMoBAConfig(**SHAPES, top_k=(1, 3, 4), raw_scores=True).plan(grid, query, key, layer=2)
    mask = oracle_mask(query, key, grid, 2, {"top_k": (1, 3, 4), "layer": 2}, raw=True)
    assert torch.equal(plan.to_dense_mask(), mask)
    exact, rounded = (attend_mask(query, key, value, mask, exact) for exact in (True, False))
    assert_close(attend(query, key, value, plan).transpose(1, 2), exact, rounded)


AT_SIZE = [(*case, layer) for case, layer in zip(product(LARGE, DTYPES), (0, 2, 2, 1))]


@pytest.mark.parametrize(("grid", "dtype", "layer"), AT_SIZE)
def test_equals_the_dense_oracle_at_size(grid, dtype, layer):
    tensors, tokens = large_inputs(grid)
    query, key, value = (x.to(dtype) for x in tensors)
    shapes = {"frames": 2, "area": (8, 7), "box": (4, 8, 7)}
    mask = oracle_mask(query, key, grid, layer, {"top_k": (2, 3, 4), "layer": layer}, False, shapes, tokens)
    exact, rounded = (attend_mask(query[:, tokens], key, value, mask, exact) for exact in (True, False))
    plan = VMoBAConfig(**shapes, top_k=(2, 3, 4)).plan(grid, query, key, layer=layer)
    assert_close(attend(query, key, value, plan)[:, tokens].transpose(1, 2), exact, rounded)


def test_tile_routing_keeps_whole_tiles_of_queries_together():
    grid = TokenGrid(4, 8, 8, text=9)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plan = VMoBAConfig(box=(2, 4, 4), top_k=(3, 3, 3), routing="tile", block=16).plan(grid, query, key, layer=2)
    seen = plan.to_dense_mask()[0]
    chunk = chunk_of_token(grid, (2, 4, 4))
    by_chunk = torch.stack([seen[:, :256, :256][..., chunk == c].all(-1) for c in range(8)], -1)
    assert (by_chunk.sum(-1) == 3).all() and by_chunk[:, torch.arange(256), chunk].all()
    assert seen[:, 256:].all() and seen[..., 256:].all()


def test_a_threshold_of_one_is_dense():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    for scope in ("query", "head"):
        assert VMoBAConfig(threshold=1.0, scope=scope).plan(grid, query, key).to_dense_mask().all()


def test_partitions_take_turns():
    grid = TokenGrid(4, 8, 8)
    query, key, _ = structured_qkv(grid, heads=1, dim=16)
    config = VMoBAConfig(frames=1, area=(4, 4), box=(2, 4, 4), top_k=(1, 1, 1))
    masks = [config.plan(grid, query, key, layer=layer).to_dense_mask() for layer in range(6)]
    assert [int(mask[0, 0, 0].sum()) for mask in masks[:3]] == [64, 64, 32]
    assert all(torch.equal(masks[layer], masks[layer + 3]) for layer in range(3))
    assert not torch.equal(masks[0], masks[1])


def test_presets_of_the_paper():
    assert VMoBAConfig.from_paper("wan2.1-720p").top_k == (2, 10, 9)
    assert VMoBAConfig.paper_schedule("wan2.1-720p").dense_start == 0.25
