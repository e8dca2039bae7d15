import json
import sys

import pytest

import diffattn.cli as cli
from diffattn.guidance import HeadSet

PROMPT = "a red circle moves right over a blue background"
SMALL = ["--height", "32", "--width", "32", "--frames", "5", "--steps", "1"]
SEARCH = ["--objective", "sharpness", "--rounds", "1", "--top-k", "2", "--keep", "3", *SMALL]


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `diffattn ...` here: exit code, what it printed, what it complained."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["diffattn", *map(str, args)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPT + "\n\n")
    return path


def test_found_heads_guide_the_next_video(tmp_path, command, prompts):
    heads, clip, run = tmp_path / "heads.json", tmp_path / "clip.mp4", tmp_path / "run"
    code, said, err = command("hunt", prompts, "-o", heads, "--resume", run, *SEARCH)
    assert code == 0, err
    found = HeadSet.load(heads)
    assert said.splitlines()[:2] == [f"{head.layer}:{head.head}" for head in found] and len(found) == 2
    assert "sharpness" in said.splitlines()[2] and (run / "heads.png").is_file()
    assert found.search["options"]["height"] == 32 and found.guidance.scale == 3.0
    code, _, err = command("generate", PROMPT, "-o", clip, "--heads", heads, "--method", "dense", *SMALL)
    assert code == 0, err
    guided = json.loads(clip.with_suffix(".json").read_text())
    assert guided["guidance"]["heads"] == [str(heads)]
    plain = tmp_path / "plain.mp4"
    assert command("generate", PROMPT, "-o", plain, "--method", "dense", *SMALL)[0] == 0
    assert plain.read_bytes() != clip.read_bytes()


def test_the_cost_before_anything_is_done(tmp_path, command, prompts):
    code, said, _ = command("hunt", prompts, "-o", tmp_path / "heads.json", "--estimate", "--json", *SEARCH)
    assert code == 0 and json.loads(said) == {"clips": 6, "passes": 20}
    assert not (tmp_path / "heads.json").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--objective", "beauty"], "unknown objective 'beauty', known are: sharpness, motion"),
        (["--objective", "motion=much"], "the weight of objective 'motion' must be a number, got 'much'"),
        (["--rounds", "0"], "rounds must be an integer of at least 1, got 0"),
        (["--screen", "magic"], "screen must be one of None, 'gradient', got 'magic'"),
        (["--keep", "0"], "keep must be a share above 0"),
        (["-o", "heads.txt"], "the output must end in .json"),
        (["-o", "missing/heads.json"], "the folder of the output does not exist"),
        (["--steps", "0"], "steps must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(tmp_path, command, prompts, monkeypatch, args, message):
    monkeypatch.setattr(sys.modules["diffattn.cli.hunt"], "load_pipeline", pytest.fail)
    code, _, err = command("hunt", prompts, "-o", tmp_path / "heads.json", *SEARCH, *args)
    assert code == 2 and message in err and err.count("diffattn: ") == 1


def test_prompts_that_are_not_there(tmp_path, command):
    code, _, err = command("hunt", tmp_path / "no.txt", "-o", tmp_path / "heads.json", *SEARCH)
    assert code == 2 and "no.txt" in err
    (tmp_path / "empty.txt").write_text("\n")
    code, _, err = command("hunt", tmp_path / "empty.txt", "-o", tmp_path / "heads.json", *SEARCH)
    assert code == 2 and "holds no prompts; write one a line" in err


@pytest.mark.parametrize(
    "args, message",
    [
        (["--heads", "1:2", "--guidance-preset", "x"], "give --heads or --guidance-preset, not both"),
        (["--head-strength", "0.5"], "go with --heads or --guidance-preset"),
        (["--heads", "a.json", "--heads", "1:2"], "give one JSON file of heads, or heads as layer:head"),
    ],
)
def test_heads_that_contradict_each_other(tmp_path, command, monkeypatch, args, message):
    monkeypatch.setattr(sys.modules["diffattn.cli.generate"], "load_pipeline", pytest.fail)
    code, _, err = command("generate", PROMPT, "-o", tmp_path / "clip.mp4", *args)
    assert code == 2 and message in err


def test_heads_that_the_model_has_not(tmp_path, command):
    for args, message in (
        (["--heads", "99:3"], "no layer 99: WanTransformer3DModel has layers 0..5"),
        (["--heads", "1:2", "--head-strength", "2"], "strength must be a number from 0"),
        (["--guidance-preset", "no-such"], "no-such"),
    ):
        code, _, err = command("generate", PROMPT, "-o", tmp_path / "clip.mp4", *args, *SMALL)
        assert code == 2 and message in err, err
