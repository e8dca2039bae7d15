"""What a search for heads finds on the embedded model, and what it costs: `python -m benchmarks.hunt --help`."""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import diffattn
from diffattn import HeadSet
from diffattn.cli.load import load_pipeline
from diffattn.guidance.model import map_model
from diffattn.hunting import Objective, Sharpness
from diffattn.hunting.prompts import make_pairs
from diffattn.hunting.runner import Runner
from examples.tiny_wan.evaluate import held_out_scenes
from examples.tiny_wan.likeness import likeness
from examples.tiny_wan.scenes import combinations, sample_scene

OBJECTIVES = {"sharpness": Sharpness(), "likeness": Objective(likeness, "likeness")}
EXHAUSTIVE, SCREENED = "exhaustive (HeadHunter)", "gradient screen, exact on the shortlist"
SEARCHES = {
    EXHAUSTIVE: {"screen": None, "halving": False},
    "halving": {"screen": None, "halving": True},
    SCREENED: {"screen": "gradient", "halving": False},
    "gradient screen, halving": {"screen": "gradient", "halving": True},
}
RANDOM_SETS = 3


@dataclass(frozen=True)
class Row:
    """A way to choose heads, and the held-out scores of the clips they guide."""

    name: str
    heads: str
    scores: torch.Tensor
    clips: int = 0
    passes: float = 0.0


def training_captions(count: int) -> list[str]:
    """Captions of one object, of combinations that training shows, drawn with a fixed seed."""
    import numpy as np

    rng = np.random.default_rng(5)
    pool = list(combinations(held_out=False))
    return [sample_scene(rng, pool[i], objects=1).caption(n) for n, i in enumerate(rng.permutation(len(pool))[:count])]


def held_out_captions(count: int) -> list[str]:
    """Captions of combinations that training never shows."""
    return [scene.caption(n) for n, scene in enumerate(held_out_scenes(count, seed=7))]


@torch.no_grad()
def held_out_scores(pipe: Any, objective: Objective, heads: Sequence, args: argparse.Namespace) -> torch.Tensor:
    """Scores `(N,)` of held-out captions with seeds of their own."""
    captions = held_out_captions(args.held_out)
    pairs = make_pairs(captions, range(1000, 1000 + len(captions)))
    guidance = diffattn.GuidanceConfig(scale=args.scale)
    runner = Runner(pipe, objective, pairs, guidance, args.strength, options=call(args))
    return torch.tensor([runner.scores(pair, [heads])[0] for pair in range(len(pairs))])


