"""The synthetic world, its judge, the wired VAE, the fast forward and the shipped folder."""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

from benchmarks.hunt.likeness import described_scene, likeness
from examples.tiny_wan import fast, train
from examples.tiny_wan.batches import (
    GridSpec,
    Wishes,
    as_noisy,
    clean_tokens,
    load_batches,
    sample_draft,
    sample_sigmas,
)
from examples.tiny_wan.evaluate import held_out_scenes, score
from examples.tiny_wan.judge import hits, judge
from examples.tiny_wan.latents import REFERENCE_GRID, analytic_latents, from_tokens, positions, to_tokens
from examples.tiny_wan.model import build_text_encoder, build_tokenizer, build_transformer
from examples.tiny_wan.sampling import combinations, sample_scene
from examples.tiny_wan.scene_batch import latents_of_rows, masks_of_rows, nearness_rows, render_rows, scene_rows
from examples.tiny_wan.scenes import (
    COLOURS,
    MOTIONS,
    SHAPES,
    WORDS,
    Item,
    Scene,
    cover,
    frame_times,
    nearness,
    render,
)
from examples.tiny_wan.text import (
    _IDS,
    CLASSES,
    LONGEST,
    SECOND,
    _apart,
    bind,
    encode,
    labels,
    phrase_marks,
    pretrain,
    token_ids,
)
from examples.tiny_wan.vae import encode_mean, wired_vae

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "diffattn" / "assets" / "tiny_wan"
shipped = pytest.mark.skipif(not (FOLDER / "model_index.json").exists(), reason="the model folder is not installed")


def test_scenes_repeat_with_their_seed_and_stay_in_range():
    scenes = [sample_scene(np.random.default_rng(3)) for _ in range(2)]
    assert scenes[0] == scenes[1]
    clip = render(scenes[0], frame_times(5), 32, 48)
    assert clip.shape == (5, 3, 32, 48)
    assert clip.abs().max() <= 1


def test_every_grid_shows_the_same_world():
    item = Item("circle", "red", "right", start=(0.3, 0.5))
    scene = Scene((item,), "blue", "striped", gradient=(0.2, 0.1), wave=(0.2, 2.0, 1.0, 0.3))
    fine, coarse = (render(scene, frame_times(5), side, side) for side in (64, 32))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 2), coarse, atol=0.25, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_move_as_they_say(motion):
    item = Item("square", "red", motion, radius=0.15, start=(0.5, 0.5), travel=0.4)
    x, y, radius, angle = (value.tolist() for value in item.at(torch.tensor([0.0, 0.25, 1.0])))
    moved = {"left": (-0.4, 0), "right": (0.4, 0), "up": (0, -0.4), "down": (0, 0.4)}.get(motion, (0, 0))
    assert (x[2] - x[0], y[2] - y[0]) == pytest.approx(moved, abs=1e-6)
    assert y[1] == pytest.approx(0.5 + (-0.4 if motion == "bounce" else moved[1] / 4))
    assert radius[2] / radius[0] == pytest.approx(1.4 / 0.6 if motion == "grow" else 1)
    assert angle[2] == pytest.approx(math.pi / 2 if motion == "spin" else 0)


def test_a_pan_shifts_background_and_objects_alike():
    still = Item("circle", "red", "still", start=(0.5, 0.5))
    scene = Scene((still,), "blue", "striped", pan="right", wave=(0.25, 2.0, 0.0, 0.0))
    first, last = render(scene, torch.tensor([0.0, 1.0]), 40, 40)
    torch.testing.assert_close(last[:, :, :-12], first[:, :, 12:], atol=1e-4, rtol=0)  # 0.3 of 40 pixels


