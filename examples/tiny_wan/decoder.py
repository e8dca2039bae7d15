"""Train the decoder of the wired VAE on crops of rendered clips: `python -m examples.tiny_wan.decoder --help`."""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor
from tqdm import tqdm

from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.scenes import frame_times, render, sample_scene
from examples.tiny_wan.vae import decode, wired_vae

SIDE, CROP, FRAMES = 128, 48, 9


def sample_crops(rng: np.random.Generator, count: int) -> Tensor:
    """(count, 9, 3, 48, 48) cuts from 33-frame clips of 128 x 128, each showing some of the object's path."""
    crops = []
    for _ in range(count):
        clip = render(sample_scene(rng), frame_times(33), SIDE, SIDE)
        first = 4 * int(rng.integers((33 - FRAMES) // 4 + 1))
        top, left = (4 * int(rng.integers((SIDE - CROP) // 4 + 1)) for _ in range(2))
        crops.append(clip[first : first + FRAMES, :, top : top + CROP, left : left + CROP])
    return torch.stack(crops)


def parameter_groups(vae: AutoencoderKLWan, lr: float) -> list[dict]:
    """Residual branches at the full rate; everything the wiring set, at a tenth, lest it break."""
    free = ("conv1.", "conv2.", "norm2.")
    named = list(vae.decoder.named_parameters())
    branches = [p for name, p in named if "resnets" in name and any(part in name for part in free)]
    wired = [p for name, p in named if not ("resnets" in name and any(part in name for part in free))]
    return [{"params": branches, "lr": lr}, {"params": wired, "lr": 0.1 * lr}]


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int = 8, seed: int = 999) -> float:
    """Mean PSNR in dB of whole rendered clips (33 x 128 x 128) through encoder and decoder."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(clips):
        clip = render(sample_scene(rng), frame_times(33), SIDE, SIDE)[None]
        error = (decode(vae, analytic_latents(clip)) - clip).square().mean()
        scores.append(10 * math.log10(4 / float(error)))
    return sum(scores) / clips


def train(vae: AutoencoderKLWan, minutes: float, batch: int, lr: float, seed: int) -> None:
    """Fit the decoder in place by mean squared plus a little absolute error."""
    vae.requires_grad_(False).decoder.requires_grad_(True)
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(parameter_groups(vae, lr), betas=(0.9, 0.98), weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    start, last, step = time.monotonic(), 0.0, 0
    bar = tqdm(total=round(60 * minutes), unit="s", mininterval=20)
    while last < 60 * minutes:
        crops = sample_crops(rng, batch)
        latents = analytic_latents(crops)
        error = decode(vae, latents + 0.02 * torch.randn_like(latents)) - crops
        loss = error.square().mean() + 0.1 * error.abs().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 0.5)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / 50) * max(0.02, 1 - last / (60 * minutes))
        optimizer.step()
        optimizer.zero_grad()
        now, step = time.monotonic() - start, step + 1
        bar.update(now - last)
        psnr = 10 * math.log10(4 / F.mse_loss(error.detach(), torch.zeros_like(error)).item())
        bar.set_postfix_str(f"step {step} psnr {psnr:.1f}", refresh=False)
        last = now
    vae.requires_grad_(True)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--resume", type=Path, help="a VAE folder; default: the wired one")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    vae = AutoencoderKLWan.from_pretrained(args.resume) if args.resume else wired_vae()
    before = measure(vae, clips=4)
    train(vae, args.minutes, args.batch, args.lr, args.seed)
    vae.eval().save_pretrained(args.out)
    print(f"PSNR {before:.2f} dB -> {measure(vae, clips=4):.2f} dB")


if __name__ == "__main__":
    main()
