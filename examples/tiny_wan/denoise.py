"""What a model recognises under noise: truth is noised, denoised in one step and judged, level by level.

python -m examples.tiny_wan.denoise diffattn/assets/tiny_wan --prompts 24 --objects 2

It tells where sampling goes wrong: what is not known at some level is guessed there, and later steps keep the guess.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import WanPipeline
from torch import Tensor

from examples.tiny_wan.evaluate import held_out_scenes, score
from examples.tiny_wan.latents import LATENTS_STD, analytic_latents, normalise
from examples.tiny_wan.scene_batch import render_rows, scene_rows
from examples.tiny_wan.scenes import MOTIONS, Scene, frame_times
from examples.tiny_wan.vae import decode, prefer_fast_convolutions

LEVELS = (0.97, 0.94, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)


def some_scenes(count: int, seed: int, objects: int, motion: str | None) -> list[Scene]:
    """`count` held-out scenes, those whose first object has a `motion` if one is named."""
    scenes = held_out_scenes(count * (1 if motion is None else 30), seed, objects)
    return [scene for scene in scenes if motion in (None, scene.items[0].motion)][:count]


@torch.no_grad()
def denoised(pipe: WanPipeline, clean: Tensor, words: Tensor, sigma: float, seed: int) -> tuple[Tensor, float]:
    """One step from latents (B, 6, n, h, w) under noise of level `sigma` to clips, and its mean squared error."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noisy = torch.lerp(clean, noise, sigma)
    velocity = pipe.transformer(noisy, torch.full((len(clean),), 1000 * sigma), words, return_dict=False)[0]
    found = noisy - sigma * velocity
    latents = found * torch.tensor(LATENTS_STD).view(1, -1, 1, 1, 1)
    clips = torch.cat([decode(pipe.vae, latent) for latent in latents.split(1)])
    return clips, float((found - clean).square().mean())


@torch.no_grad()
def report(pipe: WanPipeline, scenes: list[Scene], args: argparse.Namespace) -> list[dict[str, float]]:
    """Accuracy and error at each level."""
    clips = render_rows(scene_rows(scenes), frame_times(args.frames), args.side, args.side)
    clean = normalise(analytic_latents(clips))
    captions = [scene.caption(index) for index, scene in enumerate(scenes)]
    words = pipe.encode_prompt(captions, do_classifier_free_guidance=False)[0]
    rows = []
    for sigma in args.sigma or LEVELS:
        made, error = denoised(pipe, clean, words, sigma, args.seed)
        rows.append({"sigma": sigma, "error": round(error, 4)} | score(list(made), scenes))
        print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    return rows


def _level(text: str) -> float:
    """A noise level."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"a noise level is above 0 and at most 1, got {text}")
    return float(text)


def main(argv: list[str] | None = None) -> None:
    """Print, and write, a row for each level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2), help="objects to a scene")
    parser.add_argument("--motion", choices=list(MOTIONS), help="only scenes whose first object moves so")
    parser.add_argument("--sigma", type=_level, action="append", help="a noise level, 0 to 1; default: eight of them")
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    pipe = WanPipeline.from_pretrained(args.folder)
    prefer_fast_convolutions(pipe.vae)
    rows = report(pipe, some_scenes(args.prompts, args.seed, args.objects, args.motion), args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
