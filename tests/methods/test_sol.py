"""Sol-Attn against golden values and a float64 loop over blocks and tokens."""

import math
from dataclasses import replace

import pytest
import torch
from method_oracles import nested, rows_of_tokens

from diffattn import Schedule, SolConfig, TokenGrid, attend, make_plan
from diffattn.analysis.synthetic import structured_qkv
from diffattn.methods import sol
from diffattn.methods.sol import best_within, standard_scores

GRIDS = [
    TokenGrid(3, 9, 10),
    TokenGrid(3, 7, 11, text=7, text_first=True),
    TokenGrid(3, 7, 11, text=20),
    TokenGrid(1, 5, 9),
]
CONFIGS = [
    SolConfig(tau=0.5, block=16),
    SolConfig(tau=0.5, block=16, rule="exact"),
    SolConfig(tau=1.0, block=32, rule="exact", sinks=2, neighbors=0),
    SolConfig(tau=0.3, block=16, sinks=1, neighbors=2, order="nested"),
    SolConfig(),
]


def inputs(grid):
    """Query (2, S, 2, 8) and key and value (2, S, 1, 8)."""
    query, key, value = structured_qkv(grid, heads=2, dim=8, batch=2)
    return query, key[:, :, :1].contiguous(), value[:, :, :1].contiguous()


