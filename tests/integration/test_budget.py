"""Text and reference images take no share of the density, and what they cost is said and weighed."""

from __future__ import annotations

import re

import pytest
import torch
from diffattn.kernels.backends.dense import break_even
from models.builders import case
from models.cases import normal, positions

import diffattn
from diffattn import Schedule
from diffattn.integration.hook import find_hook

ALWAYS = Schedule(dense_start=0, dense_end=0, dense_layers=0)
DENSITY = 0.2
HALF_A_TILE = 0.5 * 16 / 256  # of the keys of an image
TEXT, SIDE = 7, 16


def qwen_edit(references: int) -> tuple[str, dict, int, slice]:
    """Case, inputs, tokens of the sequence and the visual ones among them."""
    images = 1 + references
    inputs = {
        "hidden_states": normal(1, images * SIDE**2, 4),
        "encoder_hidden_states": normal(1, TEXT, 16),
        "encoder_hidden_states_mask": torch.ones(1, TEXT, dtype=torch.bool),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, SIDE, SIDE)] * images],
    }
    return "QwenImage", inputs, TEXT + images * SIDE**2, slice(TEXT, TEXT + SIDE**2)


def flux(side: int, text: int, references: int = 0) -> tuple[str, dict, int, slice]:
    ids = torch.cat([positions(1, side, side, image=image) for image in range(1 + references)])
    inputs = {
        "hidden_states": normal(1, len(ids), 4),
        "encoder_hidden_states": normal(1, text, 16),
        "pooled_projections": normal(1, 16),
        "timestep": torch.tensor([0.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(text, 3),
    }
    return "Flux", inputs, text + len(ids), slice(text, text + side**2)


SEQUENCES = {
    "Qwen-Image-Edit, 1 reference": lambda: qwen_edit(1),
    "Qwen-Image-Edit, 3 references": lambda: qwen_edit(3),
    "Kontext, 1 reference": lambda: flux(SIDE, 64, 1),
    "FLUX at 512 with 512 of text": lambda: flux(32, 512),
}
WITH_REFERENCES, WITH_TEXT = list(SEQUENCES)[:3], "FLUX at 512 with 512 of text"
RUNS = [(sequence, method) for sequence in WITH_REFERENCES for method in ("vmoba", "neighborhood")]
RUNS += [(WITH_TEXT, method) for method in ("auto", "rectified")]
PLANNED = [(sequence, method) for sequence in WITH_REFERENCES for method in ("auto", "pyramid", "rectified", "sol")]


@pytest.fixture
def guarded(monkeypatch):
    """Dense where it is faster, which tests/conftest.py switches off."""
    monkeypatch.setattr("diffattn.integration.plan_store.break_even", break_even)


def enabled(name: str, method: str, impl: str):
    model = case(name).build()
    diffattn.enable(model, diffattn.config(method, density=DENSITY), schedule=ALWAYS, impl=impl)
    return model


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs, return_dict=False)[0]


@pytest.mark.parametrize("sequence, method", RUNS)
def test_a_sequence_that_is_mostly_exact_is_dense_and_says_why(sequence, method, guarded):
    name, inputs, _, _ = SEQUENCES[sequence]()
    wanted = forward(case(name).build(), inputs)
    model = enabled(name, method, "auto")
    assert torch.equal(forward(model, inputs), wanted)
    for layer in diffattn.summary(model).models[0].layers:
        ((reason, calls),) = layer.dense_calls.items()
        cost = re.fullmatch(r"the plan costs (\d+\.\d\d) of dense attention: dense is faster", reason)
        assert layer.sparse_calls == 0 and calls == 1 and float(cost[1]) > 0.6
        assert reason in str(diffattn.summary(model))


@pytest.mark.parametrize("sequence, method", RUNS)
def test_an_impl_asked_for_runs_sparse_and_the_image_keeps_its_density(sequence, method, guarded):
    name, inputs, tokens, image = SEQUENCES[sequence]()
    model = enabled(name, method, "torch")
    find_hook(model).handler.keep_plans = True
    forward(model, inputs)
    about = diffattn.summary(model)
    layer = about.models[0].layers[-1]
    assert layer.sparse_calls == 1 and not layer.dense_calls

    # the mask of all levels: auto drops nothing, the rest of the sequence is exact
    mask = layer.plan.to_dense_mask()[0, 0].double()
    seen = mask[image, image].mean().item()
    assert seen == 1 if method == "auto" else seen > DENSITY - HALF_A_TILE
    exact = 1 - (image.stop - image.start) ** 2 / tokens**2
    assert mask.mean().item() == pytest.approx(exact + seen * (1 - exact), abs=1e-6)
    # what is counted is that
    assert abs(about.density - DENSITY) < HALF_A_TILE
    assert about.computed == pytest.approx(exact + about.density * (1 - exact), abs=1e-4)
    if method == "rectified":  # no pooled keys
        assert about.density == pytest.approx(seen, abs=1e-4)


def test_both_figures_are_said():
    name, inputs, _, _ = SEQUENCES["Qwen-Image-Edit, 1 reference"]()
    model = enabled(name, "neighborhood", "torch")
    find_hook(model).handler.keep_plans = True
    forward(model, inputs)
    about = diffattn.summary(model)
    density, computed = about.density, about.computed
    assert abs(density - DENSITY) < HALF_A_TILE and computed > 0.75
    said = about.to_dict()
    assert (said["density"], said["computed"], said["attention_computed"]) == (density, computed, computed)
    assert f"density   {density:.1%} of the products between visual tokens in sparse calls" in str(about)
    assert f"computed  {computed:.1%} of all products in sparse calls" in str(about)
    assert f"density {density:.3f} ({computed:.3f} of all products) in 1 calls" in str(about)
    described = about.models[0].layers[0].plan.describe()
    assert f"density {density:.4f} " in described and f", {computed:.4f} of all products" in described


@pytest.mark.parametrize("sequence, method", PLANNED)
def test_references_are_planned_with_the_image_and_share_no_block_with_it(sequence, method, guarded):
    name, inputs, tokens, image = SEQUENCES[sequence]()
    model = enabled(name, method, "auto" if method in ("auto", "rectified") else "torch")
    find_hook(model).handler.keep_plans = True
    forward(model, inputs)
    about = diffattn.summary(model)
    layer = about.models[0].layers[-1]
    assert layer.sparse_calls == 1 and not layer.dense_calls
    # text alone is exact, and it may lie before the images, after them, or nowhere
    visual = tokens - image.start
    exact = 1 - visual**2 / tokens**2
    assert about.computed == pytest.approx(exact + about.density * (1 - exact), abs=1e-4)
    assert method == "sol" or abs(about.density - DENSITY) < HALF_A_TILE
    kind = (torch.arange(tokens) - image.start) // SIDE**2
    order = layer.plan.order
    for rows in order[0, 0].view(-1, layer.plan.block_q):
        assert len(kind[rows[rows >= 0].long()].clamp(min=-1).unique()) == 1
