"""Results of the quality study as Markdown tables, sentences and plots."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .contenders import CONTROLS, ORACLES
from .measures import Result, grouped, mean

HIGHER_IS_BETTER = ("psnr", "ssim")
NAMES = {"error": "relative output error", "psnr": "PSNR to the dense video, dB", "ssim": "SSIM to the dense video"}
DIGITS = {"error": 3, "psnr": 1, "ssim": 3}
TOP, RANDOM = "top-k blocks", "random blocks"
TOLERANCE = 1.1  # a method that reached this many times the density of a control is not compared with it
# Why a method can be behind a control: printed under the tables for those that are.
REASONS = {
    "auto": "covering everything costs 1/block of the density before anything is exact, much where blocks are small",
    "pyramid": "it drops blocks, and in the coarser levels a mean stands for up to 8 keys",
    "rectified": (
        "R and C are the same for all queries of a block, as published: where its queries differ most of the rest is "
        "left to the critical blocks, which then are too few"
    ),
    "sol": "neighbors and one mean of every block come first, much where the sequence is short",
    "vmoba": "a query chooses among few chunks, cut in time or in space alone in two layers of three",
    "vmoba, tile routing": "as vmoba, and all queries of a tile choose together, by their mean",
    "neighborhood": "a window knows positions, not content, and is one for all heads",
    "radial": "a static mask, the same for all heads, and on few small frames never narrower than a tile",
}


def table(results: list[Result], score: str) -> str:
    """A row for each contender; score, and density reached, for each density asked for."""
    cells = grouped(results, "name", "asked")
    densities = sorted({asked for _, asked in cells})
    rows = []
    for name in _names(results):
        row = [cells[name, density] for density in densities]
        rows.append([name, *(f"{_text(cell, score)} ({mean_density(cell):.3f})" for cell in row)])
    return markdown(["", *(f"{score} at {density:g}" for density in densities)], rows)


def paired(results: list[Result], score: str, base: str) -> str:
    """A row for each contender: what it scores above `base` on the same samples, mean and standard error."""
    cells = grouped(results, "name", "asked")
    densities = sorted({asked for _, asked in cells})
    rows = [
        [name, *(_difference(cells[name, density], cells[base, density], score) for density in densities)]
        for name in _names(results)
        if name != base
    ]
    return markdown(["", *(f"at {density:g}" for density in densities)], rows)


def _difference(cell: list[Result], base: list[Result], score: str) -> str:
    gains = [one.scores[score] - other.scores[score] for one, other in zip(cell, base, strict=True)]
    error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
    return f"{fmean(gains):+.2f} ± {error:.2f}"


def table_by(results: list[Result], score: str, label: str, density: float) -> str:
    """A row for each contender and a column for each value of a label, at one density."""
    cells = grouped([result for result in results if result.asked == density], "name", label)
    values = sorted({value for _, value in cells})
    rows = [[name, *(_text(cells[name, value], score) for value in values)] for name in _names(results)]
    return markdown([f"{score} at {density:g}", *(f"{label} {value}" for value in values)], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def findings(results: list[Result], score: str) -> str:
    """Sentences on who is better than an oracle, or not better than blocks, the best or random, at which density."""
    cells, names = grouped(results, "name", "asked"), _names(results)
    ahead = {control: _those(cells, control, score, better=True) for control in ORACLES if control in names}
    behind = {control: _those(cells, control, score, better=False) for control in (TOP, RANDOM) if control in names}
    sentences = [f"Better than {control}: {_listed(found)}." for control, found in ahead.items()]
    sentences += [f"Not better than {control}: {_listed(found)}." for control, found in behind.items()]
    over = {f"{name} ({mean_density(cell):.2f} for {density:g})" for (name, density), cell in cells.items()
            if mean_density(cell) > TOLERANCE * density}  # fmt: skip
    if over:
        sentences.append(
            f"Reaches a higher density than was asked for, so that its row flatters it: {'; '.join(sorted(over))}."
        )
    losers = [name for name in names if any(name in found for found in behind.values())]
    why = "\n".join(f"- {name}: {REASONS[name]}." for name in losers if name in REASONS)
    return " ".join(sentences) + (f"\n\n{why}" if why else "")


def _those(cells: dict[tuple, list[Result]], control: str, score: str, better: bool) -> dict[str, list[str]]:
    """At which densities which methods are, or are not, better than a control."""
    found: dict[str, list[str]] = {}
    for (name, density), cell in cells.items():
        if name not in CONTROLS and _better(cell, cells[control, density], score) == better:
            found.setdefault(name, []).append(f"{density:g}")
    return found


def _listed(found: dict[str, list[str]]) -> str:
    return "; ".join(f"{name} (at {', '.join(at)})" for name, at in found.items()) or "none"


def mean_density(cell: list[Result]) -> float:
    """Mean density reached."""
    return sum(result.reached for result in cell) / len(cell)


def plot(results: list[Result], scores: list[str], path: Path) -> None:
    """Each score against density reached, one line for each contender, as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit('the plot needs matplotlib: pip install "diffattn[viz]"') from error
    figure = Figure(figsize=(5.2 * len(scores) + 2.6, 4.6), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores):
        _draw(axes, results, score)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)


def _draw(axes: Any, results: list[Result], score: str) -> None:
    for index, name in enumerate(_names(results)):
        cells = [cell for (other, _), cell in grouped(results, "name", "asked").items() if other == name]
        line = sorted((mean_density(cell), mean(cell, score)) for cell in cells)
        style = {"color": f"C{index}", "marker": "o"}
        if name in CONTROLS:
            style = {"color": str(0.1 + 0.2 * list(CONTROLS).index(name)), "marker": "s", "linestyle": "--"}
        axes.plot(*zip(*line), markersize=5, label=name, **style)
    axes.set(xlabel="density (share of query-key products computed)", ylabel=NAMES[score])
    if score == "error":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(True, which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _better(cell: list[Result], control: list[Result], score: str) -> bool:
    ours, theirs = mean(cell, score), mean(control, score)
    return ours > theirs if score in HIGHER_IS_BETTER else ours < theirs


def _names(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(result.name for result in results))


def _text(cell: list[Result], score: str) -> str:
    return f"{mean(cell, score):.{DIGITS[score]}f}"
