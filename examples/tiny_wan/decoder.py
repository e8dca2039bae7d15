"""Train the decoder of the wired VAE on crops of rendered clips: `python -m examples.tiny_wan.decoder --help`.

The encoder, and with it the latent space, stays as it is. Four fifths of the error or more lie in a twentieth of the
pixels, so crops are taken where there is most detail.
"""

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from examples.tiny_wan import loop
from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.optim import Average, Optimizers
from examples.tiny_wan.rendering import render, render_rows, scene_rows
from examples.tiny_wan.sampling import sample_scene
from examples.tiny_wan.scenes import frame_times
from examples.tiny_wan.vae import decode, prefer_fast_convolutions, wired_vae

SIDE, CROP, FRAMES, TRIES = 128, 48, 9, 3
SIDES = (128, 128, 192)  # of the clips to train on
WIDTH = 16  # channels of the decoder at full resolution


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


def make_optimizers(decoder: nn.Module, lr: float) -> Optimizers:
    """Muon on the kernels of residual branches, AdamW on the rest: what the wiring set at a tenth, lest it break."""
    named = list(decoder.named_parameters())
    free = {n for n, _ in named if "resnets" in n and any(part in n for part in ("conv1.", "conv2.", "norm2."))}
    kernels = {name for name, p in named if name in free and p.ndim == 5 and min(p.shape[2:]) > 1}
    wired = {"params": [p for name, p in named if name not in free], "lr": 0.1 * lr}
    rest = {"params": [p for name, p in named if name in free - kernels], "lr": lr}
    return Optimizers([p for name, p in named if name in kernels], lr, [rest, wired])


def losses(vae: AutoencoderKLWan, args: argparse.Namespace) -> Iterator[tuple[str, int, Tensor]]:
    """Of crops: mean squared plus a little absolute error; latents are a little noisy."""
    rng = np.random.default_rng(args.seed)
    while True:
        crops = sample_crops(rng, args.batch, args.device)
        latents = analytic_latents(crops)
        error = decode(vae, latents + 0.02 * torch.randn_like(latents)).float() - crops
        yield "decoder", args.batch, error.square().mean() + 0.1 * error.abs().mean()


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int) -> float:
    """Mean PSNR in dB of whole rendered clips (33 x 128 x 128) of held-out combinations, encoded and decoded."""
    rng, scores = np.random.default_rng(999), []
    for _ in range(clips):
        clip = render(sample_scene(rng, held_out=True), frame_times(33).to(vae.device), SIDE, SIDE)[None]
        scores.append(10 * (4 / (decode(vae, analytic_latents(clip)) - clip).square().mean()).log10())
    return float(sum(scores)) / clips


def train(vae: AutoencoderKLWan, args: argparse.Namespace) -> None:
    """Fit the decoder; leaves the average of its weights in the VAE, and saves it."""
    live = copy.deepcopy(vae).requires_grad_(False)
    live.decoder.requires_grad_(True)
    optimizers, average = make_optimizers(live.decoder, args.lr), Average([live.decoder], 0.99)
    vae.decoder = average.modules[0]
    save = partial(vae.save_pretrained, args.out)
    loop.fit(args, [live.decoder], optimizers, average, losses(live, args), save, decay_from=0.4, clip=0.5)


def main(argv: list[str] | None = None) -> None:
    """Train, save and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clips", type=int, default=8, help="held-out clips to measure on in the end")
    loop.add_arguments(parser, minutes=20.0, lr=3e-3)
    args = parser.parse_args(argv)
    loop.set_up(args)
    vae = wired_vae(WIDTH).to(args.device)
    if args.device == "cpu":
        prefer_fast_convolutions(vae)
    train(vae, args)
    print(f"PSNR {measure(vae, args.clips):.2f} dB on {args.clips} held-out clips")


if __name__ == "__main__":
    main()
