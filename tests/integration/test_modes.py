"""The modes of torch that happen to be on change neither plans nor results, and a plan made in one serves another."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from models.builders import case

import diffattn
from diffattn import Schedule
from diffattn.integration.hook import find_hook

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
METHODS = ("radial", "neighborhood", "vmoba", "pyramid", "rectified", "auto")
MODELS = ("Wan", "HunyuanVideo", "CogVideoX", "Flux")
DENSITY = 0.4


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("cpu"),
    "deterministic": deterministic,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference": torch.inference_mode,
}


def enabled(at, method, **options):
    model = at.build()
    diffattn.enable(model, diffattn.config(method, density=DENSITY, **options), schedule=ALWAYS, impl="torch")
    find_hook(model).handler.keep_plans = True
    return model


def inputs_of(at):
    torch.manual_seed(1)
    return {**at.inputs(), "return_dict": False}


def forward(model, inputs):
    with torch.random.fork_rng():
        return model(**inputs)[0]


def plans(model):
    return [layer.plan for layer in diffattn.summary(model).models[0].layers]


def assert_same_plans(found, known):
    for ours, theirs in zip(found, known, strict=True):
        assert (ours.describe(), ours.computed) == (theirs.describe(), theirs.computed)
        for got, wanted in zip(ours.lists, theirs.lists):
            assert torch.equal(got.counts, wanted.counts)
            assert torch.equal(got.indices * got.live, wanted.indices * wanted.live)


def gradients(model, inputs):
    model.zero_grad()
    forward(model, inputs).square().mean().backward()
    return [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_validation_in_inference_mode_and_then_training(name, method):
    at = case(name)
    inputs, model = inputs_of(at), enabled(at, method)
    wanted = gradients(enabled(at, method), inputs)
    with torch.inference_mode():
        validated = forward(model, inputs)
    got = gradients(model, inputs)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert any(grad is not None and grad.any() for grad in wanted)
    with torch.inference_mode():
        assert torch.equal(forward(model, inputs), validated)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_neither_plan_nor_result(mode, method):
    at = case("HunyuanVideo")
    inputs = inputs_of(at)
    model, other = enabled(at, method), enabled(at, method)
    with torch.no_grad():
        wanted = forward(model, inputs)
    with MODES[mode]():
        got = forward(other, inputs)
    assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    assert_same_plans(plans(other), plans(model))


@pytest.mark.parametrize("method", METHODS)
def test_autocast_leaves_nothing_behind(method):
    at = case("Wan")
    inputs, model, other = inputs_of(at), enabled(at, method), enabled(at, method)
    with torch.no_grad():
        exact = forward(model, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = forward(other, inputs)
        assert 0 < (rounded.float() - exact).abs().mean() < 0.02
        assert torch.equal(forward(other, inputs), exact)
    assert_same_plans(plans(other), plans(model))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [*MODES, "autocast"])
def test_a_mode_does_not_change_a_plan_of_many_tiles(mode, method):
    """Enough tiles that a budget rounded in bfloat16 is another one: 0.5 was 0.29."""
    grid = diffattn.TokenGrid(9, 15, 20, text=9)
    query, key = torch.randn(2, 1, grid.tokens, 2, 16, generator=torch.Generator().manual_seed(0))
    config = diffattn.config(method, density=DENSITY)
    wanted = diffattn.make_plan(config, grid, query, key)
    with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else MODES[mode]():
        got = diffattn.make_plan(config, grid, query, key)
    assert_same_plans([got], [wanted])
