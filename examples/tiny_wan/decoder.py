"""Train the decoder of the wired VAE on crops of rendered clips: `python -m examples.tiny_wan.decoder --help`.

The encoder, and with it the latent space, stays as it is. Four fifths of the error or more lie in a twentieth of the
pixels, so crops are taken where there is most detail.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from tqdm import tqdm

from examples.tiny_wan.latents import analytic_latents
from examples.tiny_wan.optim import Average, Muon
from examples.tiny_wan.scenes import frame_times, render, sample_scene
from examples.tiny_wan.vae import decode, prefer_fast_convolutions, wired_vae

SIDE, CROP, FRAMES, TRIES = 128, 48, 9, 3


def _detail(crop: Tensor) -> float:
    """Variance within blocks of 4x4 pixels: what the latents do not hold."""
    return float((F.avg_pool2d(crop.square(), 4) - F.avg_pool2d(crop, 4).square()).mean())


def sample_crops(rng: np.random.Generator, count: int) -> Tensor:
    """(count, 9, 3, 48, 48) cuts from 33-frame clips of 128 x 128: of `TRIES` places, the one of most detail."""
    crops = []
    for _ in range(count):
        first = 4 * int(rng.integers((33 - FRAMES) // 4 + 1))
        clip = render(sample_scene(rng), frame_times(33)[first : first + FRAMES], SIDE, SIDE)
        corners = 4 * rng.integers((SIDE - CROP) // 4 + 1, size=(TRIES, 2))
        crops.append(max((clip[..., y : y + CROP, x : x + CROP] for y, x in corners), key=_detail))
    return torch.stack(crops)


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
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)]


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int = 8, seed: int = 999) -> float:
    """Mean PSNR in dB of whole rendered clips (33 x 128 x 128) of held-out combinations, encoded and decoded."""
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(clips):
        clip = render(sample_scene(rng, held_out=True), frame_times(33), SIDE, SIDE)[None]
        error = (decode(vae, analytic_latents(clip)) - clip).square().mean()
        scores.append(10 * math.log10(4 / float(error)))
    return sum(scores) / clips


def loss_of(vae: AutoencoderKLWan, crops: Tensor, bf16: bool) -> tuple[Tensor, float]:
    """Mean squared plus a little absolute error, and the PSNR of these crops; latents are a little noisy."""
    latents = analytic_latents(crops)
    with torch.autocast(crops.device.type, torch.bfloat16, enabled=bf16):
        error = decode(vae, latents + 0.02 * torch.randn_like(latents)).float() - crops
    squared = error.square().mean()
    return squared + 0.1 * error.abs().mean(), 10 * math.log10(4 / squared.item())


def averaged(vae: AutoencoderKLWan, average: Average) -> AutoencoderKLWan:
    """A copy with the averaged decoder."""
    copied = copy.deepcopy(vae).eval()
    copied.decoder.load_state_dict(average.modules[0].state_dict())
    return copied


def train(vae: AutoencoderKLWan, args: argparse.Namespace) -> AutoencoderKLWan:
    """Fit the decoder; returns the VAE with the average of the weights, saved now and then."""
    vae.requires_grad_(False).decoder.requires_grad_(True)
    rng, average = np.random.default_rng(args.seed), Average([vae.decoder], args.ema)
    optimizers = make_optimizers(vae.decoder, args.lr)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    start, last, saved, step, smooth = time.monotonic(), 0.0, 0.0, 0, None
    bar = tqdm(total=round(60 * args.minutes), unit="s", mininterval=20)
    while last < 60 * args.minutes:
        progress = last / (60 * args.minutes)
        for group, peak in groups:
            group["lr"] = peak * min(1.0, (step + 1) / 30) * max(0.02, min(1.0, 1.6 * (1 - progress)))
        loss, psnr = loss_of(vae, sample_crops(rng, args.batch).to(args.device), args.bf16)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.decoder.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update()
        now, step = time.monotonic() - start, step + 1
        smooth = psnr if smooth is None else 0.97 * smooth + 0.03 * psnr
        bar.update(now - last)
        bar.set_postfix_str(f"step {step} psnr {smooth:.2f}", refresh=False)
        last = now
        if now - saved > 60 * args.save_minutes:
            averaged(vae, average).save_pretrained(args.out)
            saved = now
    vae.requires_grad_(True)
    return averaged(vae, average)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--resume", type=Path, help="a VAE folder (fresh optimizers); default: the wired one")
    parser.add_argument("--width", type=int, default=16, help="channels of the decoder at full resolution, 8 or more")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--bf16", action="store_true", help="autocast; only where the processor has bf16 arithmetic")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=8, help="held-out clips to measure on in the end")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, measure and save."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    vae = AutoencoderKLWan.from_pretrained(args.resume) if args.resume else wired_vae(args.width)
    prefer_fast_convolutions(vae)
    vae = train(vae.to(args.device), args).cpu()
    vae.save_pretrained(args.out)
    print(f"PSNR {measure(vae, args.clips):.2f} dB on {args.clips} held-out clips")


if __name__ == "__main__":
    main()
