"""Guided beside unguided clips of the embedded model, for the documentation: `python -m docs.tools.guidance`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffattn
from benchmarks.hunt.searches import HEADS, held_out_captions
from benchmarks.tiny import CALL, load, run
from diffattn import HeadSet

OUT = Path(__file__).parents[1] / "images" / "guidance.png"
# The preset of SD3 medium carried over by relative depth: nothing that was searched for.
LAYER = {"layers": [2], "strength": 0.5, "scale": 3.0}
SEED = 40
FRAMES = (0, 16, 32)


def clips(pipe: Any, prompts: tuple[str, ...], steps: int, cfg: float = 1.0, **guidance: Any) -> Tensor:
    """Clips `(N, 33, 3, 128, 128)` in [0, 1]; without guidance by heads where none is given."""
    if guidance:
        diffattn.guide(pipe, **guidance)
    options = {"num_inference_steps": steps, "guidance_scale": cfg}
    made = [run(pipe, (prompt,), SEED + n, **options)[0] for n, prompt in enumerate(prompts)]
    diffattn.unguide(pipe)
    return torch.stack(made)


def draw(path: Path, columns: dict[str, Tensor], prompts: tuple[str, ...]) -> None:
    """A row for each prompt, a column for each setting: first, middle and last frame."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit('the picture needs matplotlib: pip install "diffattn[viz]"') from error
    figure = Figure(figsize=(3.6 * len(columns), 1.52 * len(prompts) + 0.3), dpi=100, layout="constrained")
    axes = figure.subplots(len(prompts), len(columns), squeeze=False)
    for column, (title, made) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=11)
        for row, clip in enumerate(made):
            strip = torch.cat([clip[frame] for frame in FRAMES], 2).permute(1, 2, 0)
            axes[row, column].imshow(strip.float().clamp(0, 1).numpy(), interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
    for row, prompt in enumerate(prompts):
        axes[row, 0].set_xlabel(prompt, fontsize=8, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.tools.guidance",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--heads", type=Path, default=HEADS, help="head set to show")
    parser.add_argument("--prompts", type=int, default=4, help="held-out captions, the first ones")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=OUT, help="the png to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Generate and draw."""
    args = parse_args(argv)
    pipe, heads = load(), HeadSet.load(args.heads)
    prompts = tuple(held_out_captions(args.prompts))
    named = " ".join(f"{list(heads.model['layers']).index(head.layer)}:{head.head}" for head in heads)
    layer = f"layer {LAYER['layers'][0]} whole, u = {LAYER['strength']:g}, w = {LAYER['scale']:g}"
    columns = {
        "unguided": clips(pipe, prompts, args.steps),
        f"heads found: {named}, w = {heads.guidance.scale:g}": clips(pipe, prompts, args.steps, heads=heads),
        layer: clips(pipe, prompts, args.steps, **LAYER),
        "classifier-free guidance 3": clips(pipe, prompts, args.steps, CALL["guidance_scale"]),
    }
    draw(args.out, columns, prompts)


if __name__ == "__main__":
    main()
