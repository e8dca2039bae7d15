"""Fine-tune a pipeline folder through sparse attention; `python -m examples.tiny_wan.finetune --help`.

`diffattn.enable` on the stock transformer, and then an ordinary training loop: the gradients flow through the sparse
operator, from the first step on, in every layer but the first --dense-layers, and at every noise level, also where
--dense-start has sampling be dense. The result is a LoRA for `pipe.load_lora_weights(out)`, or with `--rank 0`, which
trains all weights, a pipeline folder; a `diffattn_config.json` for `diffattn.enable(pipe, out)` lies beside it.

With `--distil` the target is not the data but what the model that training starts from says with dense attention: the
same for the same noise, so that far fewer clips tell what sparse attention changed. `--rollout 10` asks for that where
the sparse model's own sampling of ten steps goes, and for guided velocities (rollout.py).

With `--frames 65` clips are twice as long as those that the model knows: the same scenes, whose motions take the whole
clip as before, in twice as many frames.
"""

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

import diffattn
from diffattn import AttentionConfig, Schedule
from examples.tiny_wan import loop
from examples.tiny_wan.batches import Batch, GridSpec, Wishes, load_batches
from examples.tiny_wan.latents import from_tokens, to_tokens
from examples.tiny_wan.model import save_pipeline
from examples.tiny_wan.rollout import Rollouts
from examples.tiny_wan.text import encode_words
from examples.tiny_wan.train import focused_error

PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
EVERY_CALL = Schedule(dense_start=0, dense_end=0, dense_layers=0)


def grid_of(frames: int, side: int) -> tuple[int, int, int]:
    """Tokens of a clip: 33 frames of 128 pixels are 9 x 16 x 16, 65 frames 17 x 16 x 16."""
    if frames % 4 != 1 or side % 8:
        raise ValueError(f"frames must be 4n + 1 and the side a multiple of 8, got {frames} and {side}")
    return (frames - 1) // 4 + 1, side // 8, side // 8


def prepare(
    pipe: WanPipeline,
    config: AttentionConfig | None,
    rank: int,
    lora: Path | None = None,
    dense_layers: int = 0,
) -> list[nn.Parameter]:
    """Freeze what is not trained, add the LoRA, turn the method on, if there is one; returns the parameters to train.

    The LoRA starts from the one in the folder `lora`, or as zero.
    """
    transformer = pipe.transformer
    pipe.text_encoder.requires_grad_(False)
    transformer.train().requires_grad_(rank == 0)
    if rank:
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS))
    if lora:
        weights = load_file(lora / LORA_WEIGHT_NAME_SAFE)
        set_peft_model_state_dict(transformer, {name.removeprefix("transformer."): w for name, w in weights.items()})
    if config:
        diffattn.enable(transformer, config, schedule=replace(EVERY_CALL, dense_layers=dense_layers))
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def velocity_loss(
    pipe: WanPipeline, batch: Batch, focus: float = 0.0, teacher: WanTransformer3DModel | None = None
) -> Tensor:
    """Mean squared error of the velocity, by the transformer's own forward; `focus` as in train.py.

    The goal is noise - data, or what the `teacher` says.
    """
    clean = from_tokens(batch.tokens, batch.spec.grid)
    sigma, noise = batch.sigma, torch.randn_like(clean)
    inputs = (
        torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1, 1)),
        1000 * sigma,
        encode_words(pipe.text_encoder, batch.words),
    )
    goal = noise - clean
    if teacher:
        with torch.no_grad():
            goal = teacher(*inputs, return_dict=False)[0].float()
    velocity = pipe.transformer(*inputs, return_dict=False)[0].float()
    return focused_error(to_tokens(velocity), to_tokens(goal), batch, focus)


def losses(
    pipe: WanPipeline, args: argparse.Namespace, teacher: WanTransformer3DModel | None
) -> Iterator[Callable[[], Tensor]]:
    """One loss after another, each of `args.batch` clips, computed when it is called."""
    grid, count = grid_of(args.frames, args.side), 1 if args.rollout else args.batch
    wishes, spec = Wishes(pairs=args.pairs), GridSpec(grid, grid[0], 1.0, count)
    batches = load_batches([spec], args.seed, args.workers, args.device, wishes)
    if args.rollout:
        rollouts = Rollouts(pipe, batches, args.batch, args.rollout, 3.0 if args.guidance is None else args.guidance)
        yield from itertools.repeat(lambda: rollouts.loss(pipe.transformer, teacher, args.focus))
    for batch in batches:
        yield lambda batch=batch: velocity_loss(pipe, batch, args.focus, teacher)


