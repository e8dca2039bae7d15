"""`diffattn bench`: methods against dense attention, end to end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, device_and_dtype, load_pipeline
from ..analysis.metrics import Comparison, compare_videos
from ..analysis.summary import versions
from ..analysis.trial import Trial, run_trial
from ..methods import METHODS
from . import settings
from .output import write_atomically

PROMPT = "a red circle moves right over a blue background"
WARM_UP_STEPS = 2
COLUMNS = ("method", "density", "attention computed", "seconds", "times dense", "PSNR dB", "SSIM", "MS-SSIM")


@dataclass
class Contender:
    """A method, None for dense, and its runs."""

    name: str
    sparse: settings.Attention | None
    trials: list[Trial]
    comparison: Comparison | None = None

    def run(self, pipe: Any, inputs: dict, seed: int) -> Trial:
        config, schedule, impl = self.sparse or (None, None, "auto")
        return run_trial(pipe, inputs, config, schedule=schedule, impl=impl, seed=seed)


def bench(
    method: Annotated[list[str] | None, typer.Option(help="A method; repeat it for more, all if not given.")] = None,
    prompt: Annotated[str, typer.Option(help="What the videos show.")] = PROMPT,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A .md or .json file to write.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each; the table has the medians.")] = 3,
    model: settings.Model = TINY,
    density: settings.Density = None,
    dense_start: settings.DenseStart = 0.2,
    dense_layers: settings.DenseLayers = 0,
    impl: settings.Impl = "auto",
    height: settings.Height = None,
    width: settings.Width = None,
    frames: settings.Frames = None,
    steps: settings.Steps = None,
    guidance_scale: settings.GuidanceScale = None,
    seed: settings.Seed = 0,
    device: settings.Device = None,
    dtype: settings.Dtype = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time whole runs of dense attention and of each method in turns, and measure how far the videos are apart."""
    _check(output, force, repeats)
    sizes = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
    inputs = {"prompt": prompt, **settings.pipeline_options(model, sizes, None, guidance_scale)}
    names = list(dict.fromkeys(method or sorted(METHODS)))
    if "dense" in names:
        raise CommandError("dense is always run, --method names the methods that are compared with it")
    contenders = [Contender("dense", None, [])]
    for name in names:
        sparse = settings.attention(name, density, dense_start, 0.0, dense_layers, impl)
        contenders.append(Contender(name, sparse, []))
    device, dtype = device_and_dtype(device, dtype)
    pipe = load_pipeline(model, device, dtype)
    pipe.set_progress_bar_config(disable=True)
    check_frames(pipe, inputs.get("num_frames"))
    with user_errors(ValueError, TypeError, ImportError):
        _run(pipe, contenders, inputs, seed, repeats)
    about = {"model": model, "device": device, "dtype": dtype, "seed": seed, "repeats": repeats, **inputs}
    about |= {"versions": versions(), "results": [_result(contender, contenders[0]) for contender in contenders]}
    texts = {".json": json.dumps(about, indent=2) + "\n", ".md": _markdown(about)}
    if output is not None:
        with user_errors(OSError):
            write_atomically(output, lambda partial: Path(partial).write_text(texts[output.suffix], encoding="utf-8"))
    typer.echo(texts[".json" if as_json else ".md"], nl=False)


def _check(output: Path | None, force: bool, repeats: int) -> None:
    if repeats < 1:
        raise CommandError(f"repeats must be at least 1, got {repeats}")
    if output is None:
        return
    if output.suffix not in (".md", ".json"):
        raise CommandError(f"the output must end in .md or .json, got {str(output)!r}")
    if not output.absolute().parent.is_dir():
        raise CommandError(f"the folder of the output does not exist: {output.absolute().parent}")
    if output.exists() and not force:
        raise CommandError(f"{output} exists; --force overwrites it")


def _run(pipe: Any, contenders: list[Contender], inputs: dict, seed: int, repeats: int) -> None:
    """In turns, so that other load affects all alike; first a short run of each, to compile and allocate."""
    turns = [(contender, turn) for turn in range(repeats + 1) for contender in contenders]
    short = {**inputs, "num_inference_steps": WARM_UP_STEPS}
    with typer.progressbar(turns, label="bench", file=typer.get_text_stream("stderr")) as bar:
        for contender, turn in bar:
            trial = contender.run(pipe, inputs if turn else short, seed)
            if turn:
                contender.trials.append(trial)
            if turn == 1:
                contender.comparison = compare_videos(trial.frames, contenders[0].trials[0].frames)


def _result(contender: Contender, dense: Contender) -> dict:
    ratios = [own.seconds / other.seconds for own, other in zip(contender.trials, dense.trials)]
    first, comparison = contender.trials[0], contender.comparison.to_dict()
    return {
        "method": contender.name,
        "config": contender.sparse and contender.sparse[0].to_dict(),
        **first.to_dict(),
        "seconds": round(median(trial.seconds for trial in contender.trials), 3),
        "times_dense": round(median(ratios), 4),
        **comparison["mean"],
        "ms_ssim_scales": comparison["ms_ssim_scales"],
    }


def _markdown(about: dict) -> str:
    """The settings in one line, and the table."""
    names = ("model", "device", "dtype", "width", "height", "num_frames", "num_inference_steps", "repeats")
    setting = ", ".join(f"{name.replace('_', ' ')} {about[name]}" for name in names if name in about)
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    rows = [COLUMNS, ["---"] * len(COLUMNS), *map(_row, about["results"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{setting}  \n{packages}\n\n{table}\n"


def _row(result: dict) -> list[str]:
    dense = result["config"] is None
    psnr = "identical" if result["psnr"] is None else f"{result['psnr']:.2f}"
    return [
        result["method"],
        f"{result['density']:.3f}",
        f"{result['attention_computed']:.3f}",
        f"{result['seconds']:.2f}",
        f"{result['times_dense']:.2f}",
        *(["", "", ""] if dense else [psnr, f"{result['ssim']:.4f}", f"{result['ms_ssim']:.4f}"]),
    ]
