"""The warp-specialised form of the forward kernel, in the interpreter: same budgets, and only where it can read."""

import pytest
import torch

pytest.importorskip("triton")

from diffattn.kernels.attend import attend
from diffattn.kernels.backends.triton import config as triton_config
from diffattn.kernels.backends.triton import forward as triton_forward
from diffattn.kernels.backends.triton.config import Launch, specialized_for
from diffattn.kernels.backends.triton.forward import run_forward
from triton_plans import DEVICE, assert_accurate, inputs, padded_order, random_plan

SMALL = Launch(64, 64, 4, 2, specialized=True)
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability()[0] != 9, reason="the launches are for sm_90"
)


@pytest.fixture
def launches(monkeypatch):
    """Makes the specialised form the default here, and lists its launches."""
    made = []

    def run(*args):
        made.append(args[0])
        return run_specialized(*args)

    run_specialized = triton_forward.run_specialized
    monkeypatch.setattr(triton_forward, "run_specialized", run)
    monkeypatch.setattr(triton_forward, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(triton_forward, "SPECIALIZED_ON", frozenset({"sm_90"}))
    monkeypatch.setitem(triton_config.SPECIALIZED, "sm_90", {64: (SMALL,)})
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [64, 128])
def test_accuracy(launches, tile, dtype):
    """Log-weights from padding and from a key mask, grouped heads, lists for each head, head dims to fill up."""
    mask = torch.tensor([[False, True], [True, False]]).repeat_interleave(60, 1)
    plan = random_plan(120, 64, [(1, tile)], shape=(1, 4), key_mask=mask)
    assert_accurate(plan, *inputs(plan, batch=2, heads=4, kv_heads=2, dim=40, dtype=dtype))
    assert launches == [SMALL]


def test_no_log_weights(launches):
    plan = random_plan(128, 64, [(1, 64)], density=0.6)
    assert_accurate(plan, *inputs(plan, dtype=torch.float16))
    assert launches == [SMALL]


@pytest.mark.parametrize(
    "block_q, levels, dtype, dim",
    [
        (64, [(1, 64)], torch.float32, 32),
        (48, [(1, 64)], torch.float16, 32),
        (64, [(1, 16)], torch.float16, 32),
        (64, [(1, 64), (8, 16)], torch.float16, 32),
        (64, [(1, 64)], torch.float16, 20),
        (64, [(1, 64)], torch.float16, 128),
    ],
    ids=["float32", "query tiles", "packed", "levels", "strides", "no launch"],
)
def test_falls_back_where_it_cannot_read(launches, block_q, levels, dtype, dim):
    plan = random_plan(96, block_q, levels, order=padded_order(96, 192), density=0.7)
    attend(*inputs(plan, dim=dim, dtype=dtype), plan, impl="triton")
    assert launches == []


def test_odd_places_fall_back(launches):
    plan = random_plan(64, 64, [(1, 64)], order=padded_order(64, 64), density=1)
    query, key, value = torch.randn(3, 1, 1, 64, 40).to(DEVICE, torch.float16)
    run_forward(query[..., 1:33], key[..., :32], value[..., :32], plan, 1.0)
    assert launches == []
    run_forward(query[..., 8:40], key[..., :32], value[..., :32], plan, 1.0)
    assert launches == [SMALL]


def test_the_plain_kernel_is_the_default():
    assert not triton_config.SPECIALIZED_ON
    assert specialized_for("sm_90", 128, 2, 128, 128) == Launch(128, 128, 4, 2, specialized=True)
    assert specialized_for("sm_90", 128, 2, 64, 64) == Launch(64, 64, 4, 2, specialized=True)
    assert specialized_for("sm_80", 128, 2, 128, 128) is None