def blocks_of(grid, config):
    """The visual tokens of each block."""
    row = rows_of_tokens(grid, config.block, nested if config.order == "nested" else None)
    blocks = [[] for _ in range(math.ceil(grid.video_tokens / config.block))]
    for token in range(grid.video_start, grid.video_start + grid.video_tokens):
        blocks[int(row[token]) // config.block].append(token)
    return blocks


def exact_blocks(query, key, blocks, config):
    """For each block of queries the blocks of keys that are exact, of one head: query and key (S, D) float64."""
    dim = query.shape[-1]
    q, k = (torch.stack([x[tokens].mean(0) for tokens in blocks]) for x in (query, key))
    variance = ((k - k.mean(0)) ** 2).mean(0)
    exact = []
    for i in range(len(blocks)):
        scores = [float(q[i] @ k[j]) / math.sqrt(dim) for j in range(len(blocks))]
        mean = sum(scores) / len(scores)
        if config.rule == "exact":
            sigma = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        else:
            sigma = math.sqrt(sum(float(q[i, d] ** 2 * variance[d]) for d in range(dim)) / dim)
        exact.append(
            [
                score > mean + config.tau * sigma or abs(i - j) <= config.neighbors or j < config.sinks
                for j, score in enumerate(scores)
            ]
        )
    return exact


def attend_head(query, key, value, blocks, exact, text):
    """Output (S, D) float64 of one head: numerator and denominator summed block by block, as the paper writes them."""
    out = torch.empty(len(query), value.shape[-1], dtype=torch.float64)
    scale = query.shape[-1] ** -0.5
    for i, rows in enumerate([*blocks, text]):
        numerator, denominator = torch.zeros(len(rows), value.shape[-1]), torch.zeros(len(rows), 1)
        for j, keys in enumerate([*blocks, text]):
            if i == len(blocks) or j == len(blocks) or exact[i][j]:
                for token in keys:
                    weight = (scale * query[rows] @ key[token]).exp()[:, None]
                    numerator, denominator = numerator + weight * value[token], denominator + weight
            else:
                weight = (scale * query[rows] @ key[keys].mean(0)).exp()[:, None]
                numerator, denominator = numerator + weight * value[keys].sum(0), denominator + weight * len(keys)
        out[rows] = numerator / denominator
    return out


def oracle(query, key, value, grid, config):
    """Output (B, S, H, D) float64 and the share of products between visual tokens."""
    query, key, value = (x.double() for x in (query, key, value))
    blocks, group = blocks_of(grid, config), query.shape[2] // key.shape[2]
    text = list(range(grid.text_start, grid.text_start + grid.text))
    out, computed = torch.empty_like(query), 0
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            head = query[b, :, h], key[b, :, h // group], value[b, :, h // group]
            exact = exact_blocks(*head[:2], blocks, config)
            out[b, :, h] = attend_head(*head, blocks, exact, text)
            for i, rows in enumerate(blocks):
                computed += sum(len(rows) * (len(keys) if exact[i][j] else 1) for j, keys in enumerate(blocks))
    return out, computed / (query.shape[0] * query.shape[2] * grid.video_tokens**2)


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_output_is_that_of_a_loop_over_blocks_and_tokens(grid, config):
    query, key, value = inputs(grid)
    plan = config.plan(grid, query, key)
    exact, density = oracle(query, key, value, grid, config)
    for impl in ("torch", "reference"):
        torch.testing.assert_close(attend(query, key, value, plan, impl=impl).double(), exact, rtol=0, atol=2e-5)
    assert plan.density == pytest.approx(density)


def golden_scores(rule):
    """Four blocks of 16 equal tokens whose scores for every query are 0, 0, 0 and 4."""
    query = torch.ones(1, 64, 1, 16)
    key = torch.zeros(1, 64, 1, 16)
    key[:, 48:] = 1
    return standard_scores(query, key, torch.arange(64), 16, rule)[0, 0]


def test_golden_values():
    spread = golden_scores("exact")[0]  # (0 - mu) / sigma and (4 - mu) / sigma, mu 1, sigma sqrt(3)
    torch.testing.assert_close(spread, torch.tensor([-1.0, -1.0, -1.0, 3.0]) / 3**0.5)
    assert (spread > 1).tolist() == [False, False, False, True]
    # of 16 channels that vary together, as if they were independent: sigma sqrt(3 / 16)
    torch.testing.assert_close(golden_scores("diag")[0], torch.tensor([-1.0, -1.0, -1.0, 3.0]) * (16 / 3) ** 0.5)


def test_the_rules_agree_on_one_channel():
    query, key = torch.randn(2, 1, 160, 1, 1, generator=torch.Generator().manual_seed(0))
    diag, exact = (standard_scores(query, key, torch.arange(160), 16, rule) for rule in ("diag", "exact"))
    torch.testing.assert_close(diag, exact)


@pytest.mark.parametrize("rule", ["diag", "exact"])
def test_a_tau_far_below_is_dense_and_one_far_above_leaves_neighbors_and_means(rule):
    grid = TokenGrid(5, 9, 10, text=7)
    query, key, value = inputs(grid)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), enable_gqa=True
    )
    low, high = (SolConfig(tau=tau, rule=rule, block=16).plan(grid, query, key) for tau in (-1e9, 1e9))
    torch.testing.assert_close(attend(query, key, value, low, impl="torch").transpose(1, 2), dense)
    block = torch.arange(grid.video_tokens) // 16
    wanted = torch.where((block[:, None] - block).abs() <= 1, 1, 16).int()
    assert (high.to_dense_levels()[..., : grid.video_tokens, : grid.video_tokens] == wanted).all()


def test_about_a_sixth_of_independent_scores_exceeds_one_sigma():
    grid = TokenGrid(16, 16, 16)
    query, key = torch.randn(2, 1, grid.tokens, 2, 64, generator=torch.Generator().manual_seed(0))
    for rule in ("diag", "exact"):
        scores = standard_scores(query, key, torch.arange(grid.tokens), 64, rule)
        assert float((scores > 1).double().mean()) == pytest.approx(0.16, abs=0.01)


@pytest.mark.parametrize("rule", ["diag", "exact"])
@pytest.mark.parametrize("density", [0.15, 0.3, 0.7])
@pytest.mark.parametrize("grid", [TokenGrid(9, 16, 16), TokenGrid(7, 15, 22, text=30, text_first=True)], ids=str)
def test_every_head_comes_within_a_block_of_the_density(grid, density, rule):
    config = SolConfig(density=density, rule=rule, block=32)
    query, key, _ = inputs(grid)
    for head in range(2):
        reached = config.plan(grid, query[:1, :, [head]], key[:1]).density
        products = grid.video_tokens**2
        assert density * products - 32**2 < reached * products <= density * products + 0.5


