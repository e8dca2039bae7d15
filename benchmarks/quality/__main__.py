"""How far every method is from dense attention, at equal density: `python -m benchmarks.quality --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from diffattn import Schedule, TokenGrid
from diffattn.methods._order import block_size

from .. import RESULTS
from ..tiny import LAYERS, PROMPTS, STEPS, held_out_prompts
from . import distances, report
from .contenders import CONTENDERS, contender
from .end_to_end import end_to_end
from .measures import Result, measure
from .sources import CAPTURED_STEPS, ROUGH_OCTAVES, Sample, captured, synthetic

DENSITIES = {source: (0.09, 0.145, 0.25) for source in ("synthetic", "rough", "captured")}
DENSITIES["end-to-end"], DENSITIES["schedule"] = (0.15, 0.3), (0.44,)
SEEDS = {"synthetic": 3, "rough": 3, "captured": 1, "end-to-end": 1, "schedule": 1}
EVERY_CALL = Schedule(dense_start=0, dense_layers=0)
SCHEDULES = [
    Schedule(dense_start, 0, dense_layers, refresh)
    for dense_start, dense_layers, refresh in (
        (0.2, 1, 1),
        (0.1, 0, 1),
        (0.2, 0, 1),
        (0.3, 0, 1),
        (0.2, 0, 2),
        (0.2, 0, 4),
    )
]


def study_synthetic(options: argparse.Namespace) -> tuple[list[Result], str]:
    """Part (a): random fields, smooth or rough."""
    grid, octaves = TokenGrid(*options.grid), ROUGH_OCTAVES if options.source == "rough" else 1
    results = _measure(synthetic(grid, options.seeds, octaves), options.densities, options.seeds)
    text = (
        f"Random fields of {octaves} octave{'s' * (octaves > 1)} on {grid}, four heads of 64 channels "
        f"(`diffattn.analysis.synthetic.structured_qkv`), {_seeds(options)}; mean of the samples, density reached in "
        f"parentheses.\n\n{report.table(results, 'error')}\n\n{report.findings(results, 'error')}\n"
    )
    return results, text


def study_captured(options: argparse.Namespace) -> tuple[list[Result], str]:
    """Part (b): queries, keys and values of the embedded model, by layer and step."""
    samples = list(captured(options.seeds))
    results = _measure(samples, options.densities, len(samples))
    grid, middle = samples[0].grid, sorted(options.densities)[len(options.densities) // 2]
    text = (
        f"{len(samples)} attention calls of the embedded model on {grid} ({grid.tokens} tokens): every layer, steps "
        f"{', '.join(map(str, CAPTURED_STEPS))} of {STEPS} from 0, both guidance passes, {len(PROMPTS)} prompts, "
        f"{_seeds(options)}. So many tokens are cut into blocks of "
        f"{block_size(grid, 32)}, {-(-grid.tokens // block_size(grid, 32))} in all.\n\n"
        f"{report.table(results, 'error')}\n\n{report.findings(results, 'error')}\n\n## By layer\n\n"
        f"{report.table_by(results, 'error', 'layer', middle)}\n\n## By step\n\n"
        f"{report.table_by(results, 'error', 'step', middle)}\n\n## Where the heads look\n\n"
        "Share of the attention mass by distance in frames, by distance in tokens within the frame (the larger of "
        f"rows and columns), and held by the best tenth of the keys.\n\n{distances.table(samples)}\n"
    )
    return results, text


def study_end_to_end(options: argparse.Namespace) -> tuple[list[Result], str]:
    """Part (c): videos of the embedded model."""
    schedule = EVERY_CALL if options.every_call else Schedule()
    names = [(name, density) for density in options.densities for name in options.contenders]
    cases = [(name, density, contender(name, density), schedule) for name, density in names]
    prompts = held_out_prompts(options.prompts)
    results = end_to_end(cases, prompts, options.seeds)
    tables = [f"{report.table(results, score)}\n\n{report.findings(results, score)}" for score in ("psnr", "ssim")]
    text = (
        f"{_videos(options, prompts)}{schedule}; density of the sparse calls in parentheses.\n\n{tables[0]}\n\n"
        f"## Prompt by prompt\n\nPSNR less that of `auto` on the same prompt and seed, dB: mean ± standard error.\n\n"
        f"{report.paired(results, 'psnr', 'auto')}\n\n## SSIM\n\n{tables[1]}\n"
    )
    return results, text


def study_schedule(options: argparse.Namespace) -> tuple[list[Result], str]:
    """Part (d): at equal work, which steps and layers are best dense, and for how long a plan is good."""
    cases = [
        (str(schedule), share, contender("auto", _density(schedule, share)), schedule)
        for share in options.densities
        for schedule in SCHEDULES
    ]
    prompts = held_out_prompts(options.prompts)
    results = end_to_end(cases, prompts, options.seeds)
    base = str(SCHEDULES[0])
    text = (
        f"{_videos(options, prompts)}`auto`, each schedule with the density that makes the whole run compute the same "
        f"share of all products; the density in parentheses; PSNR in dB.\n\n{report.table(results, 'psnr')}\n\n"
        f"Less that of `{base}` on the same prompt and seed, mean ± standard error.\n\n"
        f"{report.paired(results, 'psnr', base)}\n"
    )
    return results, text


def _density(schedule: Schedule, share: float) -> float:
    """Of the sparse calls, for `share` of all products of the embedded model's run to be computed."""
    calls = [
        (step, layer) for step in schedule.sparse_steps(STEPS) for layer in range(LAYERS)
        if not schedule.is_dense_layer(layer, LAYERS)
    ]  # fmt: skip
    sparse = len(calls) / (STEPS * LAYERS)
    return (share - (1 - sparse)) / sparse


