"""`Schedule(refresh=)`: plans are used for several steps, by the pass of the run that made them and nobody else."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import diffusers
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from integration.test_threads import at_once, request
from models.pipeline_builders import PIPELINES
from wan import run, text_to_video, tiny_transformer

import diffattn
from diffattn import AttentionConfig, PyramidConfig, Schedule, TokenGrid
from diffattn.integration.attention_inputs import AttentionInputs
from diffattn.integration.hook import find_hook
from diffattn.integration.layer import Layer
from diffattn.integration.placement import Placement
from diffattn.integration.plan_store import PlanRequest, PlanStore

STEPS = 6
TOLD = pytest.mark.skipif(not hasattr(diffusers.hooks.hooks, "CacheContext"), reason="contexts are names before 0.41")


def sparse(refresh=1, start=0, end=0, layers=0):
    return Schedule(dense_start=start, dense_end=end, dense_layers=layers, refresh=refresh)


@dataclass(frozen=True)
class Noting(AttentionConfig):
    """Plans of `pyramid`; notes every layer and step that asks for one."""

    method: ClassVar[str] = "noting"
    dynamic: ClassVar[bool] = True

    def __post_init__(self):
        object.__setattr__(self, "asked", [])

    def _plan(self, *, grid, query, key, layer, step, steps, **_):
        self.asked.append((layer, step, steps))
        return PyramidConfig(density=0.3)._plan(grid=grid, query=query, key=key)

    def steps_of(self, layer):
        return [step for asked, step, _ in self.asked if asked == layer]


class Remembering(Noting):
    """What `refresh` should do, done by the method itself: every layer is called `passes` times a step."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "plans", {})

    def _plan(self, *, layer, step, **inputs):
        place = self.steps_of(layer).count(step)
        fresh = super()._plan(layer=layer, step=step, **inputs)
        begins = [begin for begin in self.begins if begin <= step][-1]
        return self.plans.setdefault((layer, begins, place), fresh)


def remembering(*begins):
    """Plans made at the steps `begins` are used until the next of them."""
    made = Remembering()
    object.__setattr__(made, "begins", begins)
    return made


def enabled(config, schedule, **parts):
    pipe = text_to_video(**parts)
    diffattn.enable(pipe, config, schedule=schedule, impl="torch")
    return pipe


def kept_bytes(pipe):
    return diffattn.summary(pipe).to_dict()["kept_plan_bytes"]


def eager(pipe):
    pass


def compiled(pipe):
    torch._dynamo.reset()
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)


@pytest.mark.parametrize("form", [eager, compiled])
def test_every_call_plans_with_a_refresh_of_one(form):
    config = Noting()
    wanted = run(enabled(PyramidConfig(density=0.3), sparse(1)), STEPS)
    pipe = enabled(config, sparse(1))
    form(pipe)
    assert torch.equal(run(pipe, STEPS), wanted)
    assert Counter(config.asked) == {(layer, step, STEPS): 2 for layer in range(3) for step in range(STEPS)}
    assert kept_bytes(pipe) == 0


@pytest.mark.parametrize("form", [eager, compiled])
@pytest.mark.parametrize("refresh, start, end, begins", [(2, 0, 0, (0, 2, 4)), (3, 1, 1, (1, 4)), (9, 2, 0, (2,))])
def test_plans_last_for_so_many_sparse_steps_of_their_pass(form, refresh, start, end, begins):
    wanted = run(enabled(remembering(*begins), sparse(1, start, end, layers=1)), STEPS)
    assert not torch.equal(run(enabled(Noting(), sparse(1, start, end, layers=1)), STEPS), wanted)
    config = Noting()
    pipe = enabled(config, sparse(refresh, start, end, layers=1))
    form(pipe)
    for _ in range(2):  # nothing of a run is left for the next
        config.asked.clear()
        assert torch.equal(run(pipe, STEPS), wanted)
        assert Counter(config.asked) == {(layer, step, STEPS): 2 for layer in (1, 2) for step in begins}
        assert kept_bytes(pipe) == 0


class Stop(Exception):
    pass


def stopped_after_step(pipe, step):
    def stop(pipe, at, *_):
        if at == step:
            raise Stop
        return {}

    with pytest.raises(Stop):
        run(pipe, STEPS, callback_on_step_end=stop)


def stopped_in_call(pipe, call):
    calls = []

    def stop(*_):
        calls.append(0)
        if len(calls) == call:
            raise Stop

    handle = pipe.transformer.blocks[2].register_forward_pre_hook(stop)
    with pytest.raises(Stop):
        run(pipe, STEPS)
    handle.remove()