def test_a_density_is_a_threshold_on_the_scores():
    scores = torch.tensor([[5.0, 0.0, 4.0], [3.0, 6.0, 9.0], [1.0, 2.0, 0.0]])[None, None]
    counts = torch.tensor([8.0, 8.0, 4.0])  # the means of 3 blocks for 20 queries: 60 of 400 products
    always = torch.eye(3, dtype=torch.bool)  # 56 + 56 + 12 more
    kept = best_within((60 + 124 + 24) / 400, scores, always, counts)  # and 8 * 3 of the 9
    assert kept[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    kept = best_within((60 + 124 + 24 + 24) / 400, scores, always, counts)  # and of the 4
    assert kept[0, 0].int().tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 1]]
    assert torch.equal(best_within(0.1, scores, always, counts)[0, 0], always)
    assert best_within(1.0, scores, always, counts).all()


def test_a_density_below_neighbors_and_means_says_so_once(monkeypatch):
    said = []
    monkeypatch.setattr(sol.logger, "warning", said.append)
    grid = TokenGrid(5, 9, 10)
    query, key, _ = inputs(grid)
    config = SolConfig(density=0.1, block=16)
    plan = config.plan(grid, query, key)
    config.plan(grid, query, key)
    assert len(said) == 1 and f"has density {plan.density:.3f} at least, 0.1 was asked for" in said[0]


def test_a_schedule_of_tau_goes_from_the_first_to_the_last_step(monkeypatch):
    said = []
    monkeypatch.setattr(sol.logger, "warning", said.append)
    grid = TokenGrid(5, 9, 10)
    query, key, _ = inputs(grid)
    config = SolConfig(tau=(1.5, 0.25), block=16)

    def levels(tau):
        return replace(config, tau=tau).plan(grid, query, key).to_dense_levels()

    def levels_at(step, steps):
        return config._plan(grid=grid, query=query, key=key, layer=0, step=step, steps=steps).to_dense_levels()

    assert not torch.equal(levels(1.5), levels(0.25))
    for step, tau in enumerate((1.5, 1.25, 1.0, 0.75, 0.5, 0.25)):
        assert torch.equal(levels_at(step, 6), levels(tau))
    assert torch.equal(levels_at(0, 1), levels(1.5))
    assert not said and all(torch.equal(levels_at(None, None), levels(1.5)) for _ in range(2))
    assert len(said) == 1 and "keeps tau at 1.5 instead of going to 0.25" in said[0]


def test_published_settings():
    assert SolConfig.from_paper("sol-engine") == SolConfig() == SolConfig(tau=1.0, density=None)
    assert SolConfig.from_paper("comfyui").tau == 1.3 and SolConfig.from_paper("wan2gp").tau == (1.3, 0.8)
    assert SolConfig.paper_schedule("sol-engine") == Schedule(dense_start=0.2, dense_layers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": (1.0, 2.0, 3.0)}, "tau must be a number, or two"),
        ({"tau": math.inf}, "tau must be a number"),
        ({"tau": 1.0, "density": 0.2}, "give one of density, tau"),
        ({"rule": "full"}, "rule must be one of diag, exact"),
        ({"sinks": -1}, "sinks must be an integer of at least 0"),
        ({"neighbors": 0.5}, "neighbors must be an integer of at least 0"),
        ({"block": None}, "block must be one of"),
        ({"order": "morton"}, "order must be one of nested, hilbert, raster"),
    ],
)
def test_bad_options_name_the_field(options, message):
    with pytest.raises(ValueError, match=message):
        SolConfig(**options)


def test_make_plan_knows_the_method():
    grid = TokenGrid(5, 9, 10)
    query, key, _ = inputs(grid)
    plan = make_plan("sol", grid, query, key)
    assert torch.equal(plan.to_dense_levels(), SolConfig().plan(grid, query, key).to_dense_levels())
