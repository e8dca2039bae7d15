"""What a plan keeps of what was found once: usable from every thread, and by training after a validation."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from diffattn.kernels.backends.triton.common import launch_order
from diffattn.kernels.plan.transpose import visitors
from torch import Tensor

from diffattn import (
    AutoConfig,
    NeighborhoodConfig,
    PyramidConfig,
    RadialConfig,
    RectifiedConfig,
    TokenGrid,
    VMoBAConfig,
    attend,
)
from diffattn.analysis.synthetic import structured_qkv

GRID = TokenGrid(3, 9, 10, text=7)
METHODS = [
    AutoConfig(density=0.5), NeighborhoodConfig(window=(2, 5, 5)), PyramidConfig(density=0.5), RadialConfig(),
    RectifiedConfig(density=0.5), VMoBAConfig(density=0.5),
]  # fmt: skip
DERIVED = (
    *("full", "in_order", "row_of_token", "valid_keys", "kv_counts", "kv_logw"),
    *("density", "computed", "level_density"),
)


def made(config, inputs):
    plan = config.plan(GRID, *inputs[:2])
    return plan.with_key_mask(torch.arange(GRID.tokens)[None] != GRID.tokens - 3)


def use(plan, inputs):
    """Everything that may be kept for a plan."""
    out, lse = attend(*inputs, plan, impl="torch", return_lse=True)
    launch_order(plan)
    assert [visitors(plan, lists) for lists in plan.lists]
    attend(*inputs, plan)
    assert [getattr(plan, name) for name in DERIVED]
    plan.density_tensors()
    return out, lse


def train(plan, inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out, lse = use(plan, leaves)
    return torch.autograd.grad(out.square().sum() + lse.sum(), leaves)


def tensors_in(thing, seen):
    """Every tensor that can be reached from `thing`."""
    if isinstance(thing, Tensor):
        yield thing
    elif id(thing) not in seen:
        seen.add(id(thing))
        parts = [*thing.keys(), *thing.values()] if isinstance(thing, dict) else []
        parts += thing if isinstance(thing, (list, tuple)) else []
        for part in [*parts, *getattr(thing, "__dict__", {}).values()]:
            yield from tensors_in(part, seen)


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_training_can_use_what_a_validation_left(config):
    inputs = structured_qkv(GRID, heads=2, dim=16)
    with torch.inference_mode():
        plan = made(config, inputs)
        use(plan, inputs)
    assert len(plan._memo) >= len(DERIVED)
    found = list(tensors_in(plan, set()))
    assert len(found) > 12 and not any(tensor.is_inference() for tensor in found)
    fresh = made(config, inputs)
    for kept, wanted in zip(train(plan, inputs), train(fresh, inputs)):
        assert torch.equal(kept, wanted)


@pytest.mark.parametrize("config", METHODS, ids=repr)
def test_threads_may_ask_at_once(config):
    inputs = structured_qkv(GRID, heads=2, dim=16)
    wanted, plan, together = use(made(config, inputs), inputs), made(config, inputs), Barrier(4)

    def run(_):
        together.wait()
        return use(plan, inputs)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(4)):
            assert all(torch.equal(*pair) for pair in zip(found, wanted))


def test_what_is_asked_for_is_made_once():
    plan, calls = made(RadialConfig(), structured_qkv(GRID, heads=1, dim=16)), []
    for _ in range(2):
        assert plan.memo("answer", lambda: calls.append(torch.is_grad_enabled()) or 42) == 42
    assert calls == [False]


def test_copies_keep_nothing():
    inputs = structured_qkv(GRID, heads=2, dim=16)
    plan = made(RadialConfig(), inputs)
    use(plan, inputs)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), plan.with_key_mask(plan.key_mask)):
        assert plan._memo and not other._memo
        assert torch.equal(use(other, inputs)[0], use(plan, inputs)[0])
