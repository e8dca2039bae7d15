"""`diffattn density`: layers and steps, dense where the schedule says so."""

import json
import math

import pytest
from typer.testing import CliRunner

import diffattn
from diffattn import Schedule
from diffattn.analysis.density import densities
from diffattn.analysis.errors import CommandError
from diffattn.analysis.load import load_pipeline
from diffattn.analysis.summary import summary
from diffattn.analysis.trial import run_trial
from diffattn.cli import app

SMALL = ["--frames", "5", "--steps", "4"]
INPUTS = {"prompt": "a red circle", "height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 4}


def run(*arguments):
    return CliRunner().invoke(app, ["density", *SMALL, *arguments], catch_exceptions=True)


def test_the_schedule_is_seen_in_layers_and_steps(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "density.png"
    result = run(
        "--dense-start",
        "0.25",
        "--dense-end",
        "1",
        "--dense-layers",
        "1",
        "--density",
        "0.3",
        "--json",
        "-o",
        str(path),
    )
    rows = json.loads(result.stdout)["layers"]
    assert len(rows) == 6 and rows[0] == [1.0] * 4
    for row in rows[1:]:
        assert row[0] == row[3] == 1 and all(0 < share < 0.5 for share in row[1:3])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "exists" in str(run("-o", str(path)).exception)


def test_the_mean_is_what_a_run_says_it_computed():
    pipe = load_pipeline("tiny", "cpu", "float32")
    config, schedule = diffattn.RadialConfig(density=0.4), Schedule(dense_start=1, dense_layers=2)
    found = densities(pipe, INPUTS, config, schedule=schedule, seed=3)
    trial = run_trial(pipe, INPUTS, config, schedule=schedule, seed=3)
    assert found.shape == (6, 4) and math.isclose(found.mean(), trial.attention_computed, rel_tol=1e-9)
    assert summary(pipe).session is None


def test_prints_for_people():
    lines = run("--method", "radial").stdout.splitlines()
    assert lines[0].startswith("layer") and lines[1].split() == ["0", "1.000", "1.000", "1.000"] and len(lines) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "dense"], "--method must name a sparse method"),
        (["--method", "nope"], "unknown method 'nope'"),
        (["--frames", "6"], "frames must be 5 or 9"),
        (["-o", "map.jpg"], "must end in .png"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, CommandError) and message in str(error)
