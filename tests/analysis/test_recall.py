"""What a method keeps of captured attention."""

import importlib
import json

import pytest
import torch
from typer.testing import CliRunner

from diffattn import AutoConfig, NeighborhoodConfig, PyramidConfig, TokenGrid, attend
from diffattn.analysis.capture import AttentionCall
from diffattn.analysis.errors import CommandError
from diffattn.analysis.recall import attention_recall
from diffattn.analysis.synthetic import structured_qkv
from diffattn.cli import app

GRID = TokenGrid(3, 8, 8, text=5)


@pytest.fixture(scope="module")
def call():
    query, key, value = structured_qkv(GRID, heads=2, dim=16, batch=2)
    mask = torch.arange(GRID.tokens).expand(2, -1) < torch.tensor([[197], [195]])
    return AttentionCall("attn", 0, 3, GRID, query, key[:, :, :1], value[:, :, :1], mask)


@pytest.mark.parametrize(
    "config", [PyramidConfig(density=0.2), NeighborhoodConfig(density=0.3)], ids=lambda c: c.method
)
def test_shares_and_error_are_those_of_the_dense_matrices(call, config):
    found = attention_recall(call, config)
    plan = config.plan(GRID, call.query, call.key).with_key_mask(call.key_mask)
    query, key, value = (x.double().transpose(1, 2) for x in (call.query, call.key, call.value))
    scores = (0.25 * query @ key.mT).masked_fill(~call.key_mask[:, None, None], -torch.inf)
    probs, levels = scores.softmax(-1), plan.to_dense_levels()
    out = attend(call.query, call.key, call.value, plan).transpose(1, 2)
    for head in range(2):
        mass, level = probs[:, head], levels[:, min(head, levels.shape[1] - 1)]
        exact = mass @ value[:, 0]
        assert float(found.exact[head]) == pytest.approx(float((mass * (level == 1)).sum(-1).mean()), abs=1e-5)
        assert float(found.seen[head]) == pytest.approx(float((mass * (level > 0)).sum(-1).mean()), abs=1e-5)
        assert float(found.error[head]) == pytest.approx(float((out[:, head] - exact).norm() / exact.norm()), abs=1e-5)
    assert (found.exact <= found.seen + 1e-6).all() and (found.seen < 1).all()


def test_all_is_kept_at_density_one(call):
    found = attention_recall(call, AutoConfig(density=1.0))
    torch.testing.assert_close(found.exact, torch.ones(2))
    assert (found.error < 1e-5).all()


def test_the_command_tells_every_layer_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "recall.png"
    arguments = ["recall", "--method", "pyramid", "--steps", "1", "--step", "0", "--json", "-o", str(path)]
    rows = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert [row["layer"] for row in rows] == list(range(6))
    assert all(0 < row["exact"] <= row["seen"] < 1 and 0 < row["error"] < 1 for row in rows)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_step_that_is_not_run_is_refused():
    error = CliRunner().invoke(app, ["recall", "--steps", "4", "--step", "4"]).exception
    assert isinstance(error, CommandError) and "step must be from 0 to 3" in str(error)


def test_frames_device_and_dtype_reach_the_run(monkeypatch):
    placed, command = [], importlib.import_module("diffattn.cli.recall")
    load = command.load_pipeline
    monkeypatch.setattr(command, "load_pipeline", lambda *where: placed.append(where) or load(*where))
    arguments = ["recall", "--steps", "1", "--step", "0", "--frames", "9", "--device", "cpu", "--dtype", "bfloat16"]
    found = CliRunner().invoke(app, [*arguments, "--density", "1"])
    assert placed == [("tiny", "cpu", "bfloat16")]
    assert found.stdout.splitlines()[1].split()[1] == "1.000"
    wrong = CliRunner().invoke(app, [*arguments, "--frames", "8"]).exception
    assert isinstance(wrong, CommandError) and "frames must be 5 or 9" in str(wrong)
