"""`diffattn calibrate`, and its folder where commands take a method."""

import json

import pytest
from typer.testing import CliRunner

from diffattn import AttentionConfig, Schedule
from diffattn.analysis.errors import CommandError
from diffattn.cli import app, settings

SMALL = ["--frames", "5", "--steps", "2", "--height", "64", "--width", "64", "--parts", "1"]
FAST = ["--samples", "1", "--guidance-scale", "1"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\n")
    paths = [str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "made")]
    return lambda *arguments: CliRunner().invoke(app, ["calibrate", *paths, *SMALL, *FAST, *arguments])


def test_it_writes_a_folder_that_stands_for_a_method(run, tmp_path):
    result = run("--density", "0.3", "--method", "pyramid", "--dense-layers", "3")
    assert result.exit_code == 0, result.exception
    folder = tmp_path / "made"
    made = AttentionConfig.from_pretrained(folder)
    assert made.base.method == "pyramid" and made.expected["density"] == pytest.approx(0.3, abs=1e-3)
    assert f"{folder}: density 0.300, error {made.expected['error']:.3g}" in result.stdout
    assert result.stdout.count("dense\n") == 3
    schedule = Schedule(dense_layers=3)
    assert settings.attention(str(folder), None, 0.2, 0.0, 0, "torch") == (made, schedule, "torch")
    assert settings.attention(str(folder), None, 0.2, 0.0, 3, "auto") == (made, schedule, "auto")
    for density, layers in ((0.3, 0), (None, 2)):
        with pytest.raises(CommandError, match=rf"(that|those) of {folder}"):
            settings.attention(str(folder), density, 0.2, 0.0, layers, "auto")
    again = run("--density", "0.3")
    assert isinstance(again.exception, CommandError) and "exists; --force overwrites it" in str(again.exception)


def test_the_estimate_runs_nothing(run, tmp_path):
    cost = json.loads(run("--error", "0.1", "--estimate", "--json").stdout)
    assert (cost["prompts"], cost["steps"]) == (1, 2 * cost["runs"]) and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--density", "0.3", "--error", "0.1"), "give one of density and error"),
        (("--density", "0.3", "--method", "radial"), "'radial' cannot be calibrated"),
        (("--density", "0.3", "--probe", "token"), "probe must be one of layer, head"),
        (("--density", "0.3", "--method", "dense"), "must name a sparse method"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    error = run(*arguments).exception
    assert isinstance(error, CommandError) and message in str(error)
