"""diffattn and what else wraps a transformer come and go in any order, and every call gives what it should.

`PAIRS` is the table of docs/composition.md: every pair runs in both orders of turning on and both of turning off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import accelerate
import pytest
import torch
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from wan import TEXT, text_to_video, tiny_transformer

import diffattn
from diffattn import NeighborhoodConfig, Schedule
from diffattn.analysis.capture import capture

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
SIZES = ((96, 160), (160, 96), (96, 160))  # landscape, portrait with as many tokens, and landscape again
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Switch:
    """Something that is turned on and off on a pipeline; `on` returns what `off` needs."""

    name: str
    on: Callable[[Any], Any]
    off: Callable[[Any, Any], None]
    atol: float = 0.0


def _capture(pipe):
    watching = capture(pipe)
    watching.__enter__()
    return watching


def _model_offload(pipe):
    return accelerate.cpu_offload_with_hook(pipe.transformer, CPU)[1]


def _layerwise_casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float64, compute_dtype=torch.float32)


def _remove_hooks(pipe, *names):
    registry = diffattn._compat.HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    for name in names:
        registry.remove_hook(name, recurse=True)


OURS = (
    Switch(
        "enable",
        lambda pipe: diffattn.enable(pipe, NeighborhoodConfig(density=0.3), schedule=ALWAYS, impl="torch"),
        lambda pipe, _: diffattn.disable(pipe),
    ),
    Switch("guide", lambda pipe: diffattn.guide(pipe, layers=[1], scale=3.0), lambda pipe, _: diffattn.unguide(pipe)),
    Switch("capture", _capture, lambda pipe, watching: watching.__exit__(None, None, None)),
)
OTHERS = (
    Switch("model offload", _model_offload, lambda pipe, hook: hook.remove()),
    Switch(
        "sequential offload",
        lambda pipe: [accelerate.cpu_offload(module, CPU) for module in (pipe.transformer, pipe.vae)],
        lambda pipe, modules: [accelerate.hooks.remove_hook_from_module(m, recurse=True) for m in modules],
    ),
    Switch(
        "group offload",
        lambda pipe: pipe.transformer.enable_group_offload(CPU, offload_type="leaf_level"),
        lambda pipe, _: _remove_hooks(
            pipe, "group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"
        ),
    ),
    Switch("layerwise casting", _layerwise_casting, lambda pipe, _: None),  # diffusers cannot take it off
    Switch(
        "FirstBlockCache",
        lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0)),
        lambda pipe, _: pipe.transformer.disable_cache(),
        atol=1e-6,
    ),
    Switch(
        "PyramidAttentionBroadcast",
        lambda pipe: pipe.transformer.enable_cache(
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 999
            )
        ),
        lambda pipe, _: pipe.transformer.disable_cache(),
    ),
)
COMPILED = Switch(
    "compiled blocks",
    lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    lambda pipe, _: [setattr(block, "_compiled_call_impl", None) for block in pipe.transformer.blocks],
    atol=1e-6,
)
PAIRS = [(ours, other) for ours in OURS for other in OTHERS]
PAIRS += [(OURS[0], OURS[1]), (OURS[0], COMPILED), (OURS[1], COMPILED)]


@pytest.fixture(autouse=True)
def fresh_graphs():
    yield
    torch._dynamo.reset()


def build():
    pipe = text_to_video(transformer=tiny_transformer(2))
    pipe.transformer.eval()
    return pipe


def run(pipe, size):
    embeds = torch.randn(2, 1, 12, TEXT, generator=torch.Generator().manual_seed(1))
    return pipe(
        prompt_embeds=embeds[0],
        negative_prompt_embeds=embeds[1],
        height=size[0],
        width=size[1],
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(2),
        output_type="latent",
    ).frames


@pytest.fixture(scope="module")
def alone():
    """What each set of switches of ours gives by itself, and the plain pipeline."""
    found = {}
    for names in ((), ("enable",), ("guide",), ("capture",), ("enable", "guide")):
        pipe = build()
        for switch in OURS:
            if switch.name in names:
                switch.on(pipe)
        found[names] = [run(pipe, size) for size in SIZES]
    return found


@pytest.mark.parametrize("first_off", [0, 1], ids=["off in order", "off in reverse"])
@pytest.mark.parametrize("first_on", [0, 1], ids=["on in order", "on in reverse"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].name} and {pair[1].name}")
def test_a_pair_comes_and_goes_in_any_order(pair, first_on, first_off, alone):
    ours = {switch.name for switch in pair if switch in OURS}
    atol = max(switch.atol for switch in pair)
    pipe, state = build(), {}
    for switch in (pair[first_on], pair[1 - first_on]):
        before = vars(pipe.transformer).get("forward")
        state[switch.name] = switch.on(pipe)
        assert switch not in OURS or vars(pipe.transformer).get("forward") is before
    compare(pipe, alone, ours, atol)
    first, last = pair[first_off], pair[1 - first_off]
    for switch in (first, last):
        before = vars(pipe.transformer).get("forward")
        switch.off(pipe, state[switch.name])
        assert switch not in OURS or vars(pipe.transformer).get("forward") is before
        ours -= {switch.name}
        compare(pipe, alone, ours, atol, sizes=1)
    assert not any(isinstance(p, diffattn.integration.processors.SparseProcessorMixin)
                   for p in pipe.transformer.attn_processors.values())  # fmt: skip


def compare(pipe, alone, ours, atol, sizes=3):
    names = tuple(switch.name for switch in OURS if switch.name in ours)
    for size, wanted in list(zip(SIZES, alone[names]))[:sizes]:
        torch.testing.assert_close(run(pipe, size), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("pair", list(product(OURS[:2], repeat=2)), ids=lambda pair: f"{pair[0].name} {pair[1].name}")
def test_offload_lives_on_when_a_method_is_changed_under_it(pair, monkeypatch):
    """`enable` again, or `guide` again, under model offload: accelerate still brings the weights."""
    brought = []
    bring = accelerate.hooks.CpuOffload.pre_forward
    monkeypatch.setattr(
        accelerate.hooks.CpuOffload,
        "pre_forward",
        lambda self, module, *args, **kwargs: brought.append(1) or bring(self, module, *args, **kwargs),
    )
    pipe = build()
    pair[0].on(pipe)
    _model_offload(pipe)
    for change in (pair[1].on, lambda pipe: pair[1].off(pipe, None), lambda pipe: pair[0].off(pipe, None)):
        change(pipe)
        brought.clear()
        run(pipe, SIZES[0])
        assert len(brought) >= 4  # two steps with classifier-free guidance
