"""`diffattn inspect`."""

import json
import subprocess
import sys

import pytest
import torch
from diffattn.kernels.plan.sampled_levels import sampled_levels
from typer.testing import CliRunner

from diffattn import AutoConfig, NeighborhoodConfig, TokenGrid, VMoBAConfig
from diffattn.analysis.errors import CommandError
from diffattn.analysis.pictures import level_colours
from diffattn.analysis.synthetic import structured_qkv
from diffattn.cli import app

GRID = ["--frames", "5", "--height", "9", "--width", "10"]


def run(*arguments):
    return CliRunner().invoke(app, ["inspect", *GRID, *arguments])


@pytest.mark.parametrize("method", ["auto", "radial", "pyramid", "vmoba", "rectified", "sol", "neighborhood"])
def test_tells_density_shares_and_bound(method):
    about = json.loads(run("--method", method, "--density", "0.3", "--json").stdout)
    assert about["tokens"] == 450 and 0 < about["density"] < 0.5
    assert sum(about["level_shares"].values()) == pytest.approx(about["density"], abs=4e-4)
    assert about["speed_up_bound"] == pytest.approx(1 / about["density"], abs=0.02)


def test_prints_for_people():
    result = run("--method", "neighborhood", "--options", '{"window": [3, 3, 5]}')
    assert result.exit_code == 0 and "speed up bound" in result.stdout and "partial tiles" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "nope"], "unknown method 'nope'"),
        (["--density", "2"], "density must be above 0"),
        (["--options", "{"], "--options is not JSON"),
        (["--options", '{"colour": 1}'], "auto has no option colour"),
        (["-o", "map.jpg"], "must end in .png"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, CommandError) and message in str(error)


def test_draws_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "map.png"
    assert run("-o", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "exists" in str(run("-o", str(path)).exception)


def test_without_matplotlib_the_message_names_the_extra(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from diffattn.cli import main; main()"
    command = [sys.executable, "-c", code, "inspect", *GRID, "-o", str(tmp_path / "map.png")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and 'pip install "diffattn[viz]"' in result.stderr


@pytest.mark.parametrize(
    "config", [AutoConfig(density=0.3), VMoBAConfig(density=0.3), NeighborhoodConfig(window=(2, 3, 5))], ids=str
)
def test_sampled_levels_are_those_of_the_plan(config):
    grid = TokenGrid(5, 9, 10, text=7, text_first=True)
    query, key, _ = structured_qkv(grid, heads=2, dim=16)
    plan = config.plan(grid, query, key)
    queries, keys = torch.arange(0, grid.tokens, 7), torch.arange(3, grid.tokens, 5)
    full = plan.to_dense_levels()
    levels = sampled_levels(plan, queries, keys, head=1)
    assert torch.equal(levels, full[0, min(1, full.shape[1] - 1)][queries][:, keys].long())


def test_every_level_has_a_colour_of_its_own():
    assert len(set(level_colours([1, 4, 16, 128]).values())) == 5
