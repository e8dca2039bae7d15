"""What a calibration brings at equal density, on prompts it has not seen: `python -m benchmarks.calibration`."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffattn.kernels.attend import choose_impl
from tqdm.auto import tqdm

import diffattn
from diffattn import AttentionConfig, CalibratedConfig, Schedule
from diffattn.analysis.calibration import Settings
from diffattn.hunting.log import SearchLog
from examples.tiny_wan.evaluate import held_out_scenes

from . import RESULTS
from .quality.end_to_end import similarity
from .quality.report import markdown
from .tiny import CALL, load, run

SEEN, UNSEEN = 1, 2  # seeds of the prompts to calibrate with, and of those to compare on
EVERY_LAYER = Schedule(dense_layers=0)


def shuffled(calibrated: CalibratedConfig, seed: int) -> CalibratedConfig:
    """The densities of a calibration given to other heads, layers and parts, drawn at random."""
    values = [density for part in calibrated.densities for heads in part if heads for density in heads]
    random.Random(seed).shuffle(values)
    drawn = iter(values)
    densities = [
        [None if heads is None else [next(drawn) for _ in heads] for heads in part] for part in calibrated.densities
    ]
    return replace(calibrated, densities=densities)


def prompts(count: int, seed: int) -> list[str]:
    """Captions of scenes that the embedded model was not trained on."""
    return [scene.caption(number) for number, scene in enumerate(held_out_scenes(count, seed))]


def compare(
    pipe: Any, contenders: dict[str, AttentionConfig], captions: list[str], options: dict, log: SearchLog
) -> dict[str, list[dict[str, float]]]:
    """PSNR and SSIM to the dense video, and the density reached, of every contender for every prompt."""
    for number, caption in enumerate(tqdm(captions, unit="prompt")):
        if all((number, name) in log for name in contenders):
            continue
        exact = run(pipe, (caption,), UNSEEN + number, **options)[0]
        for name, config in contenders.items():
            diffattn.enable(pipe, config, schedule=EVERY_LAYER, impl=choose_impl(pipe.device)[0])
            video = run(pipe, (caption,), UNSEEN + number, **options)[0]
            scores = {**similarity(video, exact), "density": diffattn.summary(pipe).density}
            log.add([((number, name), scores)])
            diffattn.disable(pipe)
    return {name: [log[number, name] for number in range(len(captions))] for name in contenders}


def table(found: dict[str, list[dict[str, float]]], base: str) -> str:
    """Means, and differences to one contender on the same prompts with their standard errors."""
    rows = []
    for name, scores in found.items():
        gains = [ours["psnr"] - theirs["psnr"] for ours, theirs in zip(scores, found[base])]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        means = {key: statistics.fmean(score[key] for score in scores) for key in scores[0]}
        gain = "" if name == base else f"{statistics.fmean(gains):+.2f} ± {error:.2f}"
        each = " ".join(f"{score['psnr']:.1f}" for score in scores)
        rows.append([name, f"{means['density']:.3f}", f"{means['psnr']:.2f}", gain, f"{means['ssim']:.4f}", each])
    return markdown(["", "density", "PSNR, dB", f"beside {base}", "SSIM", "PSNR of each prompt"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Calibrate, compare, print and write the table."""
    options = _parser().parse_args(arguments)
    pipe, call = load(), {**CALL, "num_frames": options.frames, "num_inference_steps": options.steps}
    settings = Settings(probe=options.probe, parts=options.parts, samples=options.samples)
    calibrated = diffattn.calibrate(
        pipe, prompts(options.prompts, SEEN), density=options.density, config=options.method,
        schedule=EVERY_LAYER, settings=settings, resume=options.resume, **call,
    )  # fmt: skip
    uniform = replace(calibrated.base, density=options.density)
    contenders = {"uniform": uniform, "calibrated": calibrated, "random": shuffled(calibrated, 0)}
    sizes = {"num_frames": options.frames, "num_inference_steps": options.steps}
    log = SearchLog(
        options.resume and options.resume / "unseen", {name: config.to_dict() for name, config in contenders.items()}
    )
    found = compare(pipe, contenders, prompts(options.unseen, UNSEEN), sizes, log)
    expected = calibrated.expected
    command = " ".join(["python -m benchmarks.calibration", *(sys.argv[1:] if arguments is None else arguments)])
    text = (
        f"# What a calibration brings\n\n`{command}`\n\nThe embedded model, {options.frames} frames of 128x128, "
        f"{options.steps} steps, {EVERY_LAYER}, method {options.method}; calibrated on {options.prompts} prompts, "
        f"compared on {options.unseen} others with the dense video of the same noise. Random: the densities of the "
        f"calibration, given to other heads, layers and parts.\n\n{table(found, 'uniform')}\n\n"
        f"On its own prompts the calibration has error {expected['error']} of the latents "
        f"({expected['least_error']} to {expected['most_error']}), one density for all {expected['uniform_error']}. "
        f"Mean density by layer: {', '.join(map(str, expected['layers']))}; by part: "
        f"{', '.join(f'{_mean(part):.3f}' for part in calibrated.densities)}.\n"
    )
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")


def _mean(part: tuple) -> float:
    return statistics.fmean(density for heads in part if heads for density in heads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--prompts", type=int, default=4, help="to calibrate with")
    parser.add_argument("--unseen", type=int, default=12, help="prompts to compare on")
    parser.add_argument("--probe", choices=("layer", "head"), default="layer")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2, help="steps of each part to measure errors in")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--resume", type=Path, help="folder of the logs of calibration and comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "calibration.md")
    return parser


if __name__ == "__main__":
    main()
