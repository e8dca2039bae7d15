"""The first minutes on a GPU, as a dry run on a CPU: all rows are there, right, and written as they come."""

import json

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import correctness


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dry_run(tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    assert program.main(["--dry-run", "--output", str(output)]) == 0
    rows = rows_of(output)
    found = {section: [row for row in rows if row["section"] == section] for section in program.SECTIONS}
    assert all(row["right"] for row in found["correctness"])
    assert all("ms" in row for row in found["speed"])
    assert all(row["plan ms"] > 0 and row["launches"] > 0 for row in found["method"])
    assert "launch" in capsys.readouterr().out


def test_a_wrong_row_is_reported_and_stops_nothing(tmp_path, monkeypatch):
    def broken(sizes):
        yield "wrong", lambda: {"right": False}
        yield "fails", lambda: 1 / 0
        yield "fine", lambda: {"right": True}

    monkeypatch.setattr(program, "SECTIONS", {"correctness": broken})
    output = tmp_path / "rows.jsonl"
    assert program.main(["--dry-run", "--output", str(output)]) == 1
    wrong, fails, fine = rows_of(output)
    assert fails["error"].startswith("ZeroDivisionError") and fine["right"] and not wrong["right"]
    assert program.main(["--dry-run", "--budget", "-1", "--output", str(output)]) == 0
    assert {row["error"] for row in rows_of(output)} == {"no time left"}


def test_nan_is_wrong():
    import torch

    nan, zero = (torch.full((2,), torch.nan),), (torch.zeros(2),)
    assert not correctness._compare(nan, zero, zero)["right"]
