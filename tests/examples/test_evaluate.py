"""The evaluator's batches and processes: they change nothing but the time it takes."""

import json

import pytest
import torch

import diffattn
from examples.tiny_wan import denoise, evaluate
from examples.tiny_wan.judging import judge_here, judges
from examples.tiny_wan.scenes import frame_times, render

SIZES = "--side 32 --frames 5 --steps 2 --prompts 3".split()


@pytest.fixture
def run(tmp_path):
    def run(name, *options):
        path = tmp_path / f"{name}.json"
        evaluate.main([str(diffattn.tiny_wan()), *SIZES, *options, "--json", str(path)])
        return json.loads(path.read_text())

    return run


def test_the_batch_size_changes_nothing(run, tmp_path):
    one = run("one")
    two = run("two", "--batch", "2", "--workers", "1", "--sheet", str(tmp_path / "sheet.png"), "--calibrate", "3")
    assert [row.pop("seconds") > 0 for row in one["clips"] + two["clips"]] == [True] * 6
    assert one["clips"] == two["clips"] and one["accuracy"] == two["accuracy"]
    assert two["truth"]["background"] == 1 and (tmp_path / "sheet.png").stat().st_size > 1000
    assert (two["prompts"], two["side"], two["frames"]) == (3, 32, 5)


def test_clips_of_a_batch_are_those_made_alone():
    args = evaluate.parse_args([str(diffattn.tiny_wan()), *SIZES])
    cases, pipe = list(enumerate(evaluate.held_out_scenes(3, 0))), evaluate.load(args)
    together = torch.stack(evaluate.generate(pipe, cases, args))
    alone = torch.stack([evaluate.generate(pipe, [case], args)[0] for case in cases])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_processes_judge_as_this_one_does():
    scenes = evaluate.held_out_scenes(4, 0, 2)
    clips = [render(scene, frame_times(17), 48, 48) for scene in scenes]
    with judges(2) as judging:
        assert list(judging(clips, scenes)) == list(judge_here(clips, scenes))


def test_what_is_known_under_noise(tmp_path, capsys):
    options = "--side 64 --frames 9 --prompts 2 --motion right --sigma 0.9 --sigma 0.02".split()
    denoise.main([str(diffattn.tiny_wan()), *options, "--json", str(path := tmp_path / "levels.json")])
    high, low = json.loads(path.read_text())
    assert (high["sigma"], low["sigma"]) == (0.9, 0.02) and high["error"] > 10 * low["error"]
    assert low["all"] == 1, low  # next to nothing was hidden
    with pytest.raises(SystemExit):
        denoise.main([str(diffattn.tiny_wan()), "--sigma", "1.5"])
    assert "at most 1, got 1.5" in capsys.readouterr().err
    scenes = denoise.some_scenes(5, 0, 1, "spin")
    assert len(scenes) == 5 and {scene.items[0].motion for scene in scenes} == {"spin"}
