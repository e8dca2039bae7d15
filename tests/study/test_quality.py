"""The quality study: its controls, its sentences, and a run of it."""

from dataclasses import replace

import pytest
import torch

import diffattn
from benchmarks import planning
from benchmarks.quality import __main__ as quality
from benchmarks.quality import distances, report
from benchmarks.quality.contenders import METHODS, ORACLES, RandomBlocks, TopBlocks, TopTokens, best_tokens
from benchmarks.quality.end_to_end import similarity
from benchmarks.quality.measures import Result, measure
from benchmarks.quality.sources import Sample, synthetic
from benchmarks.tiny import PROMPTS, held_out_prompts
from diffattn import TokenGrid, attend
from diffattn.analysis.synthetic import structured_qkv
from docs.tools.distances import draw

GRID = TokenGrid(3, 6, 8)
REST, TOKENS = ORACLES
QKV = structured_qkv(GRID, heads=2, dim=16, batch=2)


@pytest.mark.parametrize("rest", [False, True])
def test_the_oracle_as_a_plan_is_the_best_tokens(rest):
    plan = TopTokens(0.2, rest).plan(GRID, *QKV[:2])
    assert plan.density == pytest.approx(29 / 144)
    torch.testing.assert_close(attend(*QKV, plan), best_tokens(*QKV, 0.2, rest), rtol=0, atol=1e-5)


def test_random_blocks_are_as_many_as_the_best_and_differ_by_layer_and_seed():
    best, *drawn = (
        config.plan(GRID, *QKV[:2], layer=layer).lists[0]
        for config, layer in (
            (TopBlocks(0.4), 0),
            (RandomBlocks(0.4), 0),
            (RandomBlocks(0.4), 1),
            (RandomBlocks(0.4, 1), 0),
        )
    )
    again = RandomBlocks(0.4).plan(GRID, *QKV[:2]).lists[0]
    assert all(torch.equal(lists.counts, best.counts.expand_as(lists.counts)) for lists in drawn)
    assert torch.equal(again.indices, drawn[0].indices)
    assert not torch.equal(drawn[0].indices, drawn[1].indices) and not torch.equal(drawn[0].indices, drawn[2].indices)


def test_methods_beat_the_controls_on_rough_fields():
    """PSA better than top-k blocks, Rectified by far, all better than random blocks, auto ahead."""
    (sample,) = synthetic(TokenGrid(8, 16, 16), 1, octaves=4)
    sample = replace(sample, **{name: getattr(sample, name)[:, :, :2] for name in ("query", "key", "value")})
    error = {result.name: result.scores["error"] for result in measure(sample, [0.145])}
    assert error["auto"] <= 0.6 * error["pyramid"] and error["auto"] < error["rectified"]
    assert error["auto"] <= 0.4 * error["top-k blocks"] and error["rectified"] <= 0.6 * error["top-k blocks"]
    assert error["pyramid"] < error["top-k blocks"]
    assert all(error[name] < error["random blocks"] for name in METHODS)


def test_findings_name_who_loses_and_who_overspends():
    def results(score, **errors):
        names = {"auto": "auto", "radial": "radial", "top": "top-k blocks", "random": "random blocks"}
        names |= {"best": TOKENS, "rest": REST}
        return [Result(names[key], 0.1, reached, {score: value}) for key, (value, reached) in errors.items()]

    exact = {"best": (0.25, 0.1), "rest": (0.1, 0.1)}
    made = results("error", auto=(0.2, 0.1), radial=(0.5, 0.3), top=(0.3, 0.1), random=(0.4, 0.1), **exact)
    text = report.findings(made, "error")
    assert text.startswith(
        f"Better than {REST}: none. Better than {TOKENS}: auto (at 0.1). "
        "Not better than top-k blocks: radial (at 0.1). Not better than random blocks: radial (at 0.1)."
    )
    assert "radial (0.30 for 0.1)" in text
    exact = {"best": (40.0, 0.1), "rest": (50.0, 0.1)}
    made = results("psnr", auto=(20.0, 0.1), radial=(30.0, 0.1), top=(25.0, 0.1), random=(10.0, 0.1), **exact)
    text = report.findings(made, "psnr")
    said = "none. Not better than top-k blocks: auto (at 0.1). Not better than random blocks: none.\n\n- auto: "
    assert said in text and text.count("\n- ") == 1


