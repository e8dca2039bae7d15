"""The gate before the clock: wrong results have no time; right ones have a row in the table."""

import json

import pytest
import torch
from diffattn.kernels.backends.torch.tiles import forward

from benchmarks.attention import __main__ as attention
from benchmarks.attention.candidates import ours
from benchmarks.attention.case import Case
from benchmarks.attention.measure import Row, check, measure
from benchmarks.attention.report import r_squared

TINY = ["--device", "cpu", "--sizes", "256", "--densities", "0.5", "--dtypes", "fp32", "--heads", "2", "--quick"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [False, True])
def test_ours_passes_the_gate(dtype, backward):
    case = Case("cpu", dtype, 256, 16, (64, 32), heads=2)
    assert check(case, ours(case, case.blocks(0.4)), backward) == ""


def off(*args):
    out, lse = forward(*args)
    return out * 1.01, lse


def test_a_wrong_result_is_named_and_not_timed(monkeypatch, capsys):
    monkeypatch.setattr("diffattn.kernels.backends.torch.tiles.forward", off)
    case = Case("cpu", torch.float32, 256, 16, (64, 32), heads=2)
    (row,) = measure([case], (0.4,), "auto", 0.1)
    assert row.wrong.startswith("out is wrong by") and row.time is None
    assert attention.main([*TINY, "--sections", "backward", "--tiles", "64x32"]) == 1
    printed = capsys.readouterr()
    assert "is wrong by" in printed.err and printed.out == ""


def test_rows_as_json_and_as_a_table(capsys, tmp_path):
    assert attention.main([*TINY, "--sections", "backward", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["tiles"]) for row in rows] == [
        ("SDPA", "-"),
        ("diffattn", "128x128"),
        ("diffattn", "256x128"),
    ]
    assert all(row["time"] > 0 and row["tokens"] == 256 and row["batch"] == 1 for row in rows)
    path = tmp_path / "table.md"
    assert attention.main([*TINY, "--sections", "backward", "--output", str(path)]) == 0
    assert "| diffattn | float32 | 1 | 2 | 256 | 64 | 128x128 |" in path.read_text()


def test_of_two_runs_the_last_counts(tmp_path, capsys):
    def row(section, tokens, name, time):
        return Row(section, name, "cpu", "float32", 1, 8, tokens, 64, "-", 1.0, time, 0.0)

    first = [row("forward", 256, "SDPA", 1), row("forward", 256, "diffattn", 2), row("forward", 512, "SDPA", 3)]
    again = [row("forward", 256, "diffattn", 5), row("backward", 256, "SDPA", 7)]
    files = [tmp_path / name for name in ("first.json", "again.json")]
    for file, rows in zip(files, (first, again)):
        file.write_text(json.dumps([row.to_dict() for row in rows]))
    assert attention.main(["--device", "cpu", "--json", "--join", *map(str, files)]) == 0
    assert json.loads(capsys.readouterr().out) == [row.to_dict() for row in (again[0], first[2], again[1])]


@pytest.mark.parametrize("given", [[], ["--backward"], ["--output", "table.md"], ["--dtypes", "fp32", "bf16"]])
def test_the_whole_table_is_written_unasked(given):
    assert not attention._partial(attention._options(["--device", "cpu", *given]))


@pytest.mark.parametrize("given", ["--heads 2", "--dtypes bf16", "--sections auto", "--tiles 64x64", "--quick"])
def test_part_of_the_table_is_not(given):
    assert attention._partial(attention._options(["--device", "cpu", *given.split()]))


def test_r_squared():
    assert r_squared([1, 2, 3], [5, 7, 9]) == pytest.approx(1)
    assert r_squared([1, 2, 3, 4], [1, -1, -1, 1]) == pytest.approx(0)
