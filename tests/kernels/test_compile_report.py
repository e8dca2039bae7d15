"""The launches of the Triton kernel, compiled without a GPU: nothing spills, and the matrix units are used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
MMA = {"sm_80": "HMMA", "sm_90": "HGMMA (wgmma)", "sm_100": "UTCHMMA (tcgen05)"}


def test_launches_do_not_spill():
    env = {name: setting for name, setting in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile_report", "--quick", "--json", "--arch", *MMA]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {(row["arch"], row["kernel"]): row for row in json.loads(run.stdout)}
    kernels = ("forward", "specialized", "dq", "dkv", "pool", "merge")
    assert rows.keys() == {(arch, "forward") for arch in MMA} | {("sm_90", kernel) for kernel in kernels}
    for (arch, kernel), row in rows.items():
        assert row["spilled"] == 0 and row["problems"] == ""
        assert row["mma"].endswith(f" {MMA[arch]}") or kernel in ("pool", "merge")
        assert (row["tma"] > 0) == (kernel == "specialized")
