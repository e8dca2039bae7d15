"""How far every method is from dense attention, at equal density: `python -m benchmarks.quality --help`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import diffattn
from diffattn import TokenGrid, attend

from .controls import best_tokens, dense, run_blocks
from .sources import Sample, captured, synthetic

DENSITIES = (0.09, 0.145, 0.25)
METHODS = {
    "auto": {},
    "pyramid": {},
    "rectified": {},
    "vmoba": {},
    "vmoba, tile routing": {"routing": "tile"},
    "neighborhood": {},
    "radial": {},
}
CONTROLS = ("top-k tokens (oracle)", "top-k blocks", "random blocks")


@dataclass(frozen=True)
class Result:
    """One method on one sample: relative output error, density reached, and planning time over that of dense."""

    method: str
    asked: float
    reached: float
    error: float
    plan_share: float


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of `exact`, over all tokens, heads and channels."""
    return float((out.double() - exact.double()).norm() / exact.double().norm())


def measure(sample: Sample, densities: Iterable[float]) -> list[Result]:
    """Every method and control on one sample."""
    start = time.perf_counter()
    exact = dense(sample.query, sample.key, sample.value)
    dense_time = time.perf_counter() - start
    results = []
    for density in densities:
        for name, options in METHODS.items():
            config = diffattn.config(name.split(",")[0], density=density, **options)
            start = time.perf_counter()
            plan = config.plan(sample.grid, sample.query, sample.key, layer=sample.layer)
            planning = (time.perf_counter() - start) / dense_time
            error = relative_error(attend(sample.query, sample.key, sample.value, plan), exact)
            results.append(Result(name, density, plan.density, error, planning))
        results += [Result(name, density, *numbers, 0.0) for name, *numbers in _controls(sample, density, exact)]
    return results


def _controls(sample: Sample, density: float, exact: Tensor) -> list[tuple[str, float, float]]:
    tensors = sample.query, sample.key, sample.value
    found = [(CONTROLS[0], density, relative_error(best_tokens(*tensors, density), exact))]
    for name, seed in zip(CONTROLS[1:], (None, 0)):
        out, reached = run_blocks(sample.grid, *tensors, density, seed)
        found.append((name, reached, relative_error(out, exact)))
    return found


def average(results: list[Result]) -> dict[tuple[str, float], Result]:
    """Means over samples, by method and density asked for."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result.method, result.asked), []).append(result)
    return {at: Result(*at, *_means(group)) for at, group in groups.items()}


def _means(group: list[Result]) -> list[float]:
    return [sum(getattr(result, name) for result in group) / len(group) for name in ("reached", "error", "plan_share")]


def table(means: dict[tuple[str, float], Result]) -> str:
    """Markdown: a row for each method, error and density reached for each density asked for."""
    densities = sorted({density for _, density in means})
    lines = [
        "| method | " + " | ".join(f"error at {density:g}" for density in densities) + " | planning / dense |",
        "|---|" + "---|" * (len(densities) + 1),
    ]
    for method in dict.fromkeys(method for method, _ in means):
        cells = [means[method, density] for density in densities]
        errors = [f"{cell.error:.3f} ({cell.reached:.3f})" for cell in cells]
        planning = max(cell.plan_share for cell in cells)
        lines.append(f"| {method} | " + " | ".join(errors) + f" | {f'{planning:.1%}' if planning else '-'} |")
    return "\n".join(lines)


def plot(means: dict[tuple[str, float], Result], path: Path) -> None:
    """Error against density reached, one line for each method, as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit('the plot needs matplotlib: pip install "diffattn[viz]"') from error
    figure = Figure(figsize=(8.5, 5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(method for method, _ in means):
        line = sorted((cell.reached, cell.error) for (name, _), cell in means.items() if name == method)
        axes.plot(*zip(*line), "o--" if method in CONTROLS else "o-", label=method)
    axes.set(xlabel="density (share of query-key products)", ylabel="relative output error", yscale="log")
    axes.grid(True, which="both", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print the table, and write table and plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--grid", type=int, nargs=3, default=(12, 32, 32), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--seeds", type=int, default=3, help="samples, each with its own seed (default: 3)")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--captured", type=Path, help="folder of captured query, key and value (see sources.py)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="folder to write to")
    options = parser.parse_args()
    samples = captured(options.captured) if options.captured else synthetic(TokenGrid(*options.grid), options.seeds)
    results, names = [], []
    with torch.no_grad():
        for sample in samples:
            results += measure(sample, options.densities)
            names.append(sample.name)
    if not names:
        raise SystemExit(f"no *.safetensors in {options.captured}")
    text = table(average(results))
    print(text)
    stem = "quality-captured" if options.captured else "quality-synthetic"
    plot(average(results), options.out / f"{stem}.png")
    about = f"Relative output error (density reached); mean over: {'; '.join(names)}.\n\n"
    command = "python -m benchmarks.quality" + (" --captured FOLDER" if options.captured else "")
    (options.out / f"{stem}.md").write_text(f"{about}{text}\n\nMade by `{command}`.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
