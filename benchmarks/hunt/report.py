"""What a search for heads found, as Markdown."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

EXHAUSTIVE, SCREENED = "exhaustive (HeadHunter)", "gradient screen, exact on the shortlist"


@dataclass(frozen=True)
class Row:
    """A way to choose heads, and the held-out scores of the clips they guide."""

    name: str
    heads: str
    scores: torch.Tensor
    clips: int = 0
    passes: float = 0.0


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


def check_line(checked: list[Row], args: argparse.Namespace) -> str:
    """What the screened heads do where the model is used."""
    mean, error = gain(checked[1], checked)
    return (
        f"- the screened heads at 128x128, {args.check_steps} steps, {len(checked[0].scores)} held-out captions: "
        f"{float(checked[0].scores.mean()):.4f} unguided, {mean:+.4f} ({error:.4f}) guided"
    )


def _yes(shown: bool) -> str:
    return "yes" if shown else "**no**"


def write(sections: dict[str, list[str]], args: argparse.Namespace, seconds: float) -> str:
    """The whole page of lines by objective."""
    lines = ["# Search for heads on the embedded model", ""]
    lines += [
        f"`python -m benchmarks.hunt`, {args.size}x{args.size}, 33 frames, {args.steps} steps, classifier-free "
        f"guidance {args.guidance_scale:g}, w = {args.scale:g}, u = {args.strength:g}. Searched on {args.prompts} "
        f"captions of training, {args.rounds} rounds of {args.top_k} heads, the screen keeps {args.keep:g} of the "
        f"heads; scored on {args.held_out} captions that training never shows, with other noise. Scores are of the "
        "latents, which are pictures of a quarter of the size. Gains are paired by "
        "caption. A pass is one sample through all blocks; a backward pass counts as two. "
        f"{seconds / 60:.0f} minutes on {torch.get_num_threads()} threads of a CPU.",
    ]
    for name, found in sections.items():
        lines += ["", f"## Objective: {name}", "", *found]
    return "\n".join(lines) + "\n"
