"""Train the model, or a LoRA for sparse attention; `python -m examples.tiny_wan.train --help`.

A run is one phase: some minutes on a mixture of token grids. The next phase goes on from its folder. Coarse and cheap
grids come first, the native one last. With --method self-attention is sparse, and gradients flow through the sparse
operator at every noise level; a `diffattn_config.json` for `diffattn.enable(pipe, out)` is written beside the weights.

With --lora only a LoRA on q, k, v and o is trained, for `pipe.load_lora_weights(out)`: on the data, or with --rollout
along the sparse model's own sampling.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffattn.kernels.attend import choose_impl
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file
from torch import Tensor, nn

import diffattn
from examples.tiny_wan import loop
from examples.tiny_wan.batches import Batch, GridSpec, batches
from examples.tiny_wan.forward import TrainingForward
from examples.tiny_wan.latents import to_tokens
from examples.tiny_wan.model import build_pipeline, save_pipeline
from examples.tiny_wan.optim import Average, Optimizers
from examples.tiny_wan.text import bind, encode_words, pretrain, token_ids
from examples.tiny_wan.vae import wired_vae

TEXT_LR, EMA = 2e-4, 0.995
GUIDANCE = 3.0  # of rollouts
RANK, PROJECTIONS = 16, ["to_q", "to_k", "to_v", "to_out.0"]  # of the LoRA


def focused_error(velocity: Tensor, target: Tensor, near: Tensor, focus: float) -> Tensor:
    """Mean squared error of latents (B, C, T, H, W), `focus` more of it in the tokens that are `near` (B, N) objects.

    Outlines are a hundredth of a clip, and without that weight the last thing that is learned.
    """
    weight = 1 + focus * near
    return (to_tokens((velocity - target).square()).mean(-1) * weight).mean() / weight.mean()


def velocity_loss(forward: TrainingForward, encoder: nn.Module, batch: Batch, focus: float = 0.0) -> Tensor:
    """`focused_error` of the velocity, noise - data."""
    noise = torch.randn_like(batch.latents)
    noisy = torch.lerp(batch.latents, noise, batch.sigma.view(-1, 1, 1, 1, 1))
    velocity = forward(noisy, batch.sigma, encode_words(encoder, batch.words), (batch.spec.grid[0], batch.kept))
    return focused_error(velocity, noise - batch.latents, batch.near, focus)


def rollout(
    student: TrainingForward, teacher: TrainingForward, encoder: nn.Module, stream: Iterator[Batch], levels: Tensor,
    focus: float = 0.0, first: int = 0,
) -> Iterator[Tensor]:  # fmt: skip
    """`focused_error` of the guided velocity to that of the teacher, along the student's own sampling.

    Noised truth is not what a sampler meets: guidance carries it elsewhere, and so do a model's own errors. What moves
    it there is the guided velocity, where the errors with and without the caption, times 3 and times 2, add up. So the
    teacher is asked at the states that the student reaches (DAgger, arXiv 1011.0686; GKD, arXiv 2306.13649).

    Batches of one clip are sampled one after another from noise, the first from truth noised to `levels[first]`. The
    last step stays out: at its noise level, 0.01 or so, there is little left to do.
    """
    for batch in stream:
        text = encode_words(encoder, torch.cat([batch.words, token_ids([""]).to(batch.words.device)])).detach()
        latents = batch.latents.lerp(torch.randn_like(batch.latents), levels[first].item())
        for level, following in itertools.pairwise(levels[first:].tolist()):
            inputs = latents.repeat(2, 1, 1, 1, 1), latents.new_tensor([level, level]), text
            with torch.no_grad():
                goal = _guided(teacher(*inputs))
            velocity = _guided(student(*inputs))
            yield focused_error(velocity, goal, batch.near, focus)
            latents = latents + (following - level) * velocity.detach()
        first = 0


def _guided(velocity: Tensor) -> Tensor:
    """Of a pair with and without a caption."""
    return velocity[1:].lerp(velocity[:1], GUIDANCE)


def add_lora(transformer: nn.Module, folder: Path | None = None) -> None:
    """Freeze the transformer and add a LoRA, zero or that of a folder."""
    from peft import LoraConfig, set_peft_model_state_dict

    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS))
    if folder:
        weights = {n.removeprefix("transformer."): w for n, w in load_file(folder / LORA_WEIGHT_NAME_SAFE).items()}
        set_peft_model_state_dict(transformer, weights)


class Trainer:
    """What is trained, its average, the optimizers and the losses."""

    def __init__(self, pipe: WanPipeline, args: argparse.Namespace) -> None:
        self.args, self.pipe = args, pipe.to(args.device)
        transformer, self.encoder = pipe.transformer.train(), pipe.text_encoder.train()
        self.teacher = TrainingForward(copy.deepcopy(transformer)) if args.rollout else None
        if args.lora:
            self.encoder.requires_grad_(False)
            add_lora(transformer, args.lora_from)
        self.average = Average([transformer, self.encoder], 0.0 if args.lora else EMA)
        self.optimizers = self._optimizers()
        self.forward = TrainingForward(transformer)
        if args.method:
            diffattn.enable(transformer, args.config, schedule=args.schedule, impl=choose_impl(pipe.device)[0])

    def _optimizers(self) -> Optimizers:
        transformer, lr = self.pipe.transformer, self.args.lr
        if self.args.lora:
            return Optimizers([], lr, [{"params": [p for p in transformer.parameters() if p.requires_grad], "lr": lr}])
        matrices = [p for p in transformer.blocks.parameters() if p.ndim == 2]
        rest = [p for name, p in transformer.named_parameters() if not ("blocks." in name and p.ndim == 2)]
        groups = [{"params": rest, "lr": lr}, {"params": list(self.encoder.parameters()), "lr": TEXT_LR}]
        return Optimizers(matrices, lr, groups)

    def losses(self) -> Iterator[tuple[str, int, Tensor]]:
        """(name of the grid, clips, loss), each computed when it is asked for."""
        args = self.args
        if not args.rollout:
            for batch in batches(args.grid, args.seed, args.device, pairs=args.pairs):
                yield batch.spec.name, batch.spec.batch, velocity_loss(self.forward, self.encoder, batch, args.focus)
        self.pipe.scheduler.set_timesteps(args.rollout)
        levels, (spec,) = self.pipe.scheduler.sigmas[:-1], args.grid
        stream = batches([replace(spec, batch=1)], args.seed, args.device, pairs=args.pairs, empty=0.0)
        # Each clip is at a step of its own: together they hold several noise levels.
        inputs = self.forward, self.teacher, self.encoder, stream, levels, args.focus
        clips = [rollout(*inputs, (args.rollout - 1) * clip // spec.batch) for clip in range(spec.batch)]
        while True:
            yield spec.name, spec.batch, torch.stack([next(clip) for clip in clips]).mean()

    def save(self) -> None:
        """Write the averaged weights as a pipeline, or the LoRA, and the method beside them."""
        transformer, encoder = self.average.modules
        with loop.replacing(self.args.out) as folder:
            if self.args.lora:
                from peft import get_peft_model_state_dict

                self.pipe.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(transformer))
            else:
                parts = {"transformer": transformer, "text_encoder": encoder}
                save_pipeline(WanPipeline(**{**self.pipe.components, **parts}), folder)
            if self.args.method:
                self.args.config.save_pretrained(folder, self.args.schedule)


def start_pipeline(args: argparse.Namespace) -> WanPipeline:
    """The pipeline to continue, or a fresh one whose text encoder has learned its words."""
    if args.resume:
        pipe = WanPipeline.from_pretrained(args.resume)
    else:
        pipe = build_pipeline(wired_vae())
        pretrain(pipe.text_encoder, np.random.default_rng(args.seed), args.text_steps)
    if args.bind_steps:
        bind(pipe.text_encoder, np.random.default_rng(args.seed), args.bind_steps)
    if args.vae:
        pipe.register_modules(vae=AutoencoderKLWan.from_pretrained(args.vae))
    return pipe


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the pipeline or the LoRA")
    add("--grid", type=GridSpec.parse, action="append", required=True, help=GridSpec.__doc__)
    add("--resume", type=Path, help="the pipeline folder to go on from, with fresh optimizers")
    add("--vae", type=Path, help="a trained VAE folder; default: that of the pipeline, or the wired one")
    loop.add_arguments(parser, minutes=10.0, lr=2e-3)
    add("--decay-from", type=float, default=1.0, help="share of the phase after which the rate falls")
    add("--focus", type=float, default=0.0, help="how much more the tokens around objects weigh")
    add("--pairs", type=float, default=0.5, help="share of the scenes with two objects")
    add("--text-steps", type=int, default=600, help="in which a fresh text encoder learns its words")
    add("--bind-steps", type=int, default=0, help="in which it first learns to keep two objects apart")
    add("--method", help="self-attention by auto, vmoba, ...; default: dense")
    add("--options", type=json.loads, default={}, metavar="JSON", help="of the method: '{\"density\": 0.3}'")
    add("--dense-layers", type=int, default=0, help="first layers that stay dense")
    add("--lora", action="store_true", help=f"train a LoRA of rank {RANK} instead of all weights")
    add("--lora-from", type=Path, help="folder of a LoRA to go on from")
    add("--rollout", type=int, default=0, metavar="STEPS",
        help="distil the dense model's guided velocity along sparse sampling of STEPS steps")  # fmt: skip
    args = parser.parse_args(argv)
    if not args.method and (args.options or args.dense_layers or args.rollout):
        parser.error("--options, --dense-layers and --rollout are for sparse attention: give --method")
    if args.lora_from and not args.lora:
        parser.error(f"--lora-from {args.lora_from} is where --lora starts: give both")
    if args.rollout and (args.rollout < 2 or len(args.grid) > 1):
        parser.error(f"--rollout takes 2 steps or more and one --grid, got {args.rollout} and {len(args.grid)}")
    args.schedule = diffattn.Schedule(dense_start=0, dense_end=0, dense_layers=args.dense_layers)
    args.config = diffattn.config(args.method, **args.options) if args.method else None
    return args


def main(argv: list[str] | None = None) -> None:
    """Run one phase."""
    args = parse_args(argv)
    loop.set_up(args)
    trainer = Trainer(start_pipeline(args), args)
    modules = [trainer.pipe.transformer, trainer.encoder]
    losses = trainer.losses()
    loop.fit(args, modules, trainer.optimizers, trainer.average, losses, trainer.save, args.decay_from, clip=1.0)
    if args.method:
        print(diffattn.summary(trainer.pipe.transformer))


if __name__ == "__main__":
    main()