def call(args: argparse.Namespace) -> dict:
    """Arguments of the pipeline."""
    size = {"height": args.size, "width": args.size, "num_frames": args.frames}
    return {**size, "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale}


def names(heads: HeadSet) -> list[str]:
    """Heads as `layer:head`."""
    return [f"{head.layer}:{head.head}" for head in heads]


def measure(pipe: Any, objective: Objective, args: argparse.Namespace) -> list[Row]:
    """Every search, with no heads and random ones beside them, on the same held-out prompts and noise."""
    captions = training_captions(args.prompts)
    rows = [Row("unguided", "", held_out_scores(pipe, objective, [], args))]
    rows.append(random_heads(pipe, objective, args))
    for name, how in SEARCHES.items():
        folder = args.resume and args.resume / re.sub(r"\W+", "-", f"{objective.name} {name}").strip("-")
        found = diffattn.hunt(
            pipe,
            objective,
            captions,
            rounds=args.rounds,
            top_k=args.top_k,
            keep=args.keep,
            scale=args.scale,
            strength=args.strength,
            resume=folder,
            **how,
            **call(args),
        )
        scores = held_out_scores(pipe, objective, names(found), args)
        short = ", ".join(name.replace("blocks.", "").replace(".attn1", "") for name in names(found))
        rows.append(Row(name, short, scores, found.search["clips"], found.search["passes"]))
    return rows


def random_heads(pipe: Any, objective: Objective, args: argparse.Namespace) -> Row:
    """The mean over some random sets of as many heads."""
    rng, model = random.Random(0), map_model(pipe.transformer)
    pool = [f"{layer}:{head}" for layer, count in model.layers.items() for head in range(count)]
    sets = [rng.sample(pool, args.rounds * args.top_k) for _ in range(RANDOM_SETS)]
    scores = torch.stack([held_out_scores(pipe, objective, heads, args) for heads in sets])
    return Row(f"random heads, mean of {RANDOM_SETS} sets", "", scores.mean(0))


def gain(row: Row, rows: list[Row]) -> tuple[float, float]:
    """Mean gain over unguided, and its standard error, paired by prompt."""
    difference = row.scores - rows[0].scores
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


def table(rows: list[Row]) -> list[str]:
    """A Markdown table."""
    full = next(row for row in rows if row.name == EXHAUSTIVE)
    best = gain(full, rows)[0]
    lines = ["| heads | held-out score | gain (standard error) | of the exhaustive gain | passes | of exhaustive |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        mean, error = gain(row, rows)
        shown = [f"{float(row.scores.mean()):.4f}", f"{mean:+.4f} ({error:.4f})", f"{mean / best:.0%}"]
        shown += [f"{row.passes:,.0f}", f"{row.passes / full.passes:.0%}"] if row.passes else ["", ""]
        lines.append(f"| {row.name}{f': {row.heads}' if row.heads else ''} | {' | '.join(shown)} |")
    return lines


def verdict(rows: list[Row]) -> list[str]:
    """What was to be shown, and whether it was."""
    by_name = {row.name: row for row in rows}
    full, fast = by_name[EXHAUSTIVE], by_name[SCREENED]
    errors = [mean / error for mean, error in (gain(row, rows) for row in (full, fast))]
    reached = float(fast.scores.mean() / full.scores.mean())
    share = fast.passes / full.passes
    return [
        f"- heads found improve held-out prompts by more than two standard errors: {_yes(min(errors) > 2)} "
        f"({errors[0]:.1f} exhaustive, {errors[1]:.1f} screened)",
        f"- gradient screen and exact shortlist: {reached:.1%} of the exhaustive search's held-out score at "
        f"{share:.0%} of its passes (wanted: 95 % at 40 %): {_yes(reached >= 0.95 and share <= 0.4)}",
    ]


def _yes(shown: bool) -> str:
    return "yes" if shown else "**no**"


def write(sections: dict[str, list[Row]], args: argparse.Namespace, seconds: float) -> str:
    """The whole page."""
    lines = ["# Search for heads on the embedded model", ""]
    lines += [
        f"`python -m benchmarks.hunt`, {args.size}x{args.size}x{args.frames}, {args.steps} steps, classifier-free "
        f"guidance {args.guidance_scale:g}, w = {args.scale:g}, u = {args.strength:g}. Searched on {args.prompts} "
        f"captions of training, {args.rounds} rounds of {args.top_k} heads, the screen keeps {args.keep:g} of the "
        f"heads; scored on {args.held_out} captions that training never shows, with other noise. Gains are paired by "
        "caption. A pass is one sample through all blocks; a backward pass counts as two. "
        f"{seconds / 60:.0f} minutes on {torch.get_num_threads()} threads of a CPU.",
    ]
    for name, rows in sections.items():
        lines += ["", f"## Objective: {name}", "", *table(rows), "", *verdict(rows)]
    return "\n".join(lines) + "\n"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--keep", type=float, default=0.2, help="share of the heads the screen keeps")
    parser.add_argument("--scale", type=float, default=1.0, help="w")
    parser.add_argument("--strength", type=float, default=1.0, help="u")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="classifier-free guidance, 1 is none")
    parser.add_argument("--resume", type=Path, help="folder for the logs and reports of the searches")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/hunt.md"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Search, score and write the table."""
    args = parse_args(argv)
    start = time.monotonic()
    pipe = load_pipeline("tiny", "cpu", "float32")
    sections = {name: measure(pipe, OBJECTIVES[name], args) for name in args.objectives}
    page = write(sections, args, time.monotonic() - start)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
