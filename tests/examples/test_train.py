"""The training loop at a tiny scale: files, resumption, log."""

import csv

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from examples.tiny_wan import curves, loop, train
from examples.tiny_wan.sampling import combination_odds, sample_scene

SIZES = "--grid 3x4x4:1:2 --grid 3x4x4/1:1:3 --minutes 5 --steps 5 --workers 0 --device cpu".split()
SIZES += ["--warmup", "1", "--text-steps", "2", "--ground", "0.1"]


@pytest.fixture
def run(tmp_path):
    def run(name, *options):
        log = ["--log", str(tmp_path / "log.csv"), "--validate", "1e-9"]
        train.main(["--out", str(tmp_path / name), *SIZES, *log, *options])
        return tmp_path / name / "state.pt"

    return run


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in tensors(part)]


def test_a_run_resumes_where_it_ended(run, tmp_path):
    first = run("1")
    assert first.stat().st_size < 16 * 2**20
    before = torch.load(first)
    args = train.parse_args(["--out", str(tmp_path / "x"), *SIZES, "--resume", str(first)])
    trainer = train.Trainer(train.start_pipeline(args), args)
    trainer.load(first)
    for old, new in zip(before["live"], trainer.live, strict=True):
        torch.testing.assert_close(dict(new.state_dict()), dict(old), rtol=0, atol=0)
    kept = [tensors(states) for states in (before["optimizers"], trainer.optimizers.state_dict())]
    assert len(kept[0]) > 100 and all(torch.equal(old, new) for old, new in zip(*kept, strict=True))
    assert any(tensor.any() for tensor in kept[0] if tensor.ndim)
    averages = WanPipeline.from_pretrained(tmp_path / "1" / "pipeline").transformer.state_dict()
    torch.testing.assert_close(dict(trainer.average.modules[0].state_dict()), dict(averages), rtol=0, atol=0)
    assert any(not torch.equal(old, averages[name]) for name, old in before["live"][0].items())
    after = torch.load(run("2", "--resume", str(first)))
    assert (before["average"], after["average"], after["meter"]["steps"]) == (5, 10, 10)
    assert sum(after["meter"]["clips"].values()) > sum(before["meter"]["clips"].values())
    assert not list(tmp_path.rglob("*.part"))


def test_a_seed_decides_the_weights(run):
    one, two = (torch.load(run(name))["live"] for name in ("1", "2"))
    assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))


def test_the_log_counts_and_validates_and_can_be_drawn(run, tmp_path):
    run("1")
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"held-out"}  # of five steps no mean is written yet
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]
    assert len({row["loss"] for row in rows}) == 5
    curves.main([str(tmp_path / "log.csv"), "--out", str(tmp_path / "log.png")])
    assert (tmp_path / "log.png").stat().st_size > 1000


def test_a_meter_smooths_and_writes_now_and_then(tmp_path):
    meter = loop.Meter(tmp_path / "log.csv", every=4)
    for loss in (1.0, 2.0, 1.0, 1.0, 7.0):
        meter.add("a" if loss < 2 else "b", torch.tensor(loss), 3, 0.1)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == loop.Meter.COLUMNS
    assert [line.split(",")[1:] for line in lines[1:]] == [
        ["4", "a", "9", "1.00000", "0.1"],
        ["4", "b", "3", "2.00000", "0.1"],
    ]
    assert meter.clips == {"a": 9, "b": 6}


def test_a_file_is_replaced_only_when_written(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("old")
    with pytest.raises(RuntimeError), loop.replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with loop.replacing(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_scenes_can_be_drawn_more_often_than_others():
    rng, odds = np.random.default_rng(0), combination_odds({"spin": 4.0, "square": 2.0})
    items = [sample_scene(rng, objects=1, odds=odds).items[0] for _ in range(1500)]
    spins = sum(item.motion == "spin" for item in items)
    others = sum(item.motion == "grow" and item.shape != "circle" for item in items)
    assert 3 * others < spins < 5.5 * others
    squares, triangles = (sum(item.shape == shape for item in items) for shape in ("square", "triangle"))
    assert 1.7 * triangles < squares < 2.3 * triangles
    assert train.parse_args([*SIZES, "--out", "x", "--often", "spin=3"]).often == [("spin", 3.0)]
    with pytest.raises(ValueError, match="spins"):
        combination_odds({"spins": 2.0})


def test_words_are_bound_before_a_run_or_not_at_all(run, tmp_path, capsys):
    state = run("1")
    bound = run("2", "--resume", str(tmp_path / "1" / "pipeline"), "--bind-steps", "2", "--text-lr", "0")
    kept = run("3", "--resume", str(tmp_path / "1" / "pipeline"), "--text-lr", "0")
    encoders = [torch.load(path)["live"][1] for path in (bound, kept)]
    before = WanPipeline.from_pretrained(tmp_path / "1" / "pipeline").text_encoder.state_dict()
    changed = [any(not torch.equal(old, encoder[name]) for name, old in before.items()) for encoder in encoders]
    assert changed == [True, False]
    with pytest.raises(SystemExit):
        run("4", "--resume", str(state), "--bind-steps", "2")
    assert "--resume its folder" in capsys.readouterr().err


def test_the_rate_rises_stays_and_falls():
    rates = [loop.learning_rate_factor(step / 100, step, 10, 0.5) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.51) and rates[100] == pytest.approx(0.02)
