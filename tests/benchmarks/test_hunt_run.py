"""The search benchmark itself, on the coarsest grid of the embedded model."""

import pytest
import torch

import diffattn
from benchmarks import guided_gallery, hunt
from benchmarks.hunt_report import EXHAUSTIVE, SCREENED
from benchmarks.tiny import load
from diffattn import HeadSet

SMALL = (
    "--objectives sharpness --size 32 --prompts 2 --held-out 5 --rounds 1 --steps 2 --guidance-scale 1 "
    "--scale 0.5 --strength 0.5 --check 0"
)


def test_heads_found_help_on_held_out_prompts_and_the_screen_finds_as_good_ones_for_less(tmp_path, monkeypatch):
    monkeypatch.setattr(hunt, "SEARCHES", {name: hunt.SEARCHES[name] for name in (EXHAUSTIVE, SCREENED)})
    monkeypatch.setattr(hunt, "HEADS", tmp_path / "headset.json")
    monkeypatch.setattr(hunt, "HEAD_MAP", tmp_path / "head-map.png")
    page = hunt.run(hunt.parse_args([*SMALL.split(), "--publish"]), tmp_path / "logs")
    assert "two standard errors: yes" in page and page.rstrip().endswith("(wanted: 95 % at 40 %): yes"), page
    heads = HeadSet.load(tmp_path / "headset.json")
    assert len(heads) == 2 and heads.search["note"] == hunt.NOTE and heads.search["objective"] == "sharpness"
    assert (tmp_path / "head-map.png").stat().st_size > 5000


def test_the_embedded_model_brings_heads_of_our_own_search():
    pipe = load()
    diffattn.guide(pipe)
    heads = HeadSet.load(diffattn.tiny_wan())
    assert heads.search["note"].startswith("found by diffattn.hunt") and heads.search["objective"] == "likeness"
    assert f"scale {heads.guidance.scale:g}, heads " in str(diffattn.summary(pipe))


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_gallery_is_a_row_for_each_prompt(tmp_path, prompts):
    pytest.importorskip("matplotlib")
    made = torch.rand(prompts, 33, 3, 128, 128)
    captions = tuple(hunt.held_out_captions(prompts))
    guided_gallery.draw(tmp_path / "a.png", {"unguided": made, "guided": made}, captions)
    from PIL import Image

    width, height = Image.open(tmp_path / "a.png").size
    assert width == 720 and height == pytest.approx(152 * prompts + 30, abs=1)
