"""`diffattn bench` and the options of `diffattn demo`."""

import json
import socket
import sys

import pytest
from typer.testing import CliRunner

from diffattn.analysis.errors import CommandError
from diffattn.cli import app

SMALL = ["--frames", "5", "--height", "64", "--width", "64", "--steps", "2", "--repeats", "2"]
ALWAYS = ["--dense-start", "0", "--dense-layers", "0", "--density", "0.3"]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_table_has_dense_and_every_method_with_ratios_and_distances(tmp_path):
    out = tmp_path / "table.md"
    result = run("bench", "--method", "auto", "--method", "pyramid", *SMALL, *ALWAYS, "--json", "-o", out)
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    dense, auto, pyramid = about["results"]
    assert [row["method"] for row in about["results"]] == ["dense", "auto", "pyramid"] and about["repeats"] == 2
    assert dense["times_dense"] == dense["density"] == 1 and dense["psnr"] is None
    assert dense["ssim"] == pytest.approx(1, abs=1e-5)  # float32, summed over a window of 121 pixels
    for row in (auto, pyramid):
        assert row["density"] == row["attention_computed"] < 1 and row["times_dense"] > 0 and 10 < row["psnr"] < 100
        assert row["config"]["density"] == 0.3 and 0 < row["ssim"] < 1 and row["ms_ssim_scales"] == 3
    table = [line for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == ["| method", "| ---", "| dense", "| auto", "| pyramid"]
    assert {line.count("|") for line in table} == {9} and "bench" in result.stderr
    assert "exists; --force" in str(run("bench", "-o", out).exception)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (["bench", "--method", "dense"], "dense is always run"),
        (["bench", "--method", "nope"], "unknown method 'nope'"),
        (["bench", "-o", "table.txt"], "must end in .md or .json"),
        (["bench", "-o", "no/table.md"], "the folder of the output does not exist"),
        (["bench", "--frames", "6"], "frames must be 5 or 9"),
        (["demo", "--max-side", "0"], "Limits side must be an integer of at least 1, got 0"),
        (["demo", "--models", "nowhere"], "the folder of models does not exist: nowhere"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    error = run(*arguments).exception
    assert isinstance(error, CommandError) and message in str(error) and "\n" not in str(error)


def test_without_gradio_the_message_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("diffattn.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    error = run("demo").exception
    assert isinstance(error, CommandError) and 'pip install "diffattn[demo]"' in str(error)


def test_a_port_in_use_is_one_line():
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = run("demo", "--port", server.getsockname()[1]).exception
    assert isinstance(error, CommandError) and "port" in str(error)