@pytest.mark.parametrize(
    "before",
    [
        lambda pipe: stopped_after_step(pipe, 0),
        lambda pipe: stopped_after_step(pipe, 3),
        lambda pipe: stopped_in_call(pipe, 1),
        lambda pipe: stopped_in_call(pipe, 2),
        lambda pipe: stopped_in_call(pipe, 5),
        lambda pipe: run(pipe, 1),
        lambda pipe: run(pipe, STEPS, height=96),
        lambda pipe: run(pipe, STEPS, guidance_scale=1.0),
    ],
    ids=["step-0", "step-3", "cond-0", "uncond-0", "cond-2", "one-step", "other-size", "no-cfg"],
)
def test_what_ran_before_leaves_nothing_behind(before):
    wanted = run(enabled(Noting(), sparse(4)), STEPS)
    pipe = enabled(Noting(), sparse(4))
    before(pipe)
    assert torch.equal(run(pipe, STEPS), wanted)


def test_another_size_within_a_run():
    """A callback that runs the same pipeline at another size, as a preview would."""
    plain = enabled(Noting(), sparse(2))
    wanted, small = run(plain, STEPS), run(plain, 2, height=96)
    pipe = enabled(Noting(), sparse(2))
    other = text_to_video(transformer=pipe.transformer)
    previews = []

    def preview(*_):
        previews.append(run(other, 2, height=96))
        return {}

    got = run(pipe, STEPS, callback_on_step_end=preview)
    assert all(torch.equal(preview, small) for preview in previews) and len(previews) == STEPS
    # every step begins anew after a preview
    assert torch.equal(got, run(enabled(Noting(), sparse(1)), STEPS)) and not torch.equal(got, wanted)


def test_two_transformers_do_not_share_a_plan():
    def two(config, schedule):
        second = tiny_transformer()
        return enabled(config, schedule, transformer_2=copy.deepcopy(second), boundary_ratio=0.875)

    pipe, config = two(Noting(), sparse(9)), Noting()
    run(pipe, STEPS)
    first = diffattn.summary(pipe).models[0].layers[0].sparse_calls // 2
    assert 1 < first < STEPS - 1
    wanted = run(two(remembering(0, first), sparse(1)), STEPS)
    assert torch.equal(run(two(config, sparse(9)), STEPS), wanted)
    assert config.steps_of(1) == [0, 0, first, first]


def test_both_calls_of_a_second_order_step_have_plans_of_their_own():
    at = next(pipeline for pipeline in PIPELINES if pipeline.name == "StableDiffusion3Pipeline")
    pipe, config = at.build(), Noting()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=5.0)
    diffattn.enable(pipe, config, schedule=sparse(2), impl="torch")
    at.run(pipe)
    assert config.steps_of(0) == [0, 0, 2, 2, 4]


def test_the_perturbed_pass_of_guidance_has_plans_of_its_own():
    config = Noting()
    pipe = enabled(config, sparse(2))
    diffattn.guide(pipe, heads=[(1, 0)], scale=2.0)
    run(pipe, 4)
    assert Counter(config.steps_of(0)) == {0: 2, 2: 2}
    assert Counter(config.steps_of(2)) == {0: 3, 2: 3}


@TOLD
@pytest.mark.parametrize("config", [Noting(), PyramidConfig(density=0.3)], ids=["noting", "pyramid"])
def test_threads_have_plans_of_their_own(config):
    transformer = tiny_transformer(2)
    diffattn.enable(transformer, config, schedule=sparse(2), impl="torch")
    sizes = ((96, 160), (96, 160), (160, 96))
    jobs = [lambda size=size, seed=seed: request(transformer, *size, seed) for seed, size in enumerate(sizes)]
    alone = [job() for job in jobs]
    assert all(torch.equal(got, wanted) for got, wanted in zip(at_once(*jobs), alone))
    assert find_hook(transformer).handler.plans.bytes_kept() == 0
    if isinstance(config, Noting):
        assert Counter(config.steps_of(1)) == {0: 2 * 2 * 3, 2: 2 * 2 * 3}


