"""Judge generated clips without a human: background, colour, shape and motion, read off the frames.

python -m examples.tiny_wan.evaluate diffattn/assets/tiny_wan --prompts 100 --json result.json
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor

from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.scenes import (
    COLOURS,
    MOTIONS,
    SHAPES,
    Scene,
    combinations,
    frame_times,
    outline_distance,
    render,
    sample_scene,
)
from examples.tiny_wan.vae import decode

CHOICES = {"shape": SHAPES, "colour": COLOURS, "motion": MOTIONS, "background": COLOURS}
# Area over radius squared, and how far the centre of mass lies below the middle of the outline, in radii.
UNIT = {"circle": (math.pi, 0.0), "square": (4 * 0.89**2, 0.0), "triangle": (3 * 3**0.5 * 0.74**2, 0.37)}
STILL_BELOW = 0.10  # travel, as a fraction of the side, below which an object rests


def _nearest_colour(rgb: Tensor) -> str:
    palette = torch.tensor(list(COLOURS.values()))
    return list(COLOURS)[int((palette - rgb).square().sum(1).argmin())]


def _fit_background(clip: Tensor, keep: Tensor) -> Tensor:
    """Per-channel affine surface through the pixels `keep` (T, H, W) of (T, 3, H, W): returns (3, H, W)."""
    _, _, height, width = clip.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1)
    count = keep.sum(0).float()
    mean = (clip * keep[:, None]).sum(0) / count.clamp(min=1)
    weight = count.sqrt().flatten()[:, None]
    solution = torch.linalg.lstsq(basis.flatten(0, 1) * weight, mean.flatten(1).T * weight).solution
    return (basis @ solution).permute(2, 0, 1)


def segment(clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(T, 3, H, W) -> object mask (T, H, W), its sure core (T, H, W) and the background surface (3, H, W).

    The object is what departs from an affine surface fitted to the rim, then to all that is not object.
    """
    frames, _, height, width = clip.shape
    keep = torch.ones(frames, height, width, dtype=torch.bool)
    edge = max(height // 16, 1)
    keep[:, edge:-edge, edge:-edge] = False
    for _ in range(3):
        background = _fit_background(clip, keep)
        distance = (clip - background).norm(dim=1)
        strongest = max(float(distance.flatten().quantile(0.97)), 0.7)
        # A blurred edge is cut in its middle.
        mask = distance > 0.5 * strongest
        keep = ~mask
    return mask, distance > 0.75 * strongest, background


def _track(mask: Tensor) -> Tensor:
    """Centre of mass (n, 2) as (x, y) fractions of the frames that show anything."""
    seen = mask[mask.flatten(1).sum(1) > 0].float()
    area = seen.sum((1, 2))
    y = (seen.sum(2) * (torch.arange(mask.shape[1]) + 0.5)).sum(1) / area / mask.shape[1]
    x = (seen.sum(1) * (torch.arange(mask.shape[2]) + 0.5)).sum(1) / area / mask.shape[2]
    return torch.stack([x, y], 1)


def _motion(mask: Tensor) -> str:
    """Direction of the centre's least-squares line over time; its whole travel decides between still and moving."""
    track = _track(mask)
    if len(track) < 3:
        return "none"
    time = torch.linspace(-0.5, 0.5, len(track))
    travel = ((track - track.mean(0)) * time[:, None]).sum(0) / time.square().sum()
    if float(travel.abs().max()) < STILL_BELOW:
        return "still"
    return max(MOTIONS, key=lambda name: float(travel @ torch.tensor(MOTIONS[name])))


def _shape(mask: Tensor) -> str:
    """The ideal shape of each frame's own area and centre that overlaps best, on average over frames."""
    _, height, width = mask.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    scores = dict.fromkeys(SHAPES, 0.0)
    for frame, (cx, cy) in zip(mask[mask.flatten(1).sum(1) > 0], _track(mask), strict=True):
        area = float(frame.sum())
        for shape, (unit_area, drop) in UNIT.items():
            radius = (area / unit_area) ** 0.5
            ideal = outline_distance(shape, x - cx * width, y - cy * height + drop * radius, radius) < 0
            scores[shape] += float((ideal & frame).sum() / (ideal | frame).sum())
    return max(scores, key=scores.__getitem__)


def judge(clip: Tensor) -> dict[str, str]:
    """The four attributes of a clip (T, 3, H, W) in [-1, 1]; "none" where there is no object to judge."""
    clip = clip[:: max(1, len(clip) // 8)].float()
    mask, core, background = segment(clip)
    verdict = {"background": _nearest_colour(background.mean((1, 2)))}
    if mask.float().mean() < 0.01:
        return verdict | dict.fromkeys(("shape", "colour", "motion"), "none")
    colour = clip.permute(0, 2, 3, 1)[core].median(0).values
    return verdict | {"shape": _shape(mask), "colour": _nearest_colour(colour), "motion": _motion(mask)}


def score(verdicts: list[dict[str, str]], scenes: list[Scene]) -> dict[str, float]:
    """Accuracy per attribute and of all four at once."""
    hits = [[v[name] == getattr(s, name) for name in CHOICES] for v, s in zip(verdicts, scenes, strict=True)]
    table = dict(zip(CHOICES, np.mean(hits, 0).tolist(), strict=True))
    return table | {"all four": float(np.mean(np.all(hits, 1)))}


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes of combinations that training never shows, each combination once before any comes twice."""
    rng = np.random.default_rng(seed)
    pool = list(combinations(held_out=True))
    order = [pool[i] for _ in range(-(-count // len(pool))) for i in rng.permutation(len(pool))]
    return [sample_scene(rng, attributes) for attributes in order[:count]]


@torch.no_grad()
def calibrate(pipe: WanPipeline, count: int, seed: int = 1) -> tuple[dict[str, float], dict[str, float]]:
    """The judge's own accuracy: on rendered truth, and on truth through the VAE."""
    scenes = held_out_scenes(count, seed)
    clips = [render(scene, frame_times(33), 128, 128) for scene in scenes]
    decoded = [decode(pipe.vae, analytic_latents(clip[None]))[0] for clip in clips]
    return score([judge(c) for c in clips], scenes), score([judge(c) for c in decoded], scenes)


@torch.no_grad()
def generate(pipe: WanPipeline, scene: Scene, index: int, args: argparse.Namespace) -> Tensor:
    """One clip (33, 3, 128, 128) through the stock pipeline; `index` seeds its noise and picks its wording."""
    options = {"height": 128, "width": 128, "num_frames": 33, "output_type": "pt"}
    options |= {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    noise = torch.Generator().manual_seed(1000 + index)
    return 2 * pipe(scene.caption(index), generator=noise, **options).frames[0].float().cpu() - 1


def contact_sheet(clips: list[Tensor], path: Path, columns: int = 4) -> None:
    """Save a PNG: per clip its first, middle and last frame, `columns` clips to a row."""
    from PIL import Image

    strips = [torch.cat([clip[0], clip[len(clip) // 2], clip[-1]], 2) for clip in clips]
    strips += [torch.ones_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 2) for i in range(0, len(strips), columns)]
    pixels = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def main(argv: list[str] | None = None) -> None:
    """Generate, judge, print; --shard i/n takes every n-th prompt, for several processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--calibrate", type=int, default=0, help="also judge this many rendered and decoded clips")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first 24 clips")
    args = parser.parse_args(argv)
    pipe = WanPipeline.from_pretrained(args.folder).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.compile:
        pipe.transformer.compile_repeated_blocks()
    first, stride = map(int, args.shard.split("/"))
    chosen = list(enumerate(held_out_scenes(args.prompts, args.seed)))[first::stride]
    start = time.monotonic()
    clips = [generate(pipe, scene, index, args) for index, scene in chosen]
    seconds = (time.monotonic() - start) / len(clips)
    scenes, verdicts = [scene for _, scene in chosen], [judge(clip) for clip in clips]
    rows = [{"prompt": s.caption(i), **v} for (i, s), v in zip(chosen, verdicts, strict=True)]
    report = {
        "accuracy": score(verdicts, scenes),
        "chance": {k: 1 / len(v) for k, v in CHOICES.items()},
        "prompts": len(clips),
        "steps": args.steps,
    }
    report |= {"guidance": args.guidance, "seconds per clip": round(seconds, 2)}
    if args.calibrate:
        report |= dict(zip(("truth", "truth through the VAE"), calibrate(pipe, args.calibrate), strict=True))
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report | {"clips": rows}, indent=1) + "\n")
    if args.sheet:
        contact_sheet(clips[:24], args.sheet)


if __name__ == "__main__":
    main()
