"""The controls of the page, one for each field of a request."""

from __future__ import annotations

from dataclasses import fields

import gradio as gr

from ..analysis.load import TINY
from ..methods import METHODS
from .request import Request
from .worker import Worker

PROMPTS = (
    "a red circle moves right over a blue background",
    "a green square moves down over a yellow background",
    "a yellow triangle stays still over a black background",
)
DEFAULT = Request(PROMPTS[0])
LARGE = {"width": 832, "height": 480, "frames": 81}  # what the large models are trained for


def controls(worker: Worker) -> dict[str, gr.components.Component]:
    """Components by the name of their field, in the order of [`Request`]."""
    made = _prompt() | _method() | _run(worker.limits.steps)
    with gr.Accordion("Guidance by heads", open=False, elem_id="guidance"):
        made |= _guidance(worker)
    with gr.Accordion("Negative prompt", open=False):
        made |= _negative()
    with gr.Accordion("Model and size", open=False):
        made |= _model(worker, made["heads"])
    return {field.name: made[field.name] for field in fields(Request)}


def examples(prompt: gr.Textbox) -> None:
    """Prompts to click on."""
    gr.Examples([[text] for text in PROMPTS], [prompt], label="Prompts the embedded model knows")


def _prompt() -> dict:
    return {"prompt": gr.Textbox(DEFAULT.prompt, label="Prompt", lines=2, max_lines=4, elem_id="prompt")}


def _method() -> dict:
    method = gr.Dropdown(
        sorted(METHODS), value=DEFAULT.method, label="Method", info=_describe(DEFAULT.method), elem_id="method"
    )
    method.change(
        lambda name: gr.Dropdown(info=_describe(name)),
        method,
        method,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    density = gr.Slider(
        0.05, 1, DEFAULT.density, step=0.05, label="Density", info="Share of the products between visual tokens"
    )
    dense_start = gr.Slider(
        0, 1, DEFAULT.dense_start, step=0.05, label="Dense start", info="Share of the first steps that stays dense"
    )
    return {"method": method, "density": density, "dense_start": dense_start}


def _run(most_steps: int) -> dict:
    with gr.Row():
        steps = gr.Number(DEFAULT.steps, label="Steps", info=f"1 to {most_steps}", min_width=120, elem_id="steps")
        seed = gr.Number(DEFAULT.seed, label="Seed", info="0 or more", min_width=120, elem_id="seed")
    return {"steps": steps, "seed": seed}


def _guidance(worker: Worker) -> dict:
    heads = gr.Dropdown(
        worker.heads(TINY),
        value=list(DEFAULT.heads),
        label="Heads",
        info="layer:head, or a click on a map under By head. Both videos are guided away from losing these",
        multiselect=True,
        allow_custom_value=True,
        elem_id="heads",
    )
    with gr.Row():
        scale = gr.Number(DEFAULT.head_scale, label="Scale", info="0 is off", min_width=120, elem_id="head_scale")
        strength = gr.Number(
            DEFAULT.head_strength, label="Strength", info="0 to 1", min_width=120, step=0.1, elem_id="head_strength"
        )
    return {"heads": heads, "head_scale": scale, "head_strength": strength}


def _negative() -> dict:
    nag = gr.Textbox(
        DEFAULT.nag,
        label="Away from",
        info="Guides attention away from this text (NAG) in both videos, with Guidance 1 too. Empty is off",
        elem_id="nag",
    )
    return {"nag": nag}


def _model(worker: Worker, heads: gr.Dropdown) -> dict:
    side, frames = worker.limits.side, worker.limits.frames
    model = gr.Dropdown(
        worker.models.choices, value=TINY, label="Model", info=_what_models(worker), allow_custom_value=True
    )
    with gr.Row():
        width = gr.Number(DEFAULT.width, label="Width", info=f"Up to {side}", min_width=120, elem_id="width")
        height = gr.Number(DEFAULT.height, label="Height", info=f"Up to {side}", min_width=120, elem_id="height")
    with gr.Row():
        count = gr.Number(DEFAULT.frames, label="Frames", info=f"Up to {frames}", min_width=120, elem_id="frames")
        scale = gr.Number(DEFAULT.guidance_scale, label="Guidance", info="1 is off", min_width=120)
    model.change(
        lambda name: [min(value, bound) for value, bound in zip(_size(name), (side, side, frames))],
        model,
        [width, height, count],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    model.change(
        lambda name: gr.Dropdown(worker.heads(name), value=[]),
        model,
        heads,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return {"model": model, "width": width, "height": height, "frames": count, "guidance_scale": scale}


def _size(model: str) -> tuple[int, int, int]:
    if model == TINY:
        return DEFAULT.width, DEFAULT.height, DEFAULT.frames
    return LARGE["width"], LARGE["height"], LARGE["frames"]


def _what_models(worker: Worker) -> str:
    kinds = ["'tiny' is the embedded one"]
    kinds += ["or a folder of this demo"] if worker.models.root else []
    kinds += ["or a hub id, which is downloaded"] if worker.models.hub else []
    return ", ".join(kinds)


def _describe(method: str) -> str:
    """The first line of a method's documentation."""
    return METHODS[method].__doc__.strip().splitlines()[0].replace("`", "") if method in METHODS else ""