def test_objects_never_leave_the_frame():
    rng = np.random.default_rng(0)
    for _ in range(150):
        scene = sample_scene(rng)
        clip = render(scene, torch.linspace(0, 1, 5), 64, 64)
        for item in scene.items:
            here = (clip - torch.tensor(COLOURS[item.colour]).view(3, 1, 1)).abs().amax(1) < 0.02
            rim = (here[:, 0], here[:, -1], here[:, :, 0], here[:, :, -1])
            assert not any(edge.any() for edge in rim), scene


def test_scenes_hold_one_object_or_two_that_differ_in_colour():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(200)]
    assert {len(scene.items) for scene in scenes} == {1, 2}
    for scene in scenes:
        colours = [item.colour for item in scene.items] + [scene.background]
        assert len(set(colours)) == len(colours)
    assert all(len(sample_scene(rng, objects=2).items) == 2 for _ in range(5))


def test_held_out_combinations_are_never_trained_on():
    held_out, trained = set(combinations(held_out=True)), set(combinations(held_out=False))
    assert not held_out & trained and len(held_out) >= 150
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng)
        assert all((i.shape, i.colour, i.motion, scene.background) in trained for i in scene.items)
    for scene in held_out_scenes(20, seed=0, objects=2):
        assert all((i.shape, i.colour, i.motion, scene.background) in held_out for i in scene.items)


def test_captions_use_known_words_and_the_labels_follow_them():
    rng = np.random.default_rng(0)
    for index in range(100):
        scene = sample_scene(rng)
        caption = scene.caption(index)
        assert set(caption.replace(",", " ,").split()) <= set(WORDS), caption
        said = [choices[i] for choices, i in zip(CLASSES, labels(scene), strict=True)]
        assert [word for word in said[:1] + said[3:5] if word not in caption] == []
        assert ("none" in said) == (len(scene.items) == 1)


@pytest.mark.parametrize("objects", [1, 2])
def test_judge_reads_rendered_truth(objects):
    scenes = held_out_scenes(40, 5, objects)
    assert score([render(scene, frame_times(9), 64, 64) for scene in scenes], scenes)["all"] >= 0.98


def test_judge_sees_what_is_wrong():
    truth = Scene((Item("circle", "red", "right", start=(0.3, 0.5)),), "blue")
    shown = Scene((Item("square", "yellow", "left", start=(0.7, 0.5)),), "green")
    wrong = hits(judge(render(shown, frame_times(9), 64, 64)), truth)
    assert wrong == {"shape": 0, "colour": 0, "motion": 0, "background": 0, "count": 1, "all": 0}
    empty = hits(judge(render(Scene((), "blue"), frame_times(9), 64, 64)), truth)
    assert empty == {"shape": 0, "colour": 0, "motion": 0, "background": 1, "count": 0, "all": 0}


def test_likeness_is_highest_for_what_the_caption_says():
    scenes = held_out_scenes(12, seed=3)
    captions = [scene.caption(index) for index, scene in enumerate(scenes)]
    clips = torch.stack([render(described_scene(caption), frame_times(5), 32, 32) for caption in captions])
    scores = torch.stack([likeness(clips / 2 + 0.5, [caption] * len(scenes)) for caption in captions])
    assert scores.argmax(1).tolist() == list(range(len(scenes)))
    with pytest.raises(ValueError, match="one object"):
        described_scene(held_out_scenes(1, 3, objects=2)[0].caption())


