"""`diffattn hunt`: which attention heads to guide with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from accelerate import PartialState

from ..analysis.errors import CommandError, user_errors
from ..analysis.load import TINY, check_frames, device_and_dtype, load_pipeline
from ..hunting import estimate
from ..hunting import hunt as search
from ..hunting.objectives import BUILT_IN, by_name
from ..hunting.search import Estimate, Settings
from .settings import Device, Dtype, Frames, GuidanceScale, Height, Model, Steps, Width, pipeline_options


def hunt(
    prompts: Annotated[Path, typer.Argument(help="Text file, one prompt a line; each has a seed of its own.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON of the heads to write.")],
    objective: Annotated[list[str], typer.Option(help=f"{', '.join(BUILT_IN)}; or name=weight, repeated.")],
    model: Model = TINY,
    rounds: Annotated[int, typer.Option(help="Rounds; each adds some heads.")] = 5,
    top_k: Annotated[int, typer.Option(help="Heads that a round adds.")] = 3,
    screen: Annotated[str, typer.Option(help="gradient: try only the best by gradient; none: try all.")] = "gradient",
    keep: Annotated[float, typer.Option(help="Heads that the screen keeps: a share, or a number above 1.")] = 0.25,
    halving: Annotated[bool, typer.Option(help="Try all heads on few prompts, and fewer on more.")] = True,
    perturbation_scale: Annotated[float, typer.Option(help="w of the guidance by heads.")] = 3.0,
    head_strength: Annotated[float, typer.Option(help="u of the heads, above 0 to 1.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Candidates generated in one batch.")] = 1,
    resume: Annotated[Path | None, typer.Option(help="Folder of log and report, from which to resume.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What the videos should not show.")] = "",
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    device: Device = None,
    dtype: Dtype = None,
    only_estimate: Annotated[bool, typer.Option("--estimate", help="Only print the cost of the search.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search for the heads whose perturbation makes videos of PROMPTS best, and write them for `generate --heads`."""
    _check_output(output, force or only_estimate)
    texts = read_prompts(prompts)
    sizes = {"height": height, "width": width, "num_frames": frames, "num_inference_steps": steps}
    options = pipeline_options(model, sizes, None, guidance_scale) | {"negative_prompt": negative_prompt}
    screened = None if screen == "none" else screen
    chosen = {"rounds": rounds, "top_k": top_k, "screen": screened, "halving": halving}
    chosen["keep"] = int(keep) if keep > 1 and keep == int(keep) else keep
    with user_errors(ValueError):
        Settings(**chosen)
        wanted = by_name(objective)
    device, dtype = device_and_dtype(device, dtype)
    state = PartialState(cpu=device == "cpu")
    pipe = load_pipeline(model, str(state.device) if device == "cuda" else device, dtype)
    check_frames(pipe, options.get("num_frames"))
    chosen |= {"scale": perturbation_scale, "strength": head_strength, "batch_size": batch_size, **options}
    with user_errors(ValueError, TypeError):
        if only_estimate:
            return _print_cost(estimate(pipe, texts, **chosen), as_json)
        try:
            found = search(pipe, wanted, texts, resume=resume, **chosen)
        except KeyboardInterrupt:
            rest = f"; the same command resumes from {resume}" if resume else ", nothing was written"
            raise CommandError(f"interrupted{rest}") from None
    if state.process_index:
        return
    found.save(output)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    for head in found:
        typer.echo(f"{head.layer}:{head.head}")
    name, before, after = found.search["objective"], found.search["unguided"], found.search["scores"][-1]
    typer.echo(f"{output}: {name} {before:.4g} without, {after:.4g} with these heads")


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    with user_errors(OSError, UnicodeDecodeError):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise CommandError(f"{path} holds no prompts; write one a line")
    return found


def _check_output(path: Path, force: bool) -> None:
    if path.suffix.lower() != ".json":
        raise CommandError(f"the output must end in .json, got {str(path)!r}")
    if not path.absolute().parent.is_dir():
        raise CommandError(f"the folder of the output does not exist: {path.absolute().parent}")
    if path.exists() and not force:
        raise CommandError(f"{path} exists; --force overwrites it")


def _print_cost(cost: Estimate, as_json: bool) -> None:
    typer.echo(json.dumps({"clips": cost.clips, "passes": cost.passes}, indent=2) if as_json else str(cost))
