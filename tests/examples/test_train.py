"""The training loops at a tiny scale: files, going on, log, the decoder."""

import csv
import json
from pathlib import Path

import doc_shell
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from doc_blocks import blocks

from docs.tools import curves
from examples.tiny_wan import decoder, loop, train
from examples.tiny_wan.vae import wired_vae

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "tiny_wan" / "README.md"
SIZES = "--grid 3x4x4:1:2 --grid 3x4x4/1:1:3 --minutes 5 --steps 5 --device cpu --text-steps 2".split()


def test_the_commands_of_the_recipe_are_understood():
    found = [words for block in blocks(RECIPE, ROOT) for words in doc_shell.commands(block.text)]
    assert sum("examples.tiny_wan.train" in words for words in found) > 5
    for words in found:
        doc_shell.check(words)


@pytest.fixture
def run(tmp_path):
    def run(name, *options):
        train.main(["--out", str(tmp_path / name), *SIZES, *options])
        return WanPipeline.from_pretrained(tmp_path / name)

    return run


def weights(pipe):
    return {**pipe.transformer.state_dict(), **pipe.text_encoder.state_dict()}


def test_a_run_goes_on_from_the_folder_of_another(run, tmp_path):
    first = weights(run("1"))
    args = train.parse_args(["--out", str(tmp_path / "x"), *SIZES, "--resume", str(tmp_path / "1")])
    trainer = train.Trainer(train.start_pipeline(args), args)
    live = weights(trainer.pipe)
    assert first.keys() == live.keys() and all(torch.equal(first[name], live[name]) for name in first)
    second = weights(run("2", "--resume", str(tmp_path / "1")))
    assert sum(not torch.equal(first[name], second[name]) for name in first) > 0.9 * len(first)
    assert not list(tmp_path.rglob("*.part"))


def test_a_seed_decides_the_weights(run):
    one, two = (weights(run(name)) for name in ("1", "2"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_all_weights_are_trained_through_sparse_attention(run, tmp_path):
    start = run("1")
    options = ["--method", "radial", "--options", '{"density": 0.4}', "--dense-layers", "1"]
    moved = run("2", "--resume", str(tmp_path / "1"), *options, "--grid", "3x8x8:1:1")
    pairs = zip(start.transformer.parameters(), moved.transformer.parameters(), strict=True)
    assert sum(not torch.equal(a, b) for a, b in pairs) > 100
    config = json.loads((tmp_path / "2" / "diffattn_config.json").read_text())
    assert config["method"] == "radial"
    assert config["schedule"] == {"dense_start": 0, "dense_end": 0, "dense_layers": 1, "refresh": 1}


def test_the_average_is_what_is_saved(run, tmp_path):
    args = train.parse_args(["--out", str(tmp_path / "x"), *SIZES])
    trainer = train.Trainer(train.start_pipeline(args), args)
    losses = trainer.losses()
    for _ in range(2):
        next(losses)[2].backward()
        trainer.optimizers.step(1.0)
        trainer.average.update()
    trainer.save()
    saved = WanPipeline.from_pretrained(tmp_path / "x").transformer.state_dict()
    average, live = (module.state_dict() for module in (trainer.average.modules[0], trainer.pipe.transformer))
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert any(not torch.equal(saved[name], live[name]) for name in saved)


def test_focus_weighs_the_tokens_around_objects():
    near, target = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.zeros(1, 1, 1, 4, 4)
    for token, share in ((3, 4 / 7), (0, 1 / 7)):
        velocity = target.clone()
        velocity[..., 2 * (token // 2) : 2 * (token // 2) + 2, 2 * (token % 2) : 2 * (token % 2) + 2] = 1
        assert train.focused_error(velocity, target, near, 3.0).item() == pytest.approx(share)
        assert train.focused_error(velocity, target, near, 0.0).item() == pytest.approx(1 / 4)


def test_a_meter_smooths_writes_now_and_then_and_counts_on(tmp_path):
    log = tmp_path / "log.csv"
    meter = loop.Meter(log, every=4)
    for loss in (1.0, 2.0, 1.0, 1.0, 7.0):
        meter.add("a" if loss < 2 else "b", torch.tensor(loss), 3, 0.1)
    lines = log.read_text().splitlines()
    assert lines[0].split(",") == list(loop.COLUMNS)
    assert [line.split(",")[1:] for line in lines[1:]] == [
        ["4", "a", "9", "1.00000", "0.1"],
        ["4", "b", "3", "2.00000", "0.1"],
    ]
    assert meter.clips == {"a": 9, "b": 6}
    later = loop.Meter(log, every=4)
    for _ in range(4):
        later.add("a", torch.tensor(1.0), 3, 0.1)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert (rows[-1]["step"], rows[-1]["clips"]) == ("8", "21")
    assert float(rows[-1]["seconds"]) >= float(rows[0]["seconds"])
    curves.main([str(log), "--out", str(tmp_path / "log.png")])
    assert (tmp_path / "log.png").stat().st_size > 1000


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


def test_words_are_bound_before_a_run_or_not_at_all(run, tmp_path):
    before = run("1").text_encoder.state_dict()
    changed = []
    for options in (["--bind-steps", "2"], []):
        args = train.parse_args(["--out", "x", *SIZES, "--resume", str(tmp_path / "1"), *options])
        encoder = train.start_pipeline(args).text_encoder.state_dict()
        changed.append(any(not torch.equal(old, encoder[name]) for name, old in before.items()))
    assert changed == [True, False]


def test_the_rate_rises_stays_and_falls():
    rates = [loop.learning_rate_factor(step / 100, step, 10, 0.5) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.51) and rates[100] == pytest.approx(0.02)


def test_the_decoder_trains_and_the_encoder_does_not(tmp_path):
    decoder.main(["--out", str(tmp_path), "--steps", "1", "--batch", "1", "--clips", "1", "--device", "cpu"])
    trained, wired = AutoencoderKLWan.from_pretrained(tmp_path), wired_vae()
    video = torch.rand(1, 5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        means = [vae.encode(video.transpose(1, 2)).latent_dist.mode() for vae in (trained, wired)]
    assert torch.equal(*means)
    assert trained.decoder.up_blocks[0].resnets[0].conv2.weight.abs().max() > 0
