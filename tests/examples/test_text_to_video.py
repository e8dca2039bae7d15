"""The script that people copy: many prompts over several processes, and its mistakes in one line."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from PIL import Image

import diffattn
from diffattn.guidance import map_model, resolve_heads

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "examples" / "text_to_video.py")
PROMPTS = """\
a red circle moves right over a blue background
a green square moves left over a red background
a blue triangle moves up over a green background

a yellow circle moves down over a purple background
"""
SIZES = "--num-inference-steps 1 --num-frames 9 --height 64 --width 64".split()
# a plan that is faster than dense attention at this size, in processes that fixtures do not reach too
SMALL = ["--model", "tiny", "--method", "neighborhood", "--density", "0.1", "--dense-start", "0", *SIZES]


@pytest.fixture
def script(monkeypatch, capsys):
    """Run the script here: exit code, what it printed, what it complained."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", [SCRIPT, *map(str, args)])
        try:
            runpy.run_path(SCRIPT, run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def launch(*args):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*accelerate, "--main_process_port", "0", SCRIPT, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_make_four_prompts_into_the_videos_of_one(tmp_path, script):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS)
    launch("--prompts", prompts, *SMALL, "--output", tmp_path / "two")
    assert script("--prompts", prompts, *SMALL, "--output", tmp_path / "one")[0] == 0
    videos = {}
    for folder in ("one", "two"):
        paths = sorted((tmp_path / folder).glob("*.mp4"))
        assert [path.name for path in paths] == [f"{index:04d}.mp4" for index in range(4)]
        videos[folder] = np.stack([iio.imread(path) for path in paths]).astype(float)
    # rounding may differ between processes and flip a level before the codec; other prompts are other videos
    apart = np.abs(videos["one"][:, None] - videos["two"][None]).mean(axis=(2, 3, 4, 5))
    assert apart.diagonal().max() < 1 and (apart + 99 * np.eye(4)).min() > 5
    about = [json.loads(path.read_text()) for path in sorted((tmp_path / "two").glob("*.json"))]
    assert [one["process"] for one in about] == [0, 0, 1, 1]
    assert [one["prompt"] for one in about] == PROMPTS.replace("\n\n", "\n").splitlines()
    assert all(0 < one["attention"]["density"] < 1 for one in about)


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "give a prompt, or --prompts"),
        (["a cat", "--prompts", "missing.txt"], "give a prompt, or --prompts"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["a cat", "--method", "foo"], "unknown method 'foo', known are:"),
        (["a cat", "--density", "2"], "density must be above 0 and at most 1, got 2.0"),
        (["a cat", "--method", "dense", "--density", "0.5"], "leave --density 0.5 out"),
        (["a cat", "--dense-start", "1.5"], "dense_start must be a fraction"),
        (["a cat", "--model", "tiny", "--image", "{tmp}/cat.png"], "takes no --image"),
        (["a cat", "--model", "tiny", "--heads", "{tmp}/heads.json"], "heads.json"),
        (["a cat", "--dense-start", "few"], "argument --dense-start: invalid"),
        (["a cat", "--model", "{tmp}"], "model_index.json"),
        (["a cat", "--height", "100", *SMALL[:2]], "divisible by"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, script, args, message):
    Image.new("RGB", (64, 64)).save(tmp_path / "cat.png")
    code, _, err = script(*(arg.format(tmp=tmp_path) for arg in args), "--output", tmp_path / "out")
    assert code == 2 and message in err.splitlines()[-1], err


def test_offload_without_a_gpu_is_refused_before_loading(tmp_path, script):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    code, _, err = script("a cat", "--model", "missing", "--offload", "group", "--output", tmp_path)
    assert code == 2 and "there is no GPU" in err


def test_dense_and_guided_by_heads(tmp_path, script):
    """Dense attention leaves the pipeline alone, and guidance by heads is another video of the same seed."""
    pipe = WanPipeline.from_pretrained(diffattn.tiny_wan())
    heads = resolve_heads(map_model(pipe.transformer), [(2, 1), (3, 0)])
    heads.save(tmp_path / "heads.json")
    dense = ["a red circle", "--model", "tiny", "--method", "dense", *SIZES]
    code, out, err = script(*dense, "--output", tmp_path / "dense")
    assert code == 0 and "0000.mp4" in out, err
    about = json.loads((tmp_path / "dense" / "0000.json").read_text())
    assert about["attention"]["enabled"] is False
    guided = ["--heads", tmp_path / "heads.json", "--heads-scale", "5"]
    code, _, err = script(*dense, *guided, "--output", tmp_path / "guided")
    assert code == 0, err
    videos = [iio.imread(tmp_path / name / "0000.mp4").astype(float) for name in ("dense", "guided")]
    assert np.abs(videos[0] - videos[1]).mean() > 1
