"""The search benchmark itself, small, at half the size of the embedded model: a quarter of it, it has forgotten."""

import pytest
import torch

import diffattn
from benchmarks.hunt import searches
from benchmarks.hunt.__main__ import parse_args
from benchmarks.hunt.objectives import load_for_any_grid
from benchmarks.hunt.report import EXHAUSTIVE, SCREENED, gain, table
from benchmarks.tiny import load
from diffattn import HeadSet
from docs.tools import guidance

SMALL = (
    "--objectives sharpness --size 64 --prompts 4 --held-out 5 --rounds 1 --steps 2 --guidance-scale 1 "
    "--scale 0.5 --strength 0.5 --check 0"
)


def test_heads_found_help_on_held_out_prompts_and_the_screen_finds_nearly_as_good_ones_for_less(tmp_path, monkeypatch):
    """The bar of 95 % is the benchmark's, at its own size; so few prompts are a harsher one."""
    monkeypatch.setattr(searches, "SEARCHES", {name: searches.SEARCHES[name] for name in (EXHAUSTIVE, SCREENED)})
    monkeypatch.setattr(searches, "HEADS", tmp_path / "headset.json")
    monkeypatch.setattr(searches, "HEAD_MAP", tmp_path / "head-map.png")
    args, objective = parse_args(SMALL.split()), searches.OBJECTIVES["sharpness"]
    rows, sets = searches.measure(load_for_any_grid(), objective, args, tmp_path)
    _, chance, full, fast = rows
    for found in (full, fast):
        mean, error = gain(found, rows)
        assert mean > 2 * error and mean > 2 * gain(chance, rows)[0], table(rows)
    assert fast.scores.mean() >= 0.9 * full.scores.mean() and fast.passes <= 0.4 * full.passes, table(rows)
    searches.publish(sets[SCREENED], searches.folder_of(tmp_path, objective, EXHAUSTIVE))
    heads = HeadSet.load(tmp_path / "headset.json")
    assert heads.heads == sets[SCREENED].heads and heads.guidance.scale == args.scale
    assert heads.search["note"] == searches.NOTE and heads.search["objective"] == "sharpness"
    assert (tmp_path / "head-map.png").stat().st_size > 5000


def test_the_embedded_model_brings_heads_of_our_own_search():
    pipe = load()
    diffattn.guide(pipe)
    heads = HeadSet.load(diffattn.tiny_wan())
    assert "python -m benchmarks.hunt" in heads.search["note"] and heads.search["objective"] == "sharpness"
    assert f"scale {heads.guidance.scale:g}, heads " in str(diffattn.summary(pipe))


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_gallery_is_a_row_for_each_prompt(tmp_path, prompts):
    pytest.importorskip("matplotlib")
    made = torch.rand(prompts, 33, 3, 128, 128)
    captions = tuple(searches.held_out_captions(prompts))
    guidance.draw(tmp_path / "a.png", {"unguided": made, "guided": made}, captions)
    from PIL import Image

    width, height = Image.open(tmp_path / "a.png").size
    assert width == 720 and height == pytest.approx(152 * prompts + 30, abs=1)
