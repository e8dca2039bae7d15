"""Train the tiny Wan transformer and text encoder; `python -m examples.tiny_wan.train --help`.

A run is one phase: some minutes on a mixture of token grids. Phases continue one another through --resume. On a CPU
coarse and cheap grids come first, the reference grid (9 x 16 x 16 tokens: 33 frames of 128 x 128) last.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor, nn

from examples.tiny_wan import fast, loop
from examples.tiny_wan.batches import Batch, GridSpec, Wishes, load_batches, sample_draft
from examples.tiny_wan.latents import PATCH
from examples.tiny_wan.model import build_pipeline, save_pipeline
from examples.tiny_wan.optim import Average, Optimizers
from examples.tiny_wan.scene_batch import OBJECTS
from examples.tiny_wan.text import bind, encode, pretrain
from examples.tiny_wan.vae import wired_vae


def losses(
    modules: list[nn.Module],
    batch: Batch,
    noise: Tensor,
    dtype: torch.dtype,
    focus: float = 0.0,
    block: Callable[..., tuple[Tensor, Tensor]] = fast.block,
) -> dict[str, Tensor]:
    """`velocity`: mean squared error of the velocity (noise - data), `focus` more of it around the objects.

    Outlines are a hundredth of a clip, and without that weight the last thing that is learned. Beside it `grounding`
    and `masks`, see there. `modules` are the transformer, the text encoder and the reader of masks.
    """
    transformer, text_encoder, reader = modules
    clean, sigma, head_dim = batch.tokens, batch.sigma, transformer.config.attention_head_dim
    noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1))
    text = fast.pad_text(*encode(text_encoder, batch.words))
    marks = nn.functional.pad(batch.phrases, (0, 0, 0, 1))  # the token of the pads
    rotary = fast.grid_tables(batch.spec.grid, batch.kept, head_dim, clean.device, dtype)
    velocity, seen, hidden = fast.forward_tokens(transformer, noisy, rotary, 1000 * sigma, *text, marks, dtype, block)
    return {
        "velocity": focused_error(velocity, noise - clean, batch, focus),
        "grounding": grounding(seen, batch),
        "masks": masking(reader(hidden.float()), batch, focus),
    }


def focused_error(velocity: Tensor, target: Tensor, batch: Batch, focus: float) -> Tensor:
    """Mean squared error of tokens (B, N, C), `focus` more of it around the objects."""
    weight = 1 + focus * batch.near.amax(1)
    return ((velocity - target).square().mean(-1) * weight).mean() / weight.mean()


def grounding(seen: Tensor, batch: Batch) -> Tensor:
    """How little the tokens of each of two objects look at its own words: cross-entropy, ln 2 for as much at both's.

    `seen` (layers, B, N, 2) is their cross-attention to the words of each. A token near both objects, or none, is
    not asked.
    """
    first, second = batch.near.unbind(1)
    asked = torch.stack([first * (1 - second), second * (1 - first)], -1)
    asked = asked * (batch.phrases.amax((1, 2)) > 0).view(-1, 1, 1)
    shares = (seen.float() + 1e-6) / (seen.float() + 1e-6).sum(-1, keepdim=True)
    return -(shares.log() * asked).sum() / (len(seen) * asked.sum()).clamp(min=1e-6)


def masking(logits: Tensor, batch: Batch, focus: float) -> Tensor:
    """Cross-entropy of the objects' masks, which `logits` (B, N, 2 P P) tell, `focus` more of it around the objects.

    Asked in the middle of the transformer which words a token is to show, and where their outline runs, it learns both
    sooner than from the error of the pixels: supervised, what REPA (arXiv 2410.06940) takes from another model.
    """
    weight = 1 + focus * batch.near.amax(1)
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, batch.masks, reduction="none")
    return (entropy.mean(-1) * weight).mean() / weight.mean()


def build_reader(transformer: nn.Module) -> nn.Module:
    """What reads both objects' masks off hidden states: (B, N, width) -> (B, N, 2 P P)."""
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, OBJECTS * PATCH * PATCH))


class Validation:
    """The loss on one batch of held-out scenes, under the same noise of evenly spaced levels every time."""

    def __init__(self, spec: GridSpec, device: str, seed: int = 999) -> None:
        draft = sample_draft(spec, np.random.default_rng(seed), held_out=True)
        sigma = (torch.arange(spec.batch) + 0.5) / spec.batch
        self.batch = replace(draft, sigma=sigma).rendered(device)
        noise = torch.randn(self.batch.tokens.shape, generator=torch.Generator().manual_seed(seed))
        self.noise, self.last = noise.to(device), time.monotonic()

    @torch.no_grad()
    def loss(self, modules: list[nn.Module], dtype: torch.dtype) -> float:
        """Without focus."""
        self.last = time.monotonic()
        return losses(modules, self.batch, self.noise, dtype)["velocity"].item()


