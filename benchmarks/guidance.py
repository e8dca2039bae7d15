"""Wall time of guided generation on the embedded model, beside unguided: `python -m benchmarks.guidance --help`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import diffattn
from diffattn.guidance import HeadSet, resolve_heads
from diffattn.guidance.engine import Perturber

from . import RESULTS
from .timing import Time, in_turns
from .tiny import CALL, PROMPTS, load, run

WANTED = 1.45  # of unguided classifier-free guidance
SCALE = 2.0
TOKENS = 9 * 16 * 16


def measure(pipe: Any, heads: HeadSet, steps: int, seconds: float) -> dict[str, Time]:
    """Seconds of one clip, unguided and guided in turns: up to the latents, and with decoding."""

    def clip(guided: bool, output_type: str) -> None:
        diffattn.unguide(pipe)
        if guided:
            diffattn.guide(pipe, heads, scale=SCALE)
        run(pipe, PROMPTS[:1], 0, output_type, num_inference_steps=steps)

    runs = {
        f"{'guided' if guided else 'unguided'}, {part}": partial(clip, guided, kind)
        for part, kind in (("denoising", "latent"), ("whole clip", "pt"))
        for guided in (False, True)
    }
    times = in_turns(runs, "cpu", seconds)
    diffattn.unguide(pipe)
    return times


def predicted(transformer: Any, heads: HeadSet) -> tuple[float, float]:
    """What the perturbed pass costs, in passes: `1 - (l0 + attention share) / L`, and counted in operations.

    The attention share is the part of a block that the products of its self-attention are.
    """
    with torch.device("meta"):
        model = type(transformer).from_config(transformer.config).eval()
        inputs = {
            "hidden_states": torch.empty(1, model.config.in_channels, 9, 32, 32),
            "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 512, model.config.text_dim),
        }
    perturber, config = Perturber(model), model.config
    selection = heads.select(perturber.model, heads.guidance)
    with perturber.recording(selection) as prefix:
        whole = _operations(model, inputs)
    with perturber.perturbing(selection, prefix):
        counted = _operations(model, inputs)
    attention = 4 * TOKENS**2 * config.num_attention_heads * config.attention_head_dim
    share = attention / (whole / config.num_layers)
    return 1 - (selection.first_block(perturber.model) + share) / config.num_layers, counted / whole


def _operations(model: Any, inputs: dict) -> int:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def write(times: dict[str, Time], cost: tuple[float, float], args: argparse.Namespace) -> str:
    """The whole page."""
    size = f"{CALL['width']}x{CALL['height']}x{CALL['num_frames']}"
    lines = [
        "# Wall time of guidance on the embedded model",
        "",
        f"`python -m benchmarks.guidance --heads {' '.join(args.heads)} --steps {args.steps}`: one clip of {size}, "
        f"{args.steps} steps, classifier-free guidance {CALL['guidance_scale']:g} in two calls, on "
        f"{torch.get_num_threads()} threads of a CPU. Unguided and guided runs take turns; seconds are medians ± half "
        "the distance between the quartiles.",
        "",
        "| | unguided | guided | ratio |",
        "|---|---|---|---|",
    ]
    ratios = {}
    for part in ("denoising", "whole clip"):
        plain, guided = times[f"unguided, {part}"], times[f"guided, {part}"]
        ratios[part] = guided.median / plain.median
        lines.append(f"| {part} | {_text(plain)} | {_text(guided)} | **{ratios[part]:.2f}** |")
    met = "yes" if max(ratios.values()) <= WANTED else "**no**"
    lines += [
        "",
        f"- At most {WANTED} of unguided, where a whole third pass would be 1.5: {met}",
        "- Operations: the perturbed pass is predicted to be 1 - (l0 + attention share) / L = "
        f"{cost[0]:.3f} of a pass and counts {cost[1]:.3f}; "
        f"with the two passes there are, a ratio of {1 + cost[0] / 2:.2f} for denoising. "
        "Decoding is the same for both.",
    ]
    return "\n".join(lines) + "\n"


def _text(time: Time) -> str:
    return f"{time.median:.2f} ± {time.spread:.2f} s"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guidance",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--heads", nargs="+", default=["4:0", "5:2"], help="layer:head")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=240.0, help="of the rounds; the first calls come on top")
    parser.add_argument("--output", type=Path, default=RESULTS / "guidance.md")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the page."""
    args = parse_args(argv)
    pipe = load()
    heads = resolve_heads(Perturber(pipe.transformer).model, args.heads)
    cost = predicted(pipe.transformer, heads)
    page = write(measure(pipe, heads, args.steps, args.seconds), cost, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
