"""Train the tiny Wan transformer and text encoder; `python -m examples.tiny_wan.train --help`.

A run is one phase: some minutes on a mixture of token grids. Phases continue one another through --resume,
coarse and cheap grids first, the reference grid (9 x 16 x 16 tokens: 33 frames of 128 x 128) last.
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor
from tqdm import tqdm

from examples.tiny_wan import fast
from examples.tiny_wan.batches import Batch, GridSpec, load_batches
from examples.tiny_wan.model import build_pipeline, save_pipeline
from examples.tiny_wan.optim import Average, Optimizers
from examples.tiny_wan.text import encode, pretrain
from examples.tiny_wan.vae import wired_vae


class Trainer:
    """Live modules, their average, optimizers and counters."""

    def __init__(self, pipe: WanPipeline, args: argparse.Namespace) -> None:
        self.args, self.pipe = args, pipe
        self.live = [pipe.transformer.to(args.device).train(), pipe.text_encoder.to(args.device).train()]
        self.dtype = torch.bfloat16 if args.bf16 else torch.float32
        self.optimizers = Optimizers(*self.live, args.lr, args.text_lr)
        self.average = Average(self.live, args.ema)
        self.clips: dict[str, int] = {}
        self.seconds = 0.0

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the velocity (noise - data), `args.focus` more of it around the objects.

        Outlines are a hundredth of a clip, and without that weight the last thing that is learned.
        """
        parts = (batch.tokens, batch.near, batch.places, batch.sigma)
        clean, near, places, sigma = (x.to(self.args.device) for x in parts)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1))
        transformer, text_encoder = self.live
        text = fast.pad_text(*encode(self.pipe.tokenizer, text_encoder, batch.captions))
        velocity = fast.forward_tokens(transformer, noisy, places, 1000 * sigma, *text, self.dtype)
        weight = 1 + self.args.focus * near
        return ((velocity - (noise - clean)).square().mean(-1) * weight).mean() / weight.mean()

    def step(self, batch: Batch, factor: float) -> float:
        """One optimizer step at `factor` times the peak learning rate."""
        loss, spec = self.loss(batch), batch.spec
        loss.backward()
        for module in self.live:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        self.optimizers.step(factor)
        self.average.update()
        name = f"{'x'.join(map(str, spec.grid))}/{spec.frames}"
        self.clips[name] = self.clips.get(name, 0) + spec.batch
        return loss.item()

    def save(self, folder: Path) -> None:
        """Write the averaged pipeline and, beside it, what a later phase needs to continue."""
        transformer, text_encoder = (copy.deepcopy(module).cpu().eval() for module in self.average.modules)
        pipe = WanPipeline(
            tokenizer=self.pipe.tokenizer, text_encoder=text_encoder, transformer=transformer, vae=self.pipe.vae,
            scheduler=self.pipe.scheduler,
        )  # fmt: skip
        save_pipeline(pipe, folder / "pipeline")
        state = {"live": [m.state_dict() for m in self.live], "optimizers": self.optimizers.state_dict()}
        state |= {"average": [m.state_dict() for m in self.average.modules], "clips": self.clips}
        torch.save(state | {"seconds": self.seconds, "steps": self.average.steps}, folder / "state.pt")

    def load(self, path: Path) -> None:
        """Continue from `save`'s state; the phase keeps its own seed, grids and learning rates."""
        state = torch.load(path, map_location=self.args.device)
        for modules, weights in ((self.live, state["live"]), (self.average.modules, state["average"])):
            for module, weight in zip(modules, weights, strict=True):
                module.load_state_dict(weight)
        self.optimizers.load_state_dict(state["optimizers"])
        self.clips, self.seconds, self.average.steps = state["clips"], state["seconds"], state["steps"]


def learning_rate_factor(progress: float, step: int, warmup: int, decay_from: float) -> float:
    """Linear warmup over `warmup` steps, constant, then linear to 2 % from `decay_from` of the phase on."""
    decay = 1 - 0.98 * max(0.0, progress - decay_from) / max(1 - decay_from, 1e-9)
    return min(1.0, (step + 1) / warmup) * min(decay, 1.0)


def run_phase(trainer: Trainer, args: argparse.Namespace) -> None:
    """Train for `args.minutes` of wall time, saving every `args.save_minutes`."""
    start = saved = last = time.monotonic()
    bar, smooth = tqdm(total=round(60 * args.minutes), unit="s", mininterval=20), {}
    for step, batch in enumerate(load_batches(args.grid, args.seed, args.workers)):
        elapsed, index = last - start, args.grid.index(batch.spec)
        factor = learning_rate_factor(elapsed / (60 * args.minutes), step, args.warmup, args.decay_from)
        loss = trainer.step(batch, factor)
        smooth[index] = 0.95 * smooth.get(index, loss) + 0.05 * loss
        now = time.monotonic()
        trainer.seconds += now - last
        bar.update(now - last)
        losses = " ".join(f"{index}:{loss:.4f}" for index, loss in sorted(smooth.items()))
        bar.set_postfix_str(f"{losses} step {step}", refresh=False)
        last = now
        if now - start > 60 * args.minutes:
            break
        if now - saved > 60 * args.save_minutes:
            trainer.save(args.out)
            saved = now
    bar.close()
    trainer.save(args.out)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pipeline/ and state.pt")
    parser.add_argument("--grid", type=GridSpec.parse, action="append", required=True, help=GridSpec.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--resume", type=Path, help="a state.pt, or a pipeline folder (fresh optimizers)")
    parser.add_argument("--vae", type=Path, help="a trained VAE folder; default: the wired one")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--text-lr", type=float, default=2e-4)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--decay-from", type=float, default=1.0, help="share of the phase after which the rate falls")
    parser.add_argument("--focus", type=float, default=0.0, help="how much more the tokens around objects weigh")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="only where the processor has bf16 arithmetic")
    parser.add_argument("--compile", action="store_true", help="torch.compile the block, one graph per grid")
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def start_pipeline(args: argparse.Namespace) -> WanPipeline:
    """The pipeline folder to resume from, or a fresh one whose text encoder has learned its words."""
    if args.resume and args.resume.is_dir():
        return WanPipeline.from_pretrained(args.resume)
    pipe = build_pipeline(AutoencoderKLWan.from_pretrained(args.vae) if args.vae else wired_vae())
    if not args.resume:
        pretrain(pipe.tokenizer, pipe.text_encoder.train(), np.random.default_rng(args.seed))
    return pipe


def main(argv: list[str] | None = None) -> None:
    """Run one phase."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    if args.compile:
        fast.block = torch.compile(fast.block, dynamic=False)
    trainer = Trainer(start_pipeline(args), args)
    if args.resume and args.resume.is_file():
        trainer.load(args.resume)
    args.out.mkdir(parents=True, exist_ok=True)
    run_phase(trainer, args)


if __name__ == "__main__":
    main()
