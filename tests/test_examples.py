import runpy
import sys
from pathlib import Path

import imageio.v3 as iio
import torch
from diffusers import DiffusionPipeline

import diffattn

ROOT = Path(__file__).parents[1]


def test_quickstart_makes_two_videos(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--steps", "2", "--folder", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    printed = capsys.readouterr().out
    dense, sparse = (iio.imread(tmp_path / f"{name}.mp4") for name in ("dense", "auto"))
    assert dense.shape == sparse.shape == (33, 128, 128, 3) and (dense != sparse).any()
    for name in ("dense", "auto"):
        assert str(tmp_path / f"{name}.mp4") in printed
    assert "density" in printed


def test_the_embedded_model_is_deterministic():
    pipe = DiffusionPipeline.from_pretrained(diffattn.tiny_wan())
    pipe.set_progress_bar_config(disable=True)
    diffattn.enable(pipe, "radial", schedule=diffattn.Schedule(dense_start=0, dense_layers=0))
    made = [
        pipe(
            "a red circle moves right over a blue background",
            height=128,
            width=128,
            num_frames=9,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames
        for _ in range(2)
    ]
    assert torch.equal(*made)
