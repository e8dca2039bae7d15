"""Calibration of a real Wan class at a tiny configuration."""

from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
import wan
from diffusers import FirstBlockCacheConfig

import diffattn
from diffattn import AutoConfig, PyramidConfig, Schedule, VMoBAConfig
from diffattn.analysis.calibration import Settings, estimate
from diffattn.analysis.calibration.runs import Runs, relative_error
from diffattn.hunting.denoised import observed_steps
from diffattn.hunting.prompts import make_pairs

STEPS = 4
OPTIONS = {"height": 112, "width": 112, "num_frames": 9, "num_inference_steps": STEPS, "guidance_scale": 1.0}
GUIDED = {**OPTIONS, "guidance_scale": 3.0}
SCHEDULE = Schedule(dense_start=1, dense_layers=1)
SETTINGS = Settings(parts=2, samples=1, candidates=(0.1, 0.3))
DENSITY = 0.25


def prompts(count=1):
    embeds = torch.randn(2 * count, 1, 12, wan.TEXT, generator=torch.Generator().manual_seed(1))
    return [
        {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        for positive, negative in zip(embeds[::2], embeds[1::2])
    ]


def calibrate(pipe, **changes):
    arguments = {"density": DENSITY, "schedule": SCHEDULE, "settings": SETTINGS, "progress": False, **OPTIONS}
    return diffattn.calibrate(pipe, prompts(), **{**arguments, **changes})


@pytest.fixture(scope="module")
def calibrated():
    return calibrate(wan.text_to_video())


def expected_steps(pipe):
    return estimate(pipe, prompts(), density=DENSITY, schedule=SCHEDULE, settings=SETTINGS, **OPTIONS).steps


def count_steps(pipe, most=1000):
    """A list that grows with each step of the scheduler, of which there may be so many."""
    seen, step = [], pipe.scheduler.step

    @wraps(step)
    def counted(*args, **kwargs):
        if len(seen) == most:
            raise KeyboardInterrupt
        seen.append(len(seen))
        return step(*args, **kwargs)

    pipe.scheduler.step = counted
    return seen


def test_the_density_is_met_and_the_pipeline_is_as_it_was(calibrated):
    pipe = wan.text_to_video()
    before = [block.attn1.processor for block in pipe.transformer.blocks]
    steps = count_steps(pipe)
    instance = vars(pipe.scheduler)["step"]
    again = calibrate(pipe)
    assert again == calibrated
    assert (
        len(steps) == estimate(pipe, prompts(), density=DENSITY, schedule=SCHEDULE, settings=SETTINGS, **OPTIONS).steps
    )
    assert [block.attn1.processor for block in pipe.transformer.blocks] == before
    assert vars(pipe.scheduler)["step"] is instance
    assert [part[0] for part in calibrated.densities] == [None, None] and calibrated.ends == (0.75, 1.0)
    assert calibrated.expected["density"] == pytest.approx(DENSITY, abs=1e-3)
    assert calibrated.expected["least_error"] == calibrated.expected["error"] == calibrated.expected["most_error"] > 0


def test_a_saved_calibration_runs_at_the_density_and_error_it_expects(calibrated, tmp_path):
    pipe = wan.text_to_video()
    calibrated.save_pretrained(tmp_path)
    pair = make_pairs(prompts())[0]
    dense = pipe(**pair.batch(1), **OPTIONS, output_type="latent").frames
    diffattn.enable(pipe, tmp_path, impl="torch")
    sparse = pipe(**pair.batch(1), **OPTIONS, output_type="latent").frames
    found = diffattn.summary(pipe)
    assert found.density == pytest.approx(calibrated.expected["density"], rel=0.1)
    assert relative_error(sparse, dense) ** 0.5 == pytest.approx(calibrated.expected["error"], rel=1e-3)
    assert f"expected  density {calibrated.expected['density']:.1%} (reached: {found.density:.1%})" in str(found)
    assert f"(expected {calibrated.expected['layers'][2]:.3f})" in str(found)


def test_an_interrupted_calibration_resumes_and_finds_the_same(calibrated, tmp_path):
    pipe = wan.text_to_video()
    count_steps(pipe, most=3 * STEPS - 1)
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipe, resume=tmp_path)
    assert diffattn.summary(pipe).session is None
    del pipe.scheduler.step
    steps = count_steps(pipe)
    assert calibrate(pipe, resume=tmp_path) == calibrated
    assert len(steps) == expected_steps(pipe) - STEPS  # two runs were done, and the dense one is needed again
    with pytest.raises(ValueError, match=r"belongs to another search: seeds was \[0\], is \[5\]"):
        calibrate(pipe, resume=tmp_path, seeds=[5])


