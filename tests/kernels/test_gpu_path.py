"""What a GPU will see, shown without one: the device of a launch, CUDA graphs, and how many kernels plans need."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from diffattn.kernels import attend as attend_module
from diffattn.kernels.attend import attend, current_device
from diffattn.kernels.backends.rows import build_pyramid
from diffattn.kernels.backends.triton import tokens as triton_tokens
from diffattn.kernels.backends.triton.lists import full_first, full_tiles
from diffattn.kernels.backends.triton.pool import pool_rows
from diffattn.kernels.plan.plan import Plan
from diffattn.kernels.plan.tile_list import TileList
from triton_plans import DEVICE, inputs, random_plan

ROOT = Path(__file__).parents[2]


def test_launches_are_on_the_device_of_the_tensors(monkeypatch):
    guard = current_device(torch.device("cuda", 1))
    assert isinstance(guard, torch.cuda.device) and guard.idx == 1
    inside = []

    @contextmanager
    def watched(device):
        inside.append(device)
        yield
        inside.append(None)

    def launch(*args, **kwargs):
        assert len(inside) == 1
        real(*args, **kwargs)

    real = triton_tokens.launch_forward
    monkeypatch.setattr(attend_module, "current_device", watched)
    monkeypatch.setattr(triton_tokens, "launch_forward", launch)
    plan = random_plan(64, 64, [(1, 64)])
    query, key, value = inputs(plan)
    attend(query, key, value, plan, impl="triton")
    assert inside == [query.device, None]


def test_cuda_graphs_do_not_capture_the_operators():
    for operator in (torch.ops.diffattn.attend, torch.ops.diffattn.attend_backward):
        assert torch.Tag.cudagraph_unsafe in operator.default.tags


def test_full_tiles_come_first():
    mask = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.98
    plan = random_plan(100, 32, [(1, 4), (4, 4)], shape=(1, 2), key_mask=mask.to(DEVICE))
    for lists in plan.lists:
        counts, whole, indices = full_first(plan, lists)
        full = full_tiles(plan, lists)
        assert 0 < whole.sum() < counts.sum()
        for b, h, tile in torch.cartesian_prod(*map(torch.arange, (2, 2, 4))).tolist():
            found = indices[b, h, tile, : counts[b, h, tile]].tolist()
            first = whole[b, h, tile]
            given = lists.indices[0, h, tile, : lists.counts[0, h, tile]].tolist()
            assert found[:first] == [entry for entry in given if full[b, 0, entry]]
            assert found[first:] == [entry for entry in given if not full[b, 0, entry]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_levels_are_pooled_in_one_pass(dtype):
    mask = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.8
    plan = random_plan(100, 64, [(1, 64), (2, 32), (8, 4), (128, 1)], key_mask=mask.to(DEVICE))
    key = inputs(plan, batch=2, heads=2, dim=24, dtype=dtype)[1]
    want, got = build_pyramid(key, plan), pool_rows(key, plan)
    seen = plan.kv_logw > -torch.inf
    assert got.isfinite().all() and not got.masked_select(~seen[..., None]).any()
    torch.testing.assert_close(got.masked_select(seen[..., None]).to(dtype), want.masked_select(seen[..., None]))


def test_plans_of_one_order_share_its_values():
    order = torch.arange(128)
    plans = [
        Plan(128, order[None, None], (TileList.from_mask(mask, 32),), 32)
        for mask in torch.ones(2, 1, 1, 4, 4, dtype=torch.bool)
    ]
    assert plans[0].row_of_token is plans[1].row_of_token and plans[0].kv_counts is plans[1].kv_counts
    masked = plans[1].with_key_mask(order[None] < 100)
    assert masked.kv_counts.sum() == 100 and plans[1].kv_counts.sum() == 128


def test_twenty_plans_need_one_kernel():
    env = {name: setting for name, setting in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compile_report.count", "--methods", "auto", "pyramid", "vmoba"]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for method, found in json.loads(run.stdout).items():
        # those of auto are all as wide as they can get; of the others they must differ, or this shows nothing
        assert (len(set(found["widths"])) > 1) == (method != "auto"), method
        assert found["kernels"]["attention_kernel"] == 1, method
