"""Every file of pipelines/, loaded both ways, gives what `enable` or `guide` gives on the stock pipeline."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import wan
from diffusers import DiffusionPipeline
from PIL import Image

import diffattn

from .pipeline_builders import PIPELINES

ROOT = Path(__file__).parents[2]
SCHEDULE = diffattn.Schedule(dense_start=1, dense_layers=0)
CONFIG = diffattn.NeighborhoodConfig(density=0.2)


@dataclass(frozen=True)
class FileCase:
    cls: str
    build: Callable
    run: Callable

    def load(self, file: str, folder: Path):
        """The pipeline by `custom_pipeline=`, and the class by import."""
        stock = self.build()
        stock.save_pretrained(folder)
        missing = {name: None for name, part in stock.components.items() if part is None}
        path = str(ROOT / "pipelines" / f"{file}.py")
        pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=path, trust_remote_code=True, **missing)
        pipe.set_progress_bar_config(disable=True)
        return pipe, getattr(importlib.import_module(f"diffattn.pipelines.{file}"), self.cls)


def image_to_video(pipe, **more):
    return wan.run(pipe, steps=2, image=Image.new("RGB", (160, 144), "red"), **more)


def run_short(case):
    return lambda pipe, **more: case.run(pipe, steps=2, **more)


stock = {case.name: case for case in PIPELINES}
hunyuan, sd3, flux = (stock[name] for name in ("HunyuanVideoPipeline", "StableDiffusion3Pipeline", "FluxPipeline"))
FILES = {
    "wan_sparse": FileCase("WanSparsePipeline", wan.text_to_video, lambda pipe, **more: wan.run(pipe, 2, **more)),
    "wan_i2v_sparse": FileCase("WanImageToVideoSparsePipeline", wan.image_to_video, image_to_video),
    "hunyuan_video_sparse": FileCase("HunyuanVideoSparsePipeline", hunyuan.build, run_short(hunyuan)),
    "sd3_guided": FileCase("StableDiffusion3GuidedPipeline", sd3.build, run_short(sd3)),
    "flux_guided": FileCase("FluxGuidedPipeline", flux.build, run_short(flux)),
}
GUIDED = {"heads": [(0, 1), (1, 0)], "scale": 2.0, "strength": 0.5}


def turn_on(file, pipe) -> dict:
    """Turn the stock pipeline on; what the pipeline of the file is called with for the same."""
    if file.endswith("_guided"):
        diffattn.guide(pipe, **GUIDED)
        return {"diffattn_config": GUIDED}
    diffattn.enable(pipe, CONFIG, schedule=SCHEDULE)
    return {"diffattn_config": CONFIG, "diffattn_schedule": SCHEDULE}


def test_every_file_is_tested():
    modular = ["wan_modular"]  # blocks, no pipeline: in test_modular.py
    assert sorted([*FILES, *modular]) == sorted(path.stem for path in (ROOT / "pipelines").glob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_loads_both_ways_and_equals_enable(file, tmp_path):
    case = FILES[file]
    loaded, cls = case.load(file, tmp_path)
    assert type(loaded).__name__ == case.cls
    imported = cls(**loaded.components)
    imported.set_progress_bar_config(disable=True)
    stock = cls.__mro__[1](**loaded.components)
    stock.set_progress_bar_config(disable=True)
    dense = case.run(stock)
    options = turn_on(file, stock)
    changed = case.run(stock)
    diffattn.disable(stock), diffattn.unguide(stock)
    assert not torch.equal(changed, dense)
    for pipe in (loaded, imported):
        assert torch.equal(case.run(pipe, **options), changed)
        assert torch.equal(case.run(pipe, diffattn_config=None), dense)


@pytest.fixture
def pipe():
    cls = importlib.import_module("diffattn.pipelines.wan_sparse").WanSparsePipeline
    pipe = cls(**wan.text_to_video().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def processors(pipe):
    return [block.attn1.processor for block in pipe.transformer.blocks]


def test_an_error_in_the_call_leaves_it_dense(pipe):
    before = processors(pipe)

    def fail(pipe, step, timestep, tensors):
        assert diffattn.summary(pipe).to_dict()["enabled"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wan.run(pipe, 2, callback_on_step_end=fail)
    assert all(now is then for now, then in zip(processors(pipe), before))


def test_what_was_enabled_before_is_enabled_again(pipe):
    diffattn.enable(pipe, "neighborhood", schedule=SCHEDULE, impl="torch")
    wan.run(pipe, 2, diffattn_config=CONFIG)
    session = diffattn.summary(pipe).session
    assert (session.config.method, session.schedule, session.impl) == ("neighborhood", SCHEDULE, "torch")
    assert session.scheduler() is pipe.scheduler


def test_what_cannot_be_put_back_is_refused(pipe):
    two = wan.tiny_transformer()
    diffattn.enable(two, "radial")
    pipe.register_modules(transformer_2=two)
    with pytest.raises(ValueError, match="enabled differently"):
        wan.run(pipe, 2)
    assert diffattn.summary(two).to_dict()["enabled"] and not diffattn.summary(pipe.transformer).to_dict()["enabled"]
    with pytest.raises(ValueError, match="a schedule goes with a method"):
        wan.run(pipe, 2, diffattn_config=None, diffattn_schedule=SCHEDULE)


def test_a_guided_pipeline_is_not_guided_twice():
    cls = importlib.import_module("diffattn.pipelines.sd3_guided").StableDiffusion3GuidedPipeline
    guided = cls(**sd3.build().components)
    diffattn.guide(guided, **GUIDED)
    with pytest.raises(ValueError, match="guided already"):
        run_short(sd3)(guided, diffattn_config=GUIDED)
    diffattn.unguide(guided)
    with pytest.raises(TypeError, match="haeds"):
        run_short(sd3)(guided, diffattn_config={"haeds": [(0, 1)]})


def test_a_guided_pipeline_takes_a_negative_prompt_for_one_call():
    cls = importlib.import_module("diffattn.pipelines.flux_guided").FluxGuidedPipeline
    pipe, config = cls(**flux.build().components), diffattn.NAGConfig(negative_embeds=torch.ones(1, 7, 16))
    plain, guided = run_short(flux)(pipe), run_short(flux)(pipe, diffattn_config=config)
    assert not torch.equal(guided, plain) and torch.equal(run_short(flux)(pipe), plain)
    diffattn.guide(pipe, config)
    assert torch.equal(run_short(flux)(pipe), guided)
    with pytest.raises(ValueError, match="guided already"):
        run_short(flux)(pipe, diffattn_config=config)