def test_probes_and_parts_measure_what_those_layers_and_steps_change():
    """The same from `enable`, with a schedule in which one layer and one step are sparse."""
    pipe, pair = wan.text_to_video(), make_pairs(prompts())[0]
    runs = Runs(pipe, AutoConfig(), Schedule(dense_start=0, dense_layers=2), GUIDED, lambda step: None)
    reference, _ = runs.survey(pair, (), set())
    probed = runs.probe(pair, reference, 0.2, {1: (0, 2, (0, 1)), 3: (0, 2, (0,))})
    part = runs.part_error(pair, reference, 0.2, range(1, 2), 2)
    predictions = []
    diffattn.enable(
        pipe, AutoConfig(density=0.2), schedule=Schedule(dense_start=1, dense_end=2, dense_layers=2), impl="torch"
    )
    with observed_steps(pipe.scheduler, lambda output, *_: predictions.append(output.clone())):
        result = pipe(**pair.batch(1), **GUIDED, output_type="latent").frames
    moved = float((predictions[1] - reference.predictions[1]).square().sum())
    assert torch.equal(predictions[0], reference.predictions[0])
    assert probed[1][0] == pytest.approx(moved, rel=1e-4) and probed[1][1] > 0
    assert 0 < probed[3][0] and part == pytest.approx(relative_error(result, reference.result), rel=1e-4)


def test_errors_are_those_of_the_outputs_of_the_heads():
    pipe, pair = wan.text_to_video(), make_pairs(prompts())[0]
    runs = Runs(pipe, PyramidConfig(), Schedule(dense_layers=1), GUIDED, lambda step: None)
    _, survey = runs.survey(pair, (0.2, 0.5), {2})
    assert set(survey.errors) == {(2, 1), (2, 2)}
    from diffattn.analysis.capture import capture

    with capture(pipe, keep=lambda layer, step: (layer, step) == (1, 2)) as calls:
        pipe(**pair.batch(1), **GUIDED, output_type="latent")
    expected = np.zeros((2, 2))
    for call in calls:  # both guidance passes
        q, k, v = (x.double().transpose(1, 2) for x in (call.query, call.key, call.value))
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        for row, density in enumerate((0.2, 0.5)):
            plan = PyramidConfig(density=density).plan(call.grid, call.query, call.key)
            out = diffattn.attend(call.query, call.key, call.value, plan, impl="reference").transpose(1, 2)
            expected[row] += (out.double() - exact).square().sum((0, 2, 3)).numpy()
    np.testing.assert_allclose(survey.errors[2, 1].numpy(), expected, rtol=1e-3)


def test_another_model_or_schedule_is_refused(calibrated):
    shallow = wan.tiny_transformer(layers=2)
    before = dict(shallow.attn_processors)
    with pytest.raises(ValueError, match=r"for WanTransformer3DModel with 3 self-attention layers, not for .* with 2"):
        diffattn.enable(shallow, calibrated)
    with pytest.raises(ValueError, match=r"is for Flux.* with 3 .*, not for WanTransformer3DModel with 3"):
        diffattn.enable(wan.tiny_transformer(), replace(calibrated, model="FluxTransformer2DModel"))
    with pytest.raises(ValueError, match="layer 0 was dense in the calibration"):
        diffattn.enable(wan.tiny_transformer(), calibrated, schedule=Schedule(dense_layers=0))
    assert dict(shallow.attn_processors) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"error": 0.1}, "give one of density and error: got 0.25 and 0.1"),
        ({"density": None, "error": 2}, "error must be between 0 and 1, got 2"),
        ({"density": 1.5}, "density must be"),
        ({"density": 0.05}, r"density 0.05 is below all candidates: \(0.1, 0.3\)"),
        ({"config": VMoBAConfig()}, "'vmoba' cannot be calibrated"),
        ({"latents": None}, "calibrate sets latents itself"),
        ({"schedule": Schedule(dense_start=STEPS)}, "every step or every layer is dense"),
    ],
)
def test_arguments_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        calibrate(wan.text_to_video(), **changes)


def test_a_pipeline_that_is_sparse_already_is_refused():
    pipe = wan.text_to_video()
    diffattn.enable(pipe)
    with pytest.raises(ValueError, match=r"diffattn\.disable"):
        calibrate(pipe)
    diffattn.disable(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match=r"disable_cache\(\)"):
        calibrate(pipe)


def test_an_error_that_is_asked_for_is_met():
    found = calibrate(wan.text_to_video(), density=None, error=0.008, settings=replace(SETTINGS, probe="head"))
    assert found.expected["error"] == pytest.approx(0.008, rel=0.25)
    assert len({density for part in found.densities for heads in part if heads for density in heads}) > 1
