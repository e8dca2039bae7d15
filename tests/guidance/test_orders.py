"""Guidance, offload, step caches and layerwise casting come and go in any order, and call 2 equals call 1."""

from dataclasses import replace
from functools import cache
from itertools import permutations

import accelerate
import pytest
import torch
import wan
from accelerate.hooks import CpuOffload, remove_hook_from_module
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.group_offloading import GroupOffloadingHook
from models.pipeline_builders import PIPELINES
from torch import nn

import diffattn
from diffattn import NeighborhoodConfig, Schedule

CASES = {case.name: case for case in PIPELINES}
HEADS = {(0, 1): 0.6, (1, 0): 1.0}
SIZES = ({"height": 96, "width": 128}, {"height": 128, "width": 64})
# G and g: guidance comes and goes; X and x: the other thing
ORDERS = ["".join(o) for o in permutations("GgXx") if o.index("G") < o.index("g") and o.index("X") < o.index("x")]


class ModelOffload:
    hook, method = CpuOffload, "pre_forward"

    def on(self, pipe):
        accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")

    def off(self, pipe):
        remove_hook_from_module(pipe.transformer)


class SequentialOffload:
    """Weights are on the meta device between calls, so that a lost hook is an error."""

    hook = None

    def on(self, pipe):
        for part in modules(pipe):
            buffers = bool(part._parameters)  # as diffusers does
            accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=buffers)

    def off(self, pipe):
        for part in modules(pipe):
            remove_hook_from_module(part, recurse=True)


class GroupOffload:
    hook, method = GroupOffloadingHook, "pre_forward"

    def on(self, pipe):
        device = torch.device("cpu")
        pipe.transformer.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)

    def off(self, pipe):
        remove_hooks(pipe.transformer, "group_offloading")


class StepCache:
    hook, method = FBCHeadBlockHook, "new_forward"

    def on(self, pipe):
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))

    def off(self, pipe):
        pipe.transformer.disable_cache()


class LayerwiseCasting:
    """Stays on, as diffusers has it; weights are exact in bfloat16, see `build`; a lost hook is an error of dtypes."""

    hook = None

    def on(self, pipe):
        pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


class SparseAttention:
    hook = None

    def on(self, pipe):
        diffattn.enable(pipe, NeighborhoodConfig(density=0.5), schedule=Schedule(0, 0, 0), impl="torch")

    def off(self, pipe):
        diffattn.disable(pipe)


KINDS = (ModelOffload, SequentialOffload, GroupOffload, StepCache, LayerwiseCasting, SparseAttention)
OTHERS = {kind.__name__: kind() for kind in KINDS}
NO_STEP_CACHES = ("StableDiffusion3Pipeline",)  # does not name its calls, which diffusers' step caches need


def orders(other):
    kept = (order if hasattr(other, "off") else order.replace("x", "") for order in ORDERS)
    return list(dict.fromkeys(kept))


RUNS = [
    (name, other, order)
    for name in ("Wan", "StableDiffusion3Pipeline")
    for other in OTHERS
    if not (other == "StepCache" and name in NO_STEP_CACHES)
    for order in orders(OTHERS[other])
]


def modules(pipe):
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def remove_hooks(transformer, name):
    for module in transformer.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook.remove_hook(name, recurse=False)


def build(name):
    pipe = wan.text_to_video() if name == "Wan" else CASES[name].build()
    for weight in pipe.transformer.parameters():
        weight.data = weight.data.bfloat16().float()
    return pipe


def run(pipe, name):
    """Two calls of different sizes, and the first again."""
    sizes = (*SIZES, SIZES[0])
    if name == "Wan":
        return [wan.run(pipe, 2, **size, num_frames=5) for size in sizes]
    return [replace(CASES[name], inputs=size).run(pipe, 2) for size in sizes]


@cache
def expected(name, guided, sparse):
    """What neither offload nor step caches nor casting may change."""
    pipe = build(name)
    if sparse:
        SparseAttention().on(pipe)
    if guided:
        diffattn.guide(pipe, HEADS, scale=2.0)
    return run(pipe, name)


@pytest.mark.parametrize("name,other,order", RUNS)
def test_guidance_and_another_come_and_go_in_any_order(name, other, order, monkeypatch):
    other, pipe, heard = OTHERS[other], build(name), []
    if other.hook is not None:
        method = getattr(other.hook, other.method)
        counted = lambda *args, **kwargs: heard.append(1) or method(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(other.hook, other.method, counted)
    guided = on = False
    for operation in order:
        if operation in "Gg":
            guided = operation == "G"
            diffattn.guide(pipe, HEADS, scale=2.0) if guided else diffattn.unguide(pipe)
        else:
            on = operation == "X"
            other.on(pipe) if on else other.off(pipe)
        heard.clear()
        found = run(pipe, name)
        wanted = expected(name, guided, on and isinstance(other, SparseAttention))
        assert all(map(torch.equal, found, wanted)), f"after {operation} of {order}"
        assert bool(heard) == (on and other.hook is not None), f"after {operation} of {order}"
        assert torch.equal(found[2], found[0])
    assert not pipe.transformer._forward_hooks and not pipe.transformer._forward_pre_hooks


def test_guidance_changes_what_the_orders_compare():
    for name in ("Wan", "StableDiffusion3Pipeline"):
        results = [expected(name, guided, sparse) for guided in (False, True) for sparse in (False, True)]
        for at, one in enumerate(results):
            assert all(not torch.equal(one[0], other[0]) for other in results[:at])


def test_a_hook_that_is_removed_within_a_pass_stays_removed():
    """Group offload with streams removes its trackers from the blocks at the end of the first forward."""
    calls = []

    class Tracker(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    pipe = build("Wan")
    wanted = expected("Wan", True, False)[0]
    diffattn.guide(pipe, HEADS, scale=2.0)
    for block in pipe.transformer.blocks:
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Tracker(), "tracker")
    last = pipe.transformer.proj_out.register_forward_pre_hook(lambda *_: remove_hooks(pipe.transformer, "tracker"))
    first = run(pipe, "Wan")[0]
    assert len(calls) == len(pipe.transformer.blocks) and torch.equal(first, wanted)
    last.remove()
    assert torch.equal(run(pipe, "Wan")[0], wanted) and len(calls) == len(pipe.transformer.blocks)
