"""`diffattn compare` and what it is made of."""

import json
import os
import sys

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from typer.testing import CliRunner

from diffattn.analysis.errors import CommandError
from diffattn.analysis.metrics import compare_videos, ms_ssim_scales
from diffattn.analysis.video import difference_strip, read_video
from diffattn.cli import app, main

SMALL = ["--frames", "5", "--height", "64", "--width", "64", "--steps", "2"]


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def video(seed: int = 0, frames: int = 4, height: int = 48, width: int = 80, noise: float = 12.0) -> np.ndarray:
    """A gradient that moves, and noise of its own."""
    y, x, t = np.meshgrid(*(np.arange(n) for n in (height, width, frames)), indexing="ij")
    scene = np.stack([128 + 100 * np.sin((x + 3 * t) / 9), 128 + 90 * np.cos(y / 7), 2 * x + y], axis=-1)
    noisy = scene + np.random.default_rng(seed).normal(0, noise, scene.shape)
    return noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1, 3)


@pytest.fixture
def files(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        export_to_video([Image.fromarray(frame) for frame in video(seed)], str(tmp_path / f"{name}.mp4"), fps=8)
    return tmp_path / "a.mp4", tmp_path / "b.mp4"


@pytest.mark.parametrize("noise", [2, 40])
@pytest.mark.parametrize("floats", [False, True], ids=["uint8", "floats"])
def test_psnr_and_ssim_are_those_of_scikit_image(noise, floats):
    a, b = video(1, noise=noise), video(2, noise=noise)
    found = compare_videos(*((a / 255.0, b / 255.0) if floats else (a, b)))
    # the window of Wang et al.: Gaussian of 11 pixels, biased variance
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for index, (x, y) in enumerate(zip(a, b)):
        assert found.psnr[index] == pytest.approx(peak_signal_noise_ratio(y, x), abs=1e-3)
        expected = structural_similarity(y, x, channel_axis=-1, data_range=255, **window)
        assert found.ssim[index] == pytest.approx(expected, abs=1e-3)
    assert found.mean["psnr"] == pytest.approx(np.mean(found.psnr)) and len(found.ms_ssim) == 4


def test_equal_frames_are_infinitely_alike_and_json_says_none():
    found = compare_videos(video(), video())
    assert found.psnr == [np.inf] * 4 and found.ssim == pytest.approx([1] * 4) == found.ms_ssim
    assert found.to_dict()["mean"]["psnr"] is None and "inf" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("side", [11, 22, 43, 44, 98, 99, 175, 176])
def test_ms_ssim_takes_the_scales_that_fit(side):
    a, b = (video(seed, 1, side, side + 3, noise=60) for seed in (1, 2))
    found = compare_videos(a, b)
    assert found.scales == ms_ssim_scales(side) and 0 < found.ms_ssim[0] < 1
    if found.scales == 5:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as published

        x, y = (torch.from_numpy(array).permute(0, 3, 1, 2) / 255 for array in (a, b))
        expected = published(x, y, data_range=1.0)
        assert found.ms_ssim[0] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"height": 64}, "differ in size: 80x64 and 80x48 pixels"),
        ({"frames": 3}, "differ in length: 3 and 4 frames"),
    ],
)
def test_different_videos_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        compare_videos(video(**shape), video())


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 80x10"):
        compare_videos(video(height=10), video(1, height=10))


def test_two_files_give_numbers_pictures_and_json(files, tmp_path):
    a, b = files
    result = run(a, b, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["mean"] == pytest.approx(compare_videos(read_video(a)[0], read_video(b)[0]).mean)
    assert sorted(os.listdir(tmp_path / "out")) == ["difference.png", "side_by_side.json", "side_by_side.mp4"]
    assert iio.imread(tmp_path / "out" / "side_by_side.mp4").shape == (4, 48 + 32, 80 + 16 + 80, 3)
    assert iio.immeta(tmp_path / "out" / "side_by_side.mp4")["fps"] == 8
    assert "exists; --force" in str(run(a, b, "-o", tmp_path / "out").exception)
    assert "PSNR" in run(a, b, "-o", tmp_path / "out", "--force").stdout


def test_the_strip_shows_the_difference_amplified():
    a = np.zeros((3, 32, 32, 3), np.uint8)
    strip = np.asarray(difference_strip(a + np.uint8(10), a, ("a", "b"), columns=3))
    assert strip.shape == (3 * (32 + 32 + 32), 3 * 32 + 2 * 16, 3)
    assert (strip[64:96, :32] == 0).all() and (strip[160:192, :32] == 10).all()
    assert (strip[256:288, 48:80] == 160).all()


def test_a_prompt_compares_a_method_with_dense(tmp_path):
    always = ["--dense-start", "0", "--dense-layers", "0"]
    result = run("--prompt", "a red circle", "--method", "auto", "--density", "0.3", *always, *SMALL, "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert about["dense"]["density"] == 1 > about["auto"]["attention_computed"] == about["auto"]["density"]
    assert 10 < about["mean"]["psnr"] < 100 and len(about["frames"]["ssim"]) == 5 and about["ms_ssim_scales"] == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.mp4"], "give two video files"),
        (["a.mp4", "b.mp4", "--prompt", "x"], "give two video files"),
        (["a.mp4", "b.mp4", "--steps", "3"], "--steps goes with --prompt"),
        (["none.mp4", "b.mp4"], "there is no file"),
        (["text.mp4", "b.mp4"], "is no video that ffmpeg reads"),
        (["a.mp4", "b.mp4", "-o", "no/out"], "the output must be a folder"),
        (["--prompt", "x", "--method", "dense"], "--method must name a sparse method"),
        (["--prompt", "x", "--frames", "6"], "frames must be 5 or 9"),
    ],
)
def test_mistakes_are_one_line(files, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    error = run(*arguments).exception
    assert isinstance(error, CommandError) and message in str(error) and "\n" not in str(error)


def test_without_torchmetrics_the_message_names_the_extra_and_the_exit_code_is_2(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional", None)
    monkeypatch.setattr(sys, "argv", ["diffattn", "compare", *map(str, files)])
    with pytest.raises(SystemExit) as exit:
        main()
    printed, complained = capsys.readouterr()
    assert exit.value.code == 2 and printed == "" and complained.count("\n") == 1
    assert 'pip install "diffattn[metrics]"' in complained
