import json

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from diffattn.hunting.clip import ClipScore
from diffattn.hunting.objectives import Colourfulness, Motion, Objective, Sharpness, as_objective, by_name

CLIPS = torch.rand(2, 3, 3, 16, 20, generator=torch.Generator().manual_seed(0))


def test_a_blurred_clip_is_less_sharp():
    blurred = F.avg_pool2d(CLIPS.flatten(0, 1), 3, 1, 1).view_as(CLIPS)
    assert (Sharpness()(blurred, []) < 0.5 * Sharpness()(CLIPS, [])).all()
    ramp = torch.linspace(0, 1, 20).expand(1, 1, 3, 16, 20)
    assert Sharpness()(ramp, []) == pytest.approx(0, abs=1e-6)
    line = torch.zeros(1, 1, 3, 5, 5)
    line[..., 2] = 1  # in each inner row the Laplacian is 1, -2, 1
    assert Sharpness()(line, []) == pytest.approx(4 / 3, rel=1e-5)


def test_motion_is_the_change_from_frame_to_frame():
    still = CLIPS[:, :1].expand_as(CLIPS)
    assert (Motion()(still, []) == 0).all()
    flash = torch.zeros(1, 3, 3, 4, 4)
    flash[:, 1] = 0.5
    assert Motion()(flash, []) == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(ValueError, match="at least two frames"):
        Motion()(CLIPS[:, :1], [])


def test_gray_has_no_colour():
    gray = CLIPS.mean(2, keepdim=True).expand_as(CLIPS)
    assert (Colourfulness()(gray, []) < 1e-4).all() and (Colourfulness()(CLIPS, []) > 0.3).all()


def test_objectives_add_up():
    total = 2 * Sharpness() - Motion()
    assert torch.allclose(total(CLIPS, []), 2 * Sharpness()(CLIPS, []) - Motion()(CLIPS, []))
    named = by_name(["sharpness=2", "motion=-1"])
    assert torch.allclose(named(CLIPS, []), total(CLIPS, []))
    assert named.name == "2 * (sharpness) + -1 * (motion)"
    assert by_name(["motion"]).name == "motion"
    assert as_objective(lambda videos, prompts: videos.mean((1, 2, 3, 4)))(CLIPS, []).shape == (2,)
    with pytest.raises(TypeError, match="objective must be a callable"):
        as_objective(3)
    assert isinstance(-Motion(), Objective)


@pytest.mark.parametrize("objective", [Sharpness(), Motion(), Colourfulness()])
def test_they_are_differentiable(objective):
    clips = CLIPS[:1, :2, :, :5, :5].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda videos: objective(videos, []), clips)


@pytest.fixture
def clip_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = ["<|startoftext|>", "<|endoftext|>", "r", "e", "d</w>", "red</w>", "re"]
    text = {**sizes, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.model_max_length = 77
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8).save_pretrained(tmp_path)
    return tmp_path


def test_clip_scores_frames_as_transformers_does(clip_folder):
    objective = ClipScore(str(clip_folder))
    clips = (CLIPS[:, :2, :, :8, :8] * 255).round() / 255  # of the size CLIP wants: nothing is resized
    clips.requires_grad_()
    found = objective(clips, ["red", "red"])
    model, tokenizer, processor = objective.parts
    for clip, score in zip(clips.detach(), found.detach()):
        inputs = processor(list((clip * 255).byte()), return_tensors="pt")
        out = model(**inputs, **tokenizer(["red"], return_tensors="pt"))
        assert float(score) == pytest.approx(float(out.logits_per_image.mean()), rel=1e-4)
    found.sum().backward()
    assert clips.grad.abs().sum() > 0
    wide = F.interpolate(clips.detach().flatten(0, 1), (8, 24)).unflatten(0, (2, 2))
    assert objective(wide, ["red", "red"]).shape == (2,)
