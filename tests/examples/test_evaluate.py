"""The evaluator's batches: they change nothing but the time it takes."""

import json

import pytest
import torch

import diffattn
from examples.tiny_wan import evaluate

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
    two = run("two", "--batch", "2", "--sheet", str(tmp_path / "sheet.png"))
    assert one["clips"] == two["clips"] and one["accuracy"] == two["accuracy"]
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert (two["prompts"], two["side"], two["frames"]) == (3, 32, 5)
    assert run("last", "--shard", "2/3")["clips"] == one["clips"][2:]


def test_clips_of_a_batch_are_those_made_alone():
    args = evaluate.parse_args([str(diffattn.tiny_wan()), *SIZES])
    cases, pipe = list(enumerate(evaluate.held_out_scenes(3, 0))), evaluate.load(args)
    together = torch.stack(evaluate.generate(pipe, cases, args))
    alone = torch.stack([evaluate.generate(pipe, [case], args)[0] for case in cases])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 0.1