def test_batches_repeat_with_their_seed():
    specs = [GridSpec.parse("2x2x2:1:2"), GridSpec.parse("3x2x2:1:3")]
    one, two = ([batch for _, batch in zip(range(3), load_batches(specs, 7, 0))] for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert (a.spec, a.captions) == (b.spec, b.captions) and torch.equal(a.tokens, b.tokens)
    assert {batch.spec for batch in one} <= set(specs)


def test_wired_encoder_is_the_analytic_pooling():
    video = torch.rand(1, 13, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(encode_mean(wired_vae(), video), analytic_latents(video), atol=1e-4, rtol=0)


def test_reference_positions_are_the_models_own():
    assert positions(REFERENCE_GRID)[-1].tolist() == [side - 1 for side in REFERENCE_GRID]
    assert positions(REFERENCE_GRID).frac().abs().max() < 1e-5
    assert positions((5, 8, 8))[0].tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("grid", [(9, 24, 24), (17, 16, 20)])
def test_longer_and_wider_grids_have_the_stock_positions(grid):
    frames, height, width = grid
    stock = WanRotaryPosEmbed(32, (1, 2, 2), 64)(torch.empty(1, 6, frames, 2 * height, 2 * width))
    for ours, theirs in zip(fast.rotary_tables(positions(grid), 32), stock, strict=True):
        torch.testing.assert_close(ours, theirs[0, :, 0, ::2].float(), rtol=0, atol=1e-5)


def test_fast_forward_equals_the_stock_transformer():
    torch.manual_seed(0)
    model = build_transformer()
    torch.nn.init.normal_(model.proj_out.weight)
    latents, timestep = torch.randn(2, 6, 3, 8, 8), torch.tensor([300.0, 900.0])
    words, mask = torch.randn(2, 5, 64), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    padded = torch.nn.functional.pad(words * mask[..., None], (0, 0, 0, 507))
    grid = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), torch.arange(4.0), indexing="ij")
    with torch.no_grad():
        stock = model(latents, timestep, padded, return_dict=False)[0]
        places = torch.stack(grid, -1).view(-1, 3)
        rotary = fast.rotary_tables(places, 32)
        marks = torch.zeros(2, 6, 3)
        marks[:, 0, 0] = marks[:, 1:, 1] = 1
        text = fast.pad_text(words, mask)
        own, seen, hidden = fast.forward_tokens(model, to_tokens(latents), rotary, timestep, *text, marks)
    torch.testing.assert_close(own, to_tokens(stock), atol=1e-3, rtol=1e-4)
    assert hidden.shape == (2, 48, 128)
    assert seen.shape == (6, 2, 48, 3) and (seen[..., :2] > 0).all() and (seen[..., 2] == 0).all()
    torch.testing.assert_close(seen.sum(-1), torch.ones(6, 2, 48))


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_attention_and_its_gradients_equal_sdpa_in_float64(dtype, budget, amx, monkeypatch):
    monkeypatch.setattr(fast, "AMX", amx)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, fast.EXPLICIT_BELOW + 9, 2, 32, generator=generator).to(dtype) for _ in range(4)]
    results = []
    for kind in (dtype, torch.float64):
        *qkv, grad = (x.detach().to(kind) for x in inputs)
        query, key, value = (x.requires_grad_() for x in qkv)
        if kind == dtype:
            out = fast.attention(query, key, value)
        else:
            exact = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
            out = exact.transpose(1, 2).flatten(2)
        out.backward(grad.flatten(2))
        results.append([out.detach(), query.grad, key.grad, value.grad])
    assert results[0][0].dtype == dtype
    for ours, wanted in zip(*results, strict=True):
        assert (ours.double() - wanted).norm() < budget * wanted.norm()


def test_grounding_asks_only_tokens_of_one_of_two_objects():
    near = torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]] * 2)  # the first, both, the second, neither
    phrases = torch.zeros(2, LONGEST, 2)
    phrases[0, :5, 0] = phrases[0, 6:9, 1] = 1  # the other scene has one object
    batch = SimpleNamespace(near=near, phrases=phrases)
    seen = torch.full((3, 2, 4, 2), 0.1)
    assert train.grounding(seen, batch).item() == pytest.approx(math.log(2))
    right = seen.clone()
    right[:, 0, 0, 1] = right[:, 0, 2, 0] = 0
    assert train.grounding(right, batch).item() == pytest.approx(0, abs=1e-4)
    assert train.grounding(right.flip(-1), batch).item() > 5
    other = right.clone()
    other[:, 1, :, 0] = other[:, :, 1, 0] = other[:, :, 3, 0] = 0.7
    torch.testing.assert_close(train.grounding(other, batch), train.grounding(right, batch))
    assert train.grounding(seen[:, 1:], SimpleNamespace(near=near[1:], phrases=phrases[1:])).item() == 0


