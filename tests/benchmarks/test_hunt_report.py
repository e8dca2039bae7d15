import pytest
import torch

from benchmarks.hunt import searches
from benchmarks.hunt.likeness import described_scene, likeness
from benchmarks.hunt.report import EXHAUSTIVE, SCREENED, Row, table, verdict
from examples.tiny_wan.evaluate import held_out_scenes
from examples.tiny_wan.rendering import render
from examples.tiny_wan.scenes import frame_times


def rows(fast_gain, fast_passes):
    base = torch.linspace(0.5, 0.9, 8)
    noise = torch.tensor([1, -1] * 4) * 0.01
    return [
        Row("unguided", "", base),
        Row(EXHAUSTIVE, "3:1", base + 0.1 + noise, 100, 1000.0),
        Row(SCREENED, "3:1", base + fast_gain + noise, 40, fast_passes),
    ]


@pytest.mark.parametrize(
    "fast_gain, fast_passes, better, cheap",
    [(0.1, 380, "yes", "yes"), (0.1, 410, "yes", "**no**"), (0.001, 380, "**no**", "**no**")],
)
def test_the_verdict_follows_the_numbers(fast_gain, fast_passes, better, cheap):
    said = verdict(rows(fast_gain, float(fast_passes)))
    assert f"two standard errors: {better} " in said[0] and said[1].endswith(cheap)


def test_the_table_pairs_gains_by_prompt():
    lines = table(rows(0.05, 380.0))
    error = 0.01 * (8 / 7) ** 0.5 / 8**0.5
    assert f"| {EXHAUSTIVE}: 3:1 | 0.8000 | +0.1000 ({error:.4f}) | 100% | 1,000 | 100% |" in lines
    assert lines[-1].endswith("| 50% | 380 | 38% |") and lines[2].startswith("| unguided | 0.7000 | +0.0000")


def test_searched_and_held_out_captions_differ():
    searched, held_out = searches.training_captions(20), searches.held_out_captions(40)
    assert len(set(searched)) == 20 and not set(searched) & set(held_out)


def test_a_clip_is_most_like_its_own_caption():
    scenes = [scene for scene in held_out_scenes(12, seed=1) if not scene.pan]
    captions = [scene.caption(n) for n, scene in enumerate(scenes)]
    clips = torch.stack([render(scene, frame_times(5), 32, 32) for scene in scenes]) / 2 + 0.5
    table = torch.stack([likeness(clips, [caption] * len(clips)) for caption in captions], 1)
    seen = [(scene.items[0].colour, scene.background) for scene in scenes]  # the rest is but a few pixels of these
    other = torch.tensor([[one != another for another in seen] for one in seen])
    assert (table.diag()[:, None] > table)[other].all() and table.diag().min() > 0.75 and other.sum() > 50
    clips.requires_grad_()
    likeness(clips, captions).sum().backward()
    assert clips.grad.abs().sum() > 0


def test_likeness_is_highest_for_what_the_caption_says():
    scenes = held_out_scenes(12, seed=3)
    captions = [scene.caption(index) for index, scene in enumerate(scenes)]
    clips = torch.stack([render(described_scene(caption), frame_times(5), 32, 32) for caption in captions])
    scores = torch.stack([likeness(clips / 2 + 0.5, [caption] * len(scenes)) for caption in captions])
    assert scores.argmax(1).tolist() == list(range(len(scenes)))
    with pytest.raises(ValueError, match="one object"):
        described_scene(held_out_scenes(1, 3, objects=2)[0].caption())


def test_only_captions_of_one_object_can_be_compared():
    scene = described_scene("small white square bouncing, striped blue background")
    item = scene.items[0]
    said = (item.size, item.shape, item.colour, item.motion, scene.background)
    assert said == ("small", "square", "white", "bounce", "blue")
    with pytest.raises(ValueError, match="not the caption of a scene of one object: 'a cat'"):
        described_scene("a cat")