def test_a_paired_difference_is_that_of_each_prompt():
    scores = {"auto": (20.0, 30.0, 25.0), "sol": (19.0, 27.0, 23.0)}
    made = [
        Result(name, 0.2, 0.2, {"psnr": value}, {"prompt": prompt})
        for name, values in scores.items()
        for prompt, value in enumerate(values)
    ]
    assert report.paired(made, "psnr", "auto").splitlines()[2:] == ["| sol | -2.00 ± 0.58 |"]


def test_prompts_of_the_study_are_held_out_and_each_their_own():
    prompts = held_out_prompts(12)
    assert len(set(prompts)) == 12 and not set(prompts) & set(PROMPTS)


def test_mass_by_distance_of_even_and_of_local_attention():
    query, key, value = (torch.zeros(1, GRID.tokens, 1, 8) for _ in range(3))
    even = distances.mass_by_distance(Sample(GRID, query, key, value))[0]
    expected = [band.float().mean() for band in distances._bands(GRID)] + [14 / 144]
    torch.testing.assert_close(even, torch.stack([torch.as_tensor(x) for x in expected]), rtol=0, atol=1e-5)
    frame = torch.nn.functional.one_hot(torch.arange(GRID.tokens) // 48, 8).float()[None, :, None] * 20
    inside = distances.mass_by_distance(Sample(GRID, frame, frame, value))[0]
    assert inside[0] == pytest.approx(1, abs=1e-4) and inside[1:4].sum() == pytest.approx(0, abs=1e-4)
    assert distances.table([Sample(GRID, query, key, value)]).count("\n") == 3


def test_distances_by_head_have_a_table_and_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    query, key, value = (torch.zeros(1, GRID.tokens, 2, 8) for _ in range(3))
    rows = distances.shares_by_head(Sample(GRID, query, key, value, layer) for layer in (1, 0))
    assert list(rows) == ["0.0", "0.1", "1.0", "1.1", "even"]
    assert rows["0.0"][:-1] == pytest.approx(rows["even"][:-1], abs=1e-5)
    draw(rows, tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 5000


def test_a_run_writes_table_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    quality.main(
        ["--source", "rough", "--grid", "3", "6", "8", "--seeds", "1", "--densities", "0.3", "--out", str(tmp_path)]
    )
    text = (tmp_path / "quality-rough.md").read_text()
    assert all(
        f"| {name} |" in text for name in ("auto", "vmoba, tile routing", "top-k tokens (oracle)", "random blocks")
    )
    assert "4 octaves on 3x6x8" in text and "seed 0" in text
    assert (tmp_path / "quality-rough.png").read_bytes().startswith(b"\x89PNG")


def test_similarity_of_a_video_to_itself_and_to_another():
    pytest.importorskip("torchmetrics")
    video = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8
    assert similarity(video + 0.1, video)["psnr"] == pytest.approx(20, abs=1e-3)
    assert similarity(video, video)["ssim"] == pytest.approx(1)


@pytest.mark.parametrize("case", planning.CASES)
def test_plans_of_long_sequences_are_small(case):
    """At most 2 % of query, key and value at 32k tokens, with text, and one head only to share the order of tokens.

    `sol` has blocks of 64 whatever the length, and lists every one of them: 4.4 %. The lists of `auto` are as wide as
    they can get, for its planner must not wait for their lengths: 2.6 %. A plan that is kept is trimmed.
    """
    method, options, layer = planning.CASES[case]
    grid = replace(planning.GRIDS["32k"], text=226)
    query, key = torch.randn(2, 1, grid.tokens, 1, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    plan = diffattn.config(method, density=0.2, **options).plan(grid, query, key, layer=layer)
    assert planning.plan_bytes(plan) <= {"sol": 0.045, "auto": 0.03}.get(case, 0.02) * 3 * query.nbytes


def test_bytes_of_a_plan():
    plan = TopBlocks(0.4).plan(GRID, *QKV[:2])
    lists = plan.lists[0]
    expected = 4 * (plan.order.numel() + lists.counts.numel()) + 2 * lists.indices.numel()
    assert planning.plan_bytes(plan) == expected