def test_kept_plans_are_counted_and_dropped():
    pipe, seen = enabled(Noting(), sparse(3)), []

    def look(pipe, step, *_):
        seen.append(kept_bytes(pipe))
        return {}

    run(pipe, 4, callback_on_step_end=look)
    assert seen[0] > 0 and seen[1] >= seen[0] and seen[2:] == [0, 0]  # the last step makes plans for nobody
    about = diffattn.summary(pipe)
    assert about.to_dict()["most_run_plan_bytes"] >= seen[1]
    assert "0.0 MB kept, at most" in str(about) and "for 3 steps each" in str(about)
    stopped_after_step(pipe, 1)
    session = find_hook(pipe.transformer).handler
    copied = copy.deepcopy(session.plans)
    assert session.plans.bytes_kept() > 0 and copied.bytes_kept() == 0 and copied.kept.refresh == 3
    diffattn.disable(pipe)
    assert session.plans.bytes_kept() == 0


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(diffattn.integration.session.logger, "warning", lines.append)
    return lines


def forward(model, grid=(3, 18, 20)):
    torch.manual_seed(1)
    inputs = torch.randn(1, 16, *grid), torch.tensor([500.0]), torch.randn(1, 12, 16)
    return model(*inputs, return_dict=False)[0]


def test_an_unknown_step_plans_every_call_and_says_so(said):
    model, config = tiny_transformer(), Noting()
    diffattn.enable(model, config, schedule=sparse(4), impl="torch")
    with torch.no_grad():
        assert torch.equal(forward(model), forward(model))
    assert config.asked == [(layer, None, None) for layer in range(3)] * 2
    assert said == ["the denoising step is not known here: refresh=4 has no effect, every call makes its plan"]
    static = tiny_transformer()
    diffattn.enable(static, "radial", schedule=sparse(4))
    with torch.no_grad():
        forward(static)
    assert not any("refresh" in line for line in said[1:])


@TOLD
def test_recorded_gradients_plan_every_call_and_say_so(said):
    model, config = tiny_transformer(), Noting()
    diffattn.enable(model, config, schedule=sparse(4), impl="torch")
    for step in range(2):
        with model.cache_context("cond", step_index=step, num_inference_steps=4):
            forward(model).sum().backward()
    assert config.steps_of(0) == [0, 1] and kept_bytes(model) == 0
    assert said == ["gradients are recorded: refresh=4 has no effect, every call makes its plan"]


@TOLD
def test_a_transformer_alone_keeps_plans_by_the_name_of_the_pass():
    model, config = tiny_transformer(), Noting()
    diffattn.enable(model, config, schedule=sparse(4), impl="torch")

    def call(name, step, **size):
        config.asked.clear()
        with torch.no_grad(), model.cache_context(name, step_index=step, num_inference_steps=4):
            forward(model, **size)
        return len(config.asked) > 0

    assert [call("cond", 0), call("uncond", 0), call("cond", 1), call("uncond", 1)] == [True, True, False, False]
    assert call("cond", 1)  # again: another run
    assert not call("cond", 2)
    assert call("cond", 3, grid=(3, 16, 20)) and call("cond", 3)


class Looking(Noting):
    wants_value: ClassVar[bool] = True

    def _plan(self, *, query, key, value, **inputs):
        self.asked.append((query, key, value))
        return PyramidConfig(density=0.5)._plan(query=query, key=key, **inputs)


def test_methods_that_want_the_value_get_it_in_the_order_of_the_grid():
    placement = Placement(TokenGrid(1, 6, 8, text=27), shift=7)
    query, key, value = torch.randn(3, 2, 75, 1, 16)
    order = placement.order()
    for config, wanted in ((Looking(), value[:, order]), (PlainLooking(), None)):
        request = PlanRequest(placement, Layer("", 0, dense=False), AttentionInputs(query, key, value))
        PlanStore(config, "torch", print).plan(request)
        found = config.asked[-1]
        assert torch.equal(found[0], query[:, order]) and torch.equal(found[1], key[:, order])
        assert found[2] is None if wanted is None else torch.equal(found[2], wanted)
    empty = torch.zeros(0, 48, 1, 16)
    config = Looking()
    config.plan(TokenGrid(1, 6, 8), empty, empty, value=empty)
    assert [tensor.shape for tensor in config.asked[-1]] == [(1, 48, 1, 16)] * 3


class PlainLooking(Looking):
    wants_value: ClassVar[bool] = False


def test_functions_hand_value_and_step_to_the_method():
    grid, config = TokenGrid(1, 6, 8), Looking()
    query, key, value = torch.randn(3, 2, 48, 1, 16)
    diffattn.sparse_attention(query, key, value, grid=grid, config=config)
    assert config.asked[-1][2] is value
    noting = Noting()
    diffattn.make_plan(noting, grid, query, key, layer=3, step=2, steps=5)
    assert noting.asked == [(3, 2, 5)]
    with pytest.raises(ValueError, match=r"value must be \(B, 48, H, D\)"):
        diffattn.make_plan(config, grid, query, key, value=value[:, 1:])
