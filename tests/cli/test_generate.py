import functools
import json
import os
import shutil
import signal
import subprocess
import sys

import imageio.v3 as iio
import pytest
from typer.testing import CliRunner
from wan import text_to_video

import diffattn.cli as cli

PROMPT = "a red circle moves right over a blue background"
SMALL = ["--steps", "2", "--frames", "9"]


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `diffattn ...` here: exit code, what it printed, what it complained."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["diffattn", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def test_dense_and_radial_give_two_videos_of_the_same_seed(tmp_path, command):
    about = {}
    for method in ("dense", "radial"):
        out = tmp_path / f"{method}.mp4"
        code, _, err = command("generate", PROMPT, "--method", method, "-o", out, *SMALL)
        assert code == 0, err
        assert iio.imread(out).shape == (9, 128, 128, 3)
        about[method] = json.loads(out.with_suffix(".json").read_text())
    assert about["dense"]["attention"]["density"] == 1.0
    assert 0 < about["radial"]["attention"]["density"] < 1
    same = ("prompt", "seed", "num_frames", "num_inference_steps", "guidance_scale", "height", "width")
    assert all(about["dense"][name] == about["radial"][name] for name in same)
    assert about["radial"]["attention"]["config"]["method"] == "radial" and about["radial"]["seconds"]["generate"] > 0
    assert sorted(os.listdir(tmp_path)) == ["dense.json", "dense.mp4", "radial.json", "radial.mp4"]


def test_the_same_command_gives_the_same_bytes_and_json_on_demand(tmp_path, command):
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for out in (first, second):
        code, printed, _ = command("generate", PROMPT, "-o", out, "--seed", "3", "--density", "0.4", "--json", *SMALL)
        assert code == 0 and json.loads(printed)["seed"] == 3
    assert first.read_bytes() == second.read_bytes()


def test_a_negative_prompt_without_classifier_free_guidance(tmp_path, command):
    videos = {}
    for name, options in (("plain", []), ("nag", ["--nag", "red", "--nag-scale", "7"])):
        out = tmp_path / f"{name}.mp4"
        size = ["--steps", "1", "--frames", "5", "--height", "32", "--width", "32", "--guidance-scale", "1"]
        code, _, err = command("generate", PROMPT, "--method", "dense", "-o", out, *size, *options)
        assert code == 0, err
        videos[name] = out.read_bytes()
    assert videos["plain"] != videos["nag"]
    assert json.loads(out.with_suffix(".json").read_text())["negative_guidance"] == {"nag": "red", "nag_scale": 7.0}


def test_an_existing_file_is_kept_unless_forced(tmp_path, command):
    out = tmp_path / "clip.mp4"
    out.write_text("mine")
    code, _, err = command("generate", PROMPT, "-o", out, *SMALL)
    assert code == 2 and "--force overwrites it" in err and out.read_text() == "mine"
    assert command("generate", PROMPT, "-o", out, "--force", *SMALL)[0] == 0
    assert out.stat().st_size > 100


@pytest.mark.parametrize(
    "args, message",
    [
        (["--method", "foo"], "unknown method 'foo', known are:"),
        (["--density", "0"], "density must be above 0 and at most 1, got 0.0"),
        (["--density", "1.5"], "density must be above 0 and at most 1, got 1.5"),
        (["--method", "dense", "--density", "0.5"], "method 'dense' has density 1"),
        (["--frames", "0"], "frames must be at least 1, got 0"),
        (["--frames", "12"], "frames must be 9 or 13"),
        (["--height", "100"], "divisible by"),
        (["--steps", "-3"], "steps must be at least 1, got -3"),
        (["--dense-start", "-1"], "dense_start must be a fraction"),
        (["--impl", "cuda"], "impl must be one of"),
        (["--dtype", "int8"], "dtype must be one of"),
        (["--nag-scale", "3"], "--nag-scale goes with --nag"),
        (["--nag", "red", "--nag-scale", "0.5"], "scale must be a number of at least 1, got 0.5"),
        (["--device", "abacus"], "abacus"),
        (["--model", "{tmp}"], "is no pipeline folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, command, args, message):
    args = [arg.format(tmp=tmp_path) for arg in args]
    code, _, err = command("generate", PROMPT, "-o", tmp_path / "clip.mp4", *args)
    said = [line for line in err.splitlines() if line.startswith("diffattn: ")]
    assert code == 2 and len(said) == 1 and message in said[0], err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "out, message",
    [("missing/clip.mp4", "the folder of the output does not exist"), ("clip.txt", "must end in .mp4"), ("", ".mp4")],
)
def test_an_unwritable_output_is_found_before_any_work(tmp_path, command, monkeypatch, out, message):
    monkeypatch.setattr(sys.modules["diffattn.cli.generate"], "load_pipeline", pytest.fail)
    code, _, err = command("generate", PROMPT, "-o", tmp_path / out)
    assert code == 2 and message in err


def test_a_folder_without_write_permission_is_refused(tmp_path, command, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = command("generate", PROMPT, "-o", tmp_path / "clip.mp4")
    assert code == 2 and "cannot write to the folder" in err


def test_another_pipeline_folder_is_loaded(tmp_path, command):
    folder = tmp_path / "model"
    text_to_video().save_pretrained(folder)
    code, _, err = command("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--model", folder)
    # the tiny random pipeline has no text encoder, which is the pipeline's own complaint and not a crash on loading
    assert code != 0 and "no pipeline folder" not in err
    shutil.rmtree(folder)
    assert os.listdir(tmp_path) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    args = [sys.executable, "-m", "diffattn", "generate", PROMPT, "-o", str(tmp_path / "clip.mp4")]
    # a shell starts background jobs with SIGINT ignored, and children inherit that
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    said = ""
    while "/20 [" not in said:  # the bar of the denoising steps
        said += process.stderr.read(1) or pytest.fail(said)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted, nothing was written" in err
    assert os.listdir(tmp_path) == []


def test_help_and_env():
    runner = CliRunner()
    for command in ([], ["generate"], ["env"]):
        assert "Usage" in runner.invoke(cli.app, [*command, "--help"]).output
    found = json.loads(runner.invoke(cli.app, ["env", "--json"]).output)
    assert "radial" in found["methods"] and "WanTransformer3DModel" in found["models"]
