"""The clips at the top of the README, dense beside sparse from one seed: `python -m docs.tools.showcase`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import diffattn
from benchmarks.tiny import CALL, load
from diffattn.analysis.metrics import compare_videos
from diffattn.analysis.trial import Trial, run_trial
from diffattn.analysis.video import as_uint8

PROMPTS = ("a red circle moves right over a blue background", "a green square moves down over a yellow background")
METHODS = ("dense", "auto", "pyramid")
DENSITY, STEPS, SEED = 0.2, 20, 0
SIDE, GAP, TITLE, CAPTION = 224, 12, 30, 24  # pixels of a clip, between two, of a prompt, of what is under a clip
PAPER, INK, SOFT = (255, 255, 255), (15, 23, 42), (100, 116, 139)
PAUSE, FRAME = 1000, 120  # milliseconds of the last frame and of each; GIF counts in hundredths of a second
COLOURS = 48
OUT = Path(__file__).parents[1] / "images" / "showcase.gif"


def trials(pipe: Any, prompt: str, **changes: Any) -> dict[str, Trial]:
    """One run of each method from one seed, with the schedule that [`diffattn.enable`] has by default."""
    inputs = {**CALL, "num_inference_steps": STEPS, **changes, "prompt": prompt}
    configs = {name: None if name == "dense" else diffattn.config(name, density=DENSITY) for name in METHODS}
    return {name: run_trial(pipe, inputs, config, seed=SEED) for name, config in configs.items()}


def draw(shown: dict[str, dict[str, Trial]]) -> list[Image.Image]:
    """The frames: a row for each prompt, a column for each method, with what was computed and how close it came."""
    count = len(next(iter(next(iter(shown.values())).values())).frames)
    paper, places = _paper(shown)
    frames = [paper.copy() for _ in range(count)]
    for (prompt, name), place in places.items():
        for canvas, picture in zip(frames, as_uint8(shown[prompt][name].frames)):
            canvas.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC), place)
    return frames


def write_gif(frames: list[Image.Image], path: Path) -> None:
    """One palette for all frames and no dither, so that what stands still stays still and costs nothing."""
    some = frames[:: max(len(frames) // 8, 1)]
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
    palette = strip.quantize(COLOURS, dither=Image.Dither.NONE)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [FRAME] * (len(frames) - 1) + [PAUSE]
    path.parent.mkdir(parents=True, exist_ok=True)
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=times, loop=0, optimize=True)


def _paper(shown: dict[str, dict[str, Trial]]) -> tuple[Image.Image, dict[tuple[str, str], tuple[int, int]]]:
    """Everything but the clips, and where these go."""
    row = TITLE + SIDE + CAPTION + GAP
    size = GAP + len(METHODS) * (SIDE + GAP), GAP + len(shown) * row
    paper, places = Image.new("RGB", size, PAPER), {}
    draw, large, small = ImageDraw.Draw(paper), ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    for number, (prompt, made) in enumerate(shown.items()):
        top = GAP + number * row
        draw.text((GAP, top), f"“{prompt}”", fill=INK, font=large)
        for column, (name, trial) in enumerate(made.items()):
            left = GAP + column * (SIDE + GAP)
            places[prompt, name] = left, top + TITLE
            draw.text((left, top + TITLE + SIDE + 4), _caption(name, trial, made["dense"]), fill=SOFT, font=small)
    return paper, places


def _caption(name: str, trial: Trial, dense: Trial) -> str:
    if name == "dense":
        return "dense: all of the attention"
    psnr = compare_videos(trial.frames, dense.frames).mean["psnr"]
    return f"{name}: {trial.attention_computed:.0%} of it, PSNR {psnr:.1f} dB"


def main(argv: list[str] | None = None) -> None:
    """Generate, draw and write."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.showcase", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--frames", type=int, default=CALL["num_frames"], help="frames of a clip")
    parser.add_argument("--out", type=Path, default=OUT, help="the gif to write")
    options = parser.parse_args(argv)
    pipe, sizes = load(), {"num_inference_steps": options.steps, "num_frames": options.frames}
    write_gif(draw({prompt: trials(pipe, prompt, **sizes) for prompt in PROMPTS}), options.out)


if __name__ == "__main__":
    main()
