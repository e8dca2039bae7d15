"""Clips of the embedded model with and without a negative prompt, judged and drawn: `python -m docs.tools.nag`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import diffattn
from benchmarks.tiny import load, run
from diffattn import NAGConfig
from diffattn.models.table import with_block
from examples.tiny_wan.judge import judge

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "nag.json"
PAGE = ROOT / "docs" / "nag.md"
PICTURE = ROOT / "docs" / "images" / "nag.png"
START, END = "<!-- judged: python -m docs.tools.nag -->", "<!-- end of judged -->"
NEGATIVE = "red"
# name, prompt, negative prompt
ARMS = (
    ("open", "a circle moves right over a blue background", None),
    ("open, guided", "a circle moves right over a blue background", NEGATIVE),
    ("named, guided", "a red circle moves right over a blue background", NEGATIVE),
)
SIZE = {"num_frames": 17, "num_inference_steps": 4, "guidance_scale": 1.0}
PICTURED = 4
FRAMES = (0, 8, 16)


def make_clip(pipe: Any, prompt: str, negative: str | None, seed: int) -> tuple[Tensor, float]:
    """A clip `(17, 3, 128, 128)` in [0, 1], and the processor time it took in seconds."""
    if negative is not None:
        diffattn.guide(pipe, NAGConfig(negative=negative))
    start = time.process_time()
    clip = run(pipe, (prompt,), seed, **SIZE)[0]
    seconds = time.process_time() - start
    diffattn.unguide(pipe)
    return clip, seconds


def study(seeds: int) -> list[dict]:
    """A row for each seed, with the verdict of the judge by arm; the file and the picture are written on the way."""
    pipe, rows, strips = load(), [], []
    make_clip(pipe, *ARMS[0][1:], seed=0)  # the first call sets up what later ones find
    for seed in range(seeds):
        row, strip = {"seed": seed}, []
        for name, prompt, negative in ARMS:
            clip, seconds = make_clip(pipe, prompt, negative, seed)
            row[name] = {**judge(2 * clip.float() - 1), "seconds": round(seconds, 2)}
            strip.append(torch.cat([clip[frame] for frame in FRAMES], 2))
        rows.append(row)
        RESULTS.write_text(json.dumps({**SIZE, "negative": NEGATIVE, "seeds": rows}, indent=1) + "\n")
        strips.append(strip)
        if seed + 1 == min(PICTURED, seeds):
            draw(strips)
    return rows


def draw(strips: list[list[Tensor]]) -> None:
    """A row for each seed, a column for each arm: first, middle and last frame."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit('the picture needs matplotlib: pip install "diffattn[viz]"') from error
    figure = Figure(figsize=(3.6 * len(ARMS), 1.3 * len(strips) + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots(len(strips), len(ARMS), squeeze=False)
    for column, (_, prompt, negative) in enumerate(ARMS):
        title = prompt.partition(" moves")[0] + " ..." + (f", negative prompt {negative!r}" if negative else "")
        axes[0, column].set_title(title, fontsize=10)
        for row, strip in enumerate(strips):
            axes[row, column].imshow(strip[column].permute(1, 2, 0).float().clamp(0, 1).numpy())
            axes[row, column].set(xticks=[], yticks=[])
    figure.savefig(PICTURE)


def table(rows: list[dict]) -> str:
    """What the judge found, in Markdown."""
    lines = [
        "| prompt | negative prompt | red among the objects | background blue | an object moves right |",
        "|---|---|---|---|---|",
    ]
    for name, prompt, negative in ARMS:
        found = [row[name] for row in rows]
        red = sum(any(item["colour"] == "red" for item in one["items"]) for one in found)
        blue = sum(one["background"] == "blue" for one in found)
        right = sum(any(item["motion"] == "right" for item in one["items"]) for one in found)
        shares = " | ".join(f"{count} of {len(rows)}" for count in (red, blue, right))
        lines.append(f"| {prompt} | {'none' if negative is None else negative} | {shares} |")
    ratio = median(row["open, guided"]["seconds"] for row in rows) / median(row["open"]["seconds"] for row in rows)
    return "\n".join([*lines, "", f"A guided clip takes {ratio:.2f} times the processor time of one that is not."])


def main(argv: list[str] | None = None) -> None:
    """Generate, judge, and write the table into the page."""
    parser = argparse.ArgumentParser(prog="python -m docs.tools.nag", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="write the table from the results there are")
    args = parser.parse_args(argv)
    rows = json.loads(RESULTS.read_text())["seeds"] if args.table else study(args.seeds)
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), START, END, table(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
