"""Train the decoder of the wired VAE on crops of rendered clips: `python -m examples.tiny_wan.decoder --help`.

The encoder, and with it the latent space, stays as it is. Four fifths of the error or more lie in a twentieth of the
pixels, so crops are taken where there is most detail.
"""

import argparse
import copy
import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from examples.tiny_wan import loop
from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.optim import Average, Muon
from examples.tiny_wan.sampling import sample_scene
from examples.tiny_wan.scene_batch import render_rows, scene_rows
from examples.tiny_wan.scenes import frame_times, render
from examples.tiny_wan.vae import decode, prefer_fast_convolutions, wired_vae

SIDE, CROP, FRAMES, TRIES = 128, 48, 9, 3
SIDES = (128, 128, 192)  # of the clips to train on


def _detail(crops: Tensor) -> Tensor:
    """(B,): variance within blocks of 4x4 pixels of (B, T, 3, H, W): what the latents do not hold."""
    crops = crops.flatten(1, 2)
    return (F.avg_pool2d(crops.square(), 4) - F.avg_pool2d(crops, 4).square()).mean((1, 2, 3))


def sample_crops(rng: np.random.Generator, count: int, device: torch.device | str) -> Tensor:
    """(count, 9, 3, 48, 48) cuts from 33-frame clips, rendered on `device`: of `TRIES` places, the most detailed.

    Clips of a batch are equally long and start at the same frame; their sides are one of `SIDES`.
    """
    side, first = SIDES[rng.integers(len(SIDES))], 4 * int(rng.integers((33 - FRAMES) // 4 + 1))
    rows = scene_rows([sample_scene(rng) for _ in range(count)])
    corners = 4 * rng.integers((side - CROP) // 4 + 1, size=(count, TRIES, 2))
    clips = render_rows(rows, frame_times(33)[first : first + FRAMES].to(device), side, side)
    tries = torch.stack(
        [clip[..., y : y + CROP, x : x + CROP] for clip, places in zip(clips, corners) for y, x in places]
    )
    best = _detail(tries).view(count, TRIES).argmax(1)
    return tries.unflatten(0, (count, TRIES))[torch.arange(count, device=device), best]


def make_optimizers(decoder: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon on the kernels of residual branches, AdamW on the rest: what the wiring set at a tenth, lest it break."""
    named = list(decoder.named_parameters())
    free = {n for n, _ in named if "resnets" in n and any(part in n for part in ("conv1.", "conv2.", "norm2."))}
    kernels = {name for name, p in named if name in free and p.ndim == 5 and min(p.shape[2:]) > 1}
    groups = [
        {"params": [p for name, p in named if name in free - kernels], "lr": lr},
        {"params": [p for name, p in named if name not in free], "lr": 0.1 * lr},
    ]
    muon = Muon([p for name, p in named if name in kernels], lr)
    fused = named[0][1].is_cuda
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)]


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int = 8, seed: int = 999) -> float:
    """Mean PSNR in dB of whole rendered clips (33 x 128 x 128) of held-out combinations, encoded and decoded."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(clips):
        clip = render(sample_scene(rng, held_out=True), frame_times(33), SIDE, SIDE)[None].to(vae.device)
        error = (decode(vae, analytic_latents(clip)) - clip).square().mean()
        scores.append(10 * math.log10(4 / float(error)))
    return sum(scores) / clips


def loss_of(vae: AutoencoderKLWan, crops: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
    """Mean squared plus a little absolute error, and the PSNR of these crops; latents are a little noisy."""
    latents = analytic_latents(crops)
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=bf16):
        error = decode(vae, latents + 0.02 * torch.randn_like(latents)).float() - crops
    squared = error.square().mean()
    return squared + 0.1 * error.abs().mean(), 10 * (4 / squared.detach()).log10()


def averaged(vae: AutoencoderKLWan, average: Average) -> AutoencoderKLWan:
    """A copy with the averaged decoder."""
    copied = copy.deepcopy(vae).eval()
    copied.decoder.load_state_dict(average.modules[0].state_dict())
    return copied


def train(vae: AutoencoderKLWan, args: argparse.Namespace) -> AutoencoderKLWan:
    """Fit the decoder; returns the VAE with the average of the weights, saved now and then."""
    vae.requires_grad_(False).decoder.requires_grad_(True)
    rng, average, meter = np.random.default_rng(args.seed), Average([vae.decoder], args.ema), loop.Meter(args.log)
    optimizers = make_optimizers(vae.decoder, args.lr)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    batches = (sample_crops(rng, args.batch, args.device) for _ in itertools.count())
    for step, progress, crops in loop.pace(batches, args, lambda: averaged(vae, average).save_pretrained(args.out)):
        factor = loop.learning_rate_factor(progress, step, 30, 0.4)
        for group, peak in groups:
            group["lr"] = peak * factor
        loss, psnr = loss_of(vae, crops, args.bf16)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        meter.add("PSNR", psnr, args.batch, args.lr * factor)
    vae.requires_grad_(True)
    return averaged(vae, average)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--resume", type=Path, help="a VAE folder (fresh optimizers); default: the wired one")
    parser.add_argument("--width", type=int, default=16, help="channels of the decoder at full resolution, 8 or more")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ema", type=float, default=0.99)
    loop.add_arguments(parser, minutes=20.0, lr=3e-3)
    parser.add_argument("--clips", type=int, default=8, help="held-out clips to measure on in the end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and save."""
    args = parse_args(argv)
    loop.set_up(args)
    vae = AutoencoderKLWan.from_pretrained(args.resume) if args.resume else wired_vae(args.width)
    if args.device == "cpu":
        prefer_fast_convolutions(vae)
    vae = train(vae.to(args.device), args)
    vae.save_pretrained(args.out)
    print(f"PSNR {measure(vae, args.clips):.2f} dB on {args.clips} held-out clips")


if __name__ == "__main__":
    main()