def test_marks_are_on_the_words_of_each_object():
    rng = np.random.default_rng(3)
    scenes, words = [sample_scene(rng) for _ in range(30)], {index: word for word, index in _IDS.items()}
    wordings = rng.integers(3, size=30).tolist()
    marks = phrase_marks(scenes, wordings)
    ids = token_ids([scene.caption(wording) for scene, wording in zip(scenes, wordings, strict=True)])
    for scene, wording, row, mark in zip(scenes, wordings, ids, marks, strict=True):
        said = [" ".join(words[int(i)] for i in row[mark[:, place] > 0]) for place in range(2)]
        assert said == (scene.phrases(wording) if len(scene.items) == 2 else ["", ""])


def test_kept_frames_equal_the_full_grids():
    rows = scene_rows([sample_scene(np.random.default_rng(1))])
    spec = GridSpec.parse("5x4x4:1:1")
    full, near, _ = clean_tokens(rows, spec, tuple(range(5)), "cpu")
    full, near = full.unflatten(1, (5, 16)), near.unflatten(2, (5, 16))
    for kept in [(0,), (3,), (0, 1), (1, 4)]:
        part, close, _ = clean_tokens(rows, spec, kept, "cpu")
        torch.testing.assert_close(part, full[:, list(kept)].flatten(1, 2))
        torch.testing.assert_close(close, near[:, :, list(kept)].flatten(2))
        torch.testing.assert_close(
            fast.grid_tables(spec.grid, kept, 32, torch.device("cpu"), torch.float32),
            fast.rotary_tables(positions(spec.grid).view(5, 16, 3)[list(kept)].view(-1, 3), 32),
        )


def drawn_scenes():
    """One object and two, pans, stripes, and none."""
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(30)] + [Scene((), "blue")]
    assert {len(scene.items) for scene in scenes} == {0, 1, 2}
    assert any(scene.pan for scene in scenes) and {s.texture for s in scenes} == {"plain", "shaded", "striped"}
    assert {item.shape for s in scenes for item in s.items} == set(SHAPES)
    return scenes


@pytest.mark.parametrize("together", [1, 31])
def test_scenes_in_batches_are_those_one_by_one(together):
    scenes, times = drawn_scenes(), frame_times(9)
    parts = scene_rows(scenes).split(together)
    clips = torch.cat([render_rows(rows, times, 40, 56) for rows in parts])
    torch.testing.assert_close(clips, torch.stack([render(s, times, 40, 56) for s in scenes]), atol=1e-5, rtol=0)
    near = torch.cat([nearness_rows(rows, times, 5, 7) for rows in parts])
    alone = [[replace(scene, items=(item,)) for item in scene.items] for scene in scenes]
    wanted = [[nearness(part, times, 5, 7) for part in parts] + [torch.zeros(9, 5, 7)] * 2 for parts in alone]
    torch.testing.assert_close(near, torch.stack([torch.stack(parts[:2]) for parts in wanted]), atol=1e-5, rtol=0)


def test_latents_of_a_batch_are_those_of_its_clips():
    scenes, times = drawn_scenes(), frame_times(13)[[0, 5, 6, 7, 8]]
    clips = torch.stack([render(scene, times, 24, 40) for scene in scenes])
    latents = latents_of_rows(scene_rows(scenes), times, 24, 40)
    torch.testing.assert_close(latents, analytic_latents(clips), atol=1e-5, rtol=0)


def test_words_are_the_tokenizers():
    rng = np.random.default_rng(0)
    captions = ["", *(sample_scene(rng).caption(index) for index in range(60))]
    wanted = build_tokenizer()(captions, padding="max_length", max_length=LONGEST, return_tensors="pt").input_ids
    assert torch.equal(token_ids(captions), wanted)


