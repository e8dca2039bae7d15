"""Choosing attention heads: their names, their maps in one picture, clicks, and what they do to a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio")

import diffattn
from diffattn import TokenGrid
from diffattn.demo import Models, Request, Worker
from diffattn.demo.head_maps import CAPTION, CHOSEN, SIDE, draw_heads, head_at, head_names, model_in, toggled
from diffattn.demo.sessions import Sessions
from diffattn.demo.worker import ComparisonReady, VideoReady
from diffattn.guidance import ModelMap, map_model
from diffattn.guidance.guidance_hook import find_guidance
from diffattn.integration.apply import find_transformers

SMALL = Request("a red circle", density=0.3, dense_start=0, steps=2, width=64, height=64, frames=5)
UNEVEN = ModelMap("Model", {"a": 3, "b": 2, "c": 3}, ("a", "b", "c"), ())


@pytest.fixture(scope="module")
def worker():
    return Worker(device="cpu")


@pytest.fixture
def sessions():
    sessions = Sessions()
    yield sessions
    sessions.close("me")


def test_the_heads_of_a_folder_are_known_without_its_weights():
    found = model_in(diffattn.tiny_wan())
    assert list(found.layers.values()) == [4] * 6 and head_names(found)[:5] == ["0:0", "0:1", "0:2", "0:3", "1:0"]
    assert head_names(UNEVEN) == ["0:0", "0:1", "0:2", "1:0", "1:1", "2:0", "2:1", "2:2"]


@pytest.mark.parametrize(
    "parts", [{}, {"transformer": ["os", "system"]}, {"transformer": ["diffusers", "UNet2DModel"]}]
)
def test_a_folder_without_a_transformer_that_is_served_has_none(tmp_path, parts):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "model_index.json").write_text(json.dumps(parts))
    assert model_in(tmp_path / "one") is None
    assert Worker(Models(tmp_path, hub=True), device="cpu").heads("one") == []


def test_heads_of_what_is_not_on_this_machine_are_not_known_yet(worker):
    assert worker.heads("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == worker.heads("/etc") == worker.heads("") == []


@pytest.mark.parametrize("method", ["auto", "radial"])
def test_a_click_on_a_map_finds_the_head_that_was_drawn_there(tmp_path, method):
    grid = TokenGrid(3, 5, 7)
    query, key = torch.randn(2, 1, grid.tokens, 3, 16, generator=torch.Generator().manual_seed(0))
    plan = diffattn.make_plan(diffattn.config(method, density=0.3), grid, query, key)
    draw_heads({1: plan, 2: plan}, UNEVEN, ["1:1"], tmp_path / "heads.png")
    picture = np.asarray(Image.open(tmp_path / "heads.png"))
    framed = np.argwhere((picture == CHOSEN).all(-1))
    clicked = [head_at(int(x), int(y)) for y, x in framed]
    assert set(clicked) <= {"1:1", None} and clicked.count("1:1") > SIDE
    inside = {head_at(x, y) for y in range(0, picture.shape[0], 8) for x in range(0, picture.shape[1], 8)}
    assert inside == {None, *head_names(UNEVEN), "1:2"}  # a place without a head, which the run then refuses
    assert head_at(0, 0) is None and head_at(-5, 40) is None


def test_a_dense_layer_is_one_dark_square_and_a_sparse_one_is_not(tmp_path):
    plan = diffattn.make_plan("radial", TokenGrid(4, 4, 4))
    draw_heads({1: plan}, replace(UNEVEN, layers={"a": 1, "b": 1}), [], tmp_path / "heads.png")
    picture = np.asarray(Image.open(tmp_path / "heads.png"))
    top = 10 + CAPTION
    dense, sparse = (picture[top : top + SIDE, left : left + SIDE] for left in (10, 20 + SIDE))
    assert (dense == dense[0, 0]).all() and dense[0, 0].sum() < 200 and not (sparse == sparse[0, 0]).all()


def test_a_second_click_takes_a_head_back():
    assert toggled(["1:1"], "2:0") == ["1:1", "2:0"]
    assert toggled(["1:1", "2:0"], "1:1") == ["2:0"]
    assert toggled(["1:1"], None) == ["1:1"]


def test_chosen_heads_guide_both_videos_and_none_is_guided_afterwards(worker, sessions):
    def videos(**values):
        events = list(worker.run(worker.check(replace(SMALL, **values)), sessions.begin("me")))
        assert isinstance(events[-1], ComparisonReady) and events[-1].heads.is_file()
        return [event.trial.frames for event in events if isinstance(event, VideoReady)]

    plain, guided = videos(), videos(heads=["2:1", "3:0"])
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(plain, guided))
    again, off = videos(), videos(heads=["2:1"], head_scale=0)
    for other in (again, off):
        assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(plain, other))
    pipe = worker._loaded[1]
    expected = _guided_frames(pipe)
    assert np.array_equal(guided[0], expected)
    assert all(find_guidance(transformer) is None for transformer in find_transformers(pipe))
    assert worker.heads("tiny") == head_names(map_model(pipe.transformer))


def _guided_frames(pipe):
    diffattn.guide(pipe, heads=[(2, 1), (3, 0)], scale=3.0, strength=1.0)
    try:
        return diffattn.analysis.trial.run_trial(pipe, SMALL.inputs).frames
    finally:
        diffattn.unguide(pipe)