class Trainer:
    """Live modules, their average, optimizers and counters."""

    def __init__(self, pipe: WanPipeline, args: argparse.Namespace) -> None:
        self.args, self.pipe = args, pipe
        modules = pipe.transformer, pipe.text_encoder, build_reader(pipe.transformer)
        self.live = [module.to(args.device).train() for module in modules]
        self.dtype = torch.bfloat16 if args.bf16 else torch.float32
        self.block = torch.compile(fast.block, dynamic=False) if args.compile else fast.block
        self.optimizers = Optimizers(*self.live, args.lr, args.text_lr)
        self.average = Average(self.live, args.ema)
        self.meter = loop.Meter(args.log)

    def step(self, batch: Batch, factor: float) -> None:
        """One optimizer step at `factor` times the peak learning rate."""
        noise = torch.randn_like(batch.tokens)
        parts = losses(self.live, batch, noise, self.dtype, self.args.focus, self.block)
        (parts["velocity"] + self.args.ground * parts["grounding"] + self.args.masks * parts["masks"]).backward()
        for module in self.live:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        self.optimizers.step(factor)
        self.average.update()
        for name in ("grounding", "masks"):
            self.meter.note(name, parts[name])
        self.meter.add(batch.spec.name, parts["velocity"], batch.spec.batch, factor * self.args.lr)

    def save(self) -> None:
        """Write the averaged pipeline and, beside it, what a later phase needs to continue."""
        transformer, text_encoder, _ = (copy.deepcopy(module).cpu().eval() for module in self.average.modules)
        pipe = WanPipeline(
            tokenizer=self.pipe.tokenizer, text_encoder=text_encoder, transformer=transformer, vae=self.pipe.vae,
            scheduler=self.pipe.scheduler,
        )  # fmt: skip
        with loop.replacing(self.args.out / "pipeline") as folder:
            save_pipeline(pipe, folder)
        state = {"live": [m.state_dict() for m in self.live], "optimizers": self.optimizers.state_dict()}
        with loop.replacing(self.args.out / "state.pt") as path:
            torch.save(state | {"meter": self.meter.state_dict(), "average": self.average.steps}, path)

    def load(self, path: Path) -> None:
        """Continue from `save`'s state, around its pipeline; the phase keeps its seed, grids and learning rates."""
        state = torch.load(path, map_location=self.args.device)
        # States of before there was a reader hold none.
        for module, weights in zip(self.live, state["live"], strict=False):
            module.load_state_dict(weights)
        self.optimizers.load_state_dict(state["optimizers"])
        self.meter.load_state_dict(state["meter"])
        self.average.steps = state["average"]


def run_phase(trainer: Trainer, args: argparse.Namespace) -> None:
    """Train for `args.minutes` of wall time, saving every `args.save_minutes`."""
    validation = Validation(args.grid[0], args.device) if args.validate else None
    wishes = Wishes(dict(args.often), args.pairs, args.high)
    batches = load_batches(args.grid, args.seed, args.workers, args.device, wishes)
    for step, progress, batch in loop.pace(batches, args, trainer.save):
        trainer.step(batch, loop.learning_rate_factor(progress, step, args.warmup, args.decay_from))
        if validation and time.monotonic() - validation.last > args.validate:
            loss = validation.loss(trainer.average.modules, trainer.dtype)
            trainer.meter.write("held-out", loss, 0.0)
    trainer.save()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for pipeline/ and state.pt")
    parser.add_argument("--grid", type=GridSpec.parse, action="append", required=True, help=GridSpec.__doc__)
    parser.add_argument("--resume", type=Path, help="a state.pt beside its pipeline, or a pipeline (fresh optimizers)")
    parser.add_argument("--vae", type=Path, help="a trained VAE folder; default: the resumed one, or the wired one")
    loop.add_arguments(parser, minutes=10.0, lr=2e-3)
    parser.add_argument("--text-lr", type=float, default=2e-4)
    parser.add_argument("--text-steps", type=int, default=600, help="in which a fresh text encoder learns its words")
    parser.add_argument("--bind-steps", type=int, default=0, help="in which it first learns to keep two objects apart")
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--decay-from", type=float, default=1.0, help="share of the phase after which the rate falls")
    parser.add_argument("--focus", type=float, default=0.0, help="how much more the tokens around objects weigh")
    parser.add_argument("--ground", type=float, default=0.0,
                        help="weight of the loss that has tokens of two objects look at their own words")  # fmt: skip
    parser.add_argument("--masks", type=float, default=0.0,
                        help="weight of the loss that has the middle layers tell each object's mask")  # fmt: skip
    parser.add_argument("--often", type=_word_and_times, action="append", default=[], metavar="WORD=TIMES",
                        help="a shape or motion to draw so many times as often")  # fmt: skip
    parser.add_argument("--pairs", type=float, default=0.5, help="share of the scenes with two objects")
    parser.add_argument("--high", type=float, default=0.3, help="share of the noise levels between 0.85 and 1")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--validate", type=float, help="seconds between held-out losses, on the first --grid")
    parser.add_argument("--compile", action="store_true", help="torch.compile the block, one graph per grid")
    args = parser.parse_args(argv)
    if args.bind_steps and args.resume and args.resume.is_file():
        parser.error(f"--bind-steps needs a pipeline, not the weights of {args.resume}: --resume its folder")
    return args


def _word_and_times(text: str) -> tuple[str, float]:
    """`spin=3` as a pair."""
    word, times = text.split("=")
    return word, float(times)


def start_pipeline(args: argparse.Namespace) -> WanPipeline:
    """The pipeline to continue, or a fresh one whose text encoder has learned its words."""
    if args.resume:
        pipe = WanPipeline.from_pretrained(args.resume if args.resume.is_dir() else args.resume.parent / "pipeline")
    else:
        pipe = build_pipeline(wired_vae())
        pretrain(pipe.text_encoder.train(), np.random.default_rng(args.seed), args.text_steps)
    if args.bind_steps:
        bind(pipe.text_encoder.train(), np.random.default_rng(args.seed), args.bind_steps)
    if args.vae:
        pipe.register_modules(vae=AutoencoderKLWan.from_pretrained(args.vae))
    return pipe


def main(argv: list[str] | None = None) -> None:
    """Run one phase."""
    args = parse_args(argv)
    loop.set_up(args)
    trainer = Trainer(start_pipeline(args), args)
    if args.resume and args.resume.is_file():
        trainer.load(args.resume)
    args.out.mkdir(parents=True, exist_ok=True)
    run_phase(trainer, args)


if __name__ == "__main__":
    main()