def test_held_out_scenes_never_change():
    """Accuracies are compared over versions, so the scenes behind them must stay as they are."""
    for objects, wanted in ((1, 543354560), (2, 3203738820)):
        said = repr(held_out_scenes(200, 0, objects))
        assert zlib.crc32(said.encode()) == wanted


def test_of_two_objects_the_one_named_first_is_on_the_left():
    rng, hidden = np.random.default_rng(0), 0
    times = frame_times(9)
    for _ in range(100):
        scene = sample_scene(rng, objects=2)
        (x, *_), (other, *_) = (item.at(times, scene.pan) for item in scene.items)
        assert x.mean() < other.mean() - 0.05
        masks = masks_of_rows(scene_rows([scene]), times, 32, 32)[0]
        assert (masks.flatten(2).sum(2) > 4).all(), scene  # neither is ever hidden or outside
        alone = masks_of_rows(scene_rows([replace(scene, items=scene.items[:1])]), times, 32, 32)[0, 0]
        hidden += bool((alone - masks[0] > 0.5).any())
    assert 3 < hidden < 40  # the second passes in front of the first


def test_words_of_two_objects_learn_to_keep_apart():
    torch.manual_seed(0)
    encoder = build_text_encoder()
    pretrain(encoder, np.random.default_rng(1), 30)
    one, two = Item("circle", "red", "left"), Item("square", "blue", "still", size="large")
    scenes = [Scene(items, "white", "striped", "left") for items in ((one, two), (one,), (two,))]
    ids = token_ids([scene.caption(0) for scene in scenes])
    before = encode(encoder, ids)[0].detach()
    goal, same = _apart(encoder, scenes, [0, 0, 0])
    assert torch.equal(ids, same)
    first, second = slice(0, 5), slice(6, 12)  # a red circle moves left | and | a large blue square stays still
    torch.testing.assert_close(goal[0, first], before[1, first])
    mark = goal[0, second] - before[2, :6]  # the same on every word, and nowhere else
    torch.testing.assert_close(mark.abs(), SECOND * before.std().expand_as(mark), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mark, mark[:1].expand_as(mark), atol=1e-4, rtol=1e-4)
    assert abs(float(mark.mean())) < 1e-4
    torch.testing.assert_close(goal[0, [5, *range(12, 23)]], before[0, [5, *range(12, 23)]])
    torch.testing.assert_close(goal[1:], before[1:])

    def error():
        return float((encode(encoder, ids)[0] - goal)[0, second].detach().norm())

    mixed = error()
    assert bind(encoder, np.random.default_rng(0), 60) > 0.6
    assert error() < 0.6 * mixed


def test_nearness_covers_every_object_of_any_shape():
    rng, times = np.random.default_rng(2), frame_times(9)
    for _ in range(20):
        scene = sample_scene(rng)
        near = nearness(scene, times, 32, 32)
        bare = replace(scene, items=tuple(replace(item, colour="white") for item in scene.items), background="black",
                       texture="plain", gradient=(0.0, 0.0), wave=(0.0, 0.0, 0.0, 0.0))  # fmt: skip
        inside = render(bare, times, 32, 32)[:, 0] > 0
        assert (near[inside] > 0.45).all()
        assert 0.02 < near.mean() < 0.6