def _videos(options: argparse.Namespace, prompts: tuple[str, ...]) -> str:
    listed = "\n".join(f"- {prompt}" for prompt in prompts)
    return (
        f"Videos of the embedded model, 33 frames of 128x128, {STEPS} steps, against the dense one of the same prompt "
        f"and seed; {_seeds(options)}; {len(prompts)} prompts of combinations that training never showed:\n\n{listed}"
        "\n\n"
    )


STUDIES = {
    "synthetic": (study_synthetic, ["error"], "structured fields"),
    "rough": (study_synthetic, ["error"], "rough fields"),
    "captured": (study_captured, ["error"], "captured queries, keys and values"),
    "end-to-end": (study_end_to_end, ["psnr", "ssim"], "videos, end to end"),
    "schedule": (study_schedule, [], "dense steps, dense layers and the age of plans"),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, and write tables and plot."""
    options = _parser().parse_args(arguments)
    options.seeds = options.seeds or SEEDS[options.source]
    options.densities = options.densities or DENSITIES[options.source]
    options.out.mkdir(parents=True, exist_ok=True)
    study, scores, title = STUDIES[options.source]
    results, text = study(options)
    stem = f"quality-{options.source}{'-every-call' * options.every_call}"
    command = " ".join(["python -m benchmarks.quality", *(sys.argv[1:] if arguments is None else arguments)])
    picture = f"![plot]({stem}.png)\n\n" if scores else ""
    text = f"# Quality at equal density: {title}\n\n`{command}`\n\n{picture}{text}"
    text += "\nWhat this shows, and what it does not: [quality.md](quality.md).\n"
    print(text)
    if scores:
        report.plot(results, scores, options.out / f"{stem}.png")
    (options.out / f"{stem}.md").write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--source", choices=STUDIES, default="synthetic", help="what to measure on")
    parser.add_argument("--grid", type=int, nargs=3, default=(12, 32, 32), metavar=("FRAMES", "HEIGHT", "WIDTH"),
                        help="of synthetic and rough fields")  # fmt: skip
    parser.add_argument("--seeds", type=int, help=f"seeds, from 0; by default {SEEDS}")
    parser.add_argument("--densities", type=float, nargs="+", help="by default 0.09, 0.145 and 0.25")
    parser.add_argument("--prompts", type=int, default=12, help="end-to-end, schedule: how many")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
                        help="end-to-end: who takes part")  # fmt: skip
    parser.add_argument("--every-call", action="store_true", help="end-to-end: no dense steps and layers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    return parser


def _measure(samples: Iterable[Sample], densities: Iterable[float], count: int) -> list[Result]:
    return [result for sample in tqdm(samples, total=count, unit="sample") for result in measure(sample, densities)]


def _seeds(options: argparse.Namespace) -> str:
    return f"seeds 0 to {options.seeds - 1}" if options.seeds > 1 else "seed 0"


if __name__ == "__main__":
    main()