def train(
    pipe: WanPipeline, trained: list[nn.Parameter], args: argparse.Namespace, teacher: WanTransformer3DModel | None
) -> int:
    """AdamW for `args.minutes`, the rate falling from half of them on; returns the number of steps."""
    fused = pipe.transformer.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
    meter, name = loop.Meter(args.log), "x".join(map(str, grid_of(args.frames, args.side)))
    for step, progress, next_loss in loop.pace(losses(pipe, args, teacher), args, lambda: save(pipe, args)):
        rate = args.lr * loop.learning_rate_factor(progress, step, 20, 0.5)
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(pipe.transformer.device.type, torch.bfloat16, enabled=args.bf16):
            loss = next_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        meter.add(name, loss, args.batch, rate)
    return meter.steps


def save(pipe: WanPipeline, args: argparse.Namespace) -> None:
    """A LoRA file or a pipeline folder in `args.out`, and the method beside it."""
    if args.rank:
        pipe.save_lora_weights(args.out, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    else:
        save_pipeline(pipe, args.out)
    if args.config:
        args.config.save_pretrained(args.out, args.schedule)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the pipeline to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the LoRA or the pipeline")
    parser.add_argument("--method", default="radial", help="radial, vmoba, ...; or dense, to compare with")
    parser.add_argument("--density", type=float, help="share of the query-key products; default: the method's")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON",
                        help="more of the method's settings: '{\"box\": [3, 2, 2]}'")  # fmt: skip
    parser.add_argument("--dense-start", type=float, default=0.0,
                        help="share of the first sampling steps that stay dense, written into the config")  # fmt: skip
    parser.add_argument("--dense-layers", type=int, default=0, help="first layers that stay dense")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA on q, k, v, o; 0 trains all weights")
    parser.add_argument("--resume", type=Path, help="folder of a LoRA of the same rank to go on from")
    parser.add_argument("--frames", type=int, default=33, help="of a clip; 65 is twice the length")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--focus", type=float, default=0.0, help="how much more the tokens around objects weigh")
    parser.add_argument("--distil", action="store_true", help="the goal is the dense model's velocity, not the data's")
    parser.add_argument("--rollout", type=int, default=0, metavar="STEPS",
                        help="distil guided velocities where sparse sampling of STEPS steps goes")  # fmt: skip
    parser.add_argument("--guidance", type=float, help="guidance scale of --rollout; default: 3")
    parser.add_argument("--pairs", type=float, default=0.5, help="share of the scenes with two objects")
    loop.add_arguments(parser, minutes=10.0, lr=1e-3)  # 5e-4 suits --rank 0
    args = parser.parse_args(argv)
    args.schedule = replace(EVERY_CALL, dense_start=args.dense_start, dense_layers=args.dense_layers)
    if args.resume and not (args.rank and (args.resume / LORA_WEIGHT_NAME_SAFE).is_file()):
        parser.error(
            f"--resume goes on with a LoRA, of --rank 1 or more: is there {args.resume / LORA_WEIGHT_NAME_SAFE}?"
        )
    if args.rollout and (args.rollout < 2 or args.dense_start):
        parser.error(
            f"--rollout takes 2 steps or more, all of them sparse; got --rollout {args.rollout} "
            f"--dense-start {args.dense_start}"
        )
    if args.guidance is not None and not args.rollout:
        parser.error(f"--guidance {args.guidance} is that of --rollout: give --rollout, or leave it out")
    if args.method == "dense" and args.options:
        parser.error(f"--method dense has no settings: leave out --options {args.options}")
    if not isinstance(args.options, dict) or "density" in args.options:
        parser.error(f"--options takes a JSON object without density, which is --density; got {args.options}")
    options = args.options if args.density is None else args.options | {"density": args.density}
    args.config = None if args.method == "dense" else diffattn.config(args.method, **options)
    return args


def main(argv: list[str] | None = None) -> None:
    """Fine-tune and save."""
    args = parse_args(argv)
    loop.set_up(args)
    pipe = WanPipeline.from_pretrained(args.folder).to(args.device)
    teacher = copy.deepcopy(pipe.transformer).requires_grad_(False) if args.distil or args.rollout else None
    trained = prepare(pipe, args.config, args.rank, args.resume, args.dense_layers)
    print(f"{sum(map(torch.numel, trained)):,} parameters to train")
    steps = train(pipe, trained, args, teacher)
    if args.config:
        print(diffattn.summary(pipe))
    diffattn.disable(pipe)
    save(pipe, args)
    print(f"{steps} steps of {args.batch} clips -> {args.out}")


if __name__ == "__main__":
    main()