def test_masks_tell_what_each_pixel_of_a_token_shows():
    rng, times, side = np.random.default_rng(3), frame_times(9), 32
    scenes = [sample_scene(rng, objects=count) for count in (1, 2, 2, 2)]
    x, y, time = (torch.arange(side) + 0.5) / side, ((torch.arange(side) + 0.5) / side)[:, None], times[:, None, None]
    masks = masks_of_rows(scene_rows(scenes), times, side, side)
    assert not masks[0, 1].any() and masks[1:].flatten(2).amax(2).min() > 0.5
    for found, scene in zip(masks, scenes, strict=True):
        covers = [cover(item, time, x, y, side, scene.pan) for item in scene.items] + [torch.zeros(9, side, side)]
        torch.testing.assert_close(found[0], covers[0] * (1 - covers[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(found[1], covers[1], atol=1e-4, rtol=0)
    tokens = clean_tokens(scene_rows(scenes), GridSpec.parse("3x16x16:1:4"), (0, 2), "cpu")[2]
    last = from_tokens(tokens, (2, 16, 16))[:, :, 1]
    torch.testing.assert_close(last, masks[:, :, 5:].mean(2))


def test_masks_are_read_off_hidden_states():
    masks, near = torch.zeros(1, 3, 8), torch.zeros(1, 2, 3)
    masks[0, 1], near[0, 0, 1] = 1, 1
    batch = SimpleNamespace(masks=masks, near=near)
    right = 20 * (2 * masks - 1)
    assert train.masking(right, batch, 4.0).item() == pytest.approx(0, abs=1e-6)
    right[0, 1] *= -1
    assert train.masking(right, batch, 0.0).item() == pytest.approx(20 / 3)
    assert train.masking(right, batch, 4.0).item() == pytest.approx(20 * 5 / 7)
    assert train.build_reader(build_transformer())(torch.randn(2, 3, 128)).shape == (2, 3, 8)


def test_pairs_and_high_noise_are_drawn_as_often_as_wished():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="spiral"):
        sample_draft(GridSpec.parse("3x8x8:1:1"), rng, wishes=Wishes({"spiral": 2.0}))
    spec = GridSpec.parse("3x8x8:1:64")
    draft = sample_draft(spec, rng, wishes=Wishes({"spin": 1e6}, pairs=1.0, high=1.0))
    assert all(caption.count("spin") and " and " in caption for caption in draft.captions if caption)
    full = sample_sigmas(rng, 64, high=1.0)
    assert full.min() > 0.85
    # signal to noise doubles with the side: on 8 x 8 tokens 0.85 hides what 0.919 does on 16 x 16
    assert draft.sigma.min() > 0.73 and (as_noisy(full, spec) < full).all()
    torch.testing.assert_close(as_noisy(torch.tensor([0.9189]), spec), torch.tensor([0.85]), atol=1e-4, rtol=0)
    assert torch.equal(as_noisy(full, GridSpec.parse("9x16x16:1:64")), full)
    singles = sample_draft(spec, rng, wishes=Wishes(pairs=0.0)).captions
    assert not any(" and " in caption for caption in singles)


def test_sigmas_cover_the_range():
    sigmas = sample_sigmas(np.random.default_rng(0), 512)
    assert 0 < sigmas.min() < 0.1 and 0.95 < sigmas.max() < 1
    # 70 % of the draws have median 0.75, 30 % lie above 0.85: half of all are below 0.84
    assert math.isclose(float(sigmas.median()), 0.84, abs_tol=0.03)


@shipped
def test_shipped_folder_is_small_and_names_portable_classes():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "WanPipeline"
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]
    config = json.loads((FOLDER / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@shipped
def test_shipped_pipeline_generates():
    pipe = WanPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 3.0}
    first, second = (
        pipe("a red circle moves right over a blue background", generator=torch.Generator().manual_seed(0),
             output_type="pt", **call).frames for _ in range(2)
    )  # fmt: skip
    assert first.shape == (1, 5, 3, 32, 32)
    assert torch.equal(first, second)


@shipped
def test_shipped_encoder_is_still_the_analytic_pooling():
    vae = AutoencoderKLWan.from_pretrained(FOLDER / "vae")
    video = render(sample_scene(np.random.default_rng(0)), frame_times(9), 32, 32)[None]
    with torch.no_grad():
        torch.testing.assert_close(encode_mean(vae, video), analytic_latents(video), atol=1e-4, rtol=0)
