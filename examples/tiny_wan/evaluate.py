"""Judge generated clips without a human: background, count, colours, shapes and motions, read off the frames.

python -m examples.tiny_wan.evaluate diffattn/assets/tiny_wan --prompts 100 --json result.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffattn.kernels.attend import choose_impl
from diffusers import WanPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import diffattn
from examples.tiny_wan.judge import CHANCE, hits, judge
from examples.tiny_wan.sampling import combinations, sample_scene
from examples.tiny_wan.scenes import Scene
from examples.tiny_wan.vae import prefer_fast_convolutions


def held_out_scenes(count: int, seed: int, objects: int = 1) -> list[Scene]:
    """Scenes of combinations that training never shows; each first object once before any comes twice."""
    rng = np.random.default_rng(seed)
    pool = list(combinations(held_out=True))
    order = [pool[i] for _ in range(-(-count // len(pool))) for i in rng.permutation(len(pool))]
    return [sample_scene(rng, attributes, objects, held_out=True) for attributes in order[:count]]


def average(tables: list[dict[str, float]]) -> dict[str, float]:
    """Mean per key."""
    return {name: float(np.mean([table[name] for table in tables])) for name in tables[0]}


def score(clips: list[Tensor], scenes: list[Scene]) -> dict[str, float]:
    """Mean hits of clips (T, 3, H, W) per attribute, and of all of them at once."""
    return average([hits(judge(clip, scene.pan), scene) for clip, scene in zip(clips, scenes, strict=True)])


@torch.no_grad()
def generate(pipe: WanPipeline, cases: list[tuple[int, Scene]], args: argparse.Namespace) -> list[Tensor]:
    """Clips (T, 3, side, side) through the stock pipeline; a case's index seeds its noise and picks its wording."""
    options = {"height": args.side, "width": args.side, "num_frames": args.frames, "output_type": "pt"}
    noise = [torch.Generator().manual_seed(1000 + index) for index, _ in cases]
    captions = [scene.caption(index) for index, scene in cases]
    made = pipe(captions, generator=noise, num_inference_steps=args.steps, guidance_scale=3.0, **options)
    return list(2 * made.frames.float().cpu() - 1)


def contact_sheet(clips: list[Tensor], path: Path, columns: int = 4) -> None:
    """Save a PNG: per clip its first, middle and last frame, `columns` clips to a row."""
    strips = [torch.cat([clip[0], clip[len(clip) // 2], clip[-1]], 2) for clip in clips]
    strips += [torch.ones_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 2) for i in range(0, len(strips), columns)]
    pixels = ((torch.cat(rows, 1) + 1) * 127.5).round().clamp(0, 255).byte()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def evaluate(pipe: WanPipeline, args: argparse.Namespace) -> dict:
    """Generate and judge this shard's prompts; --json and --sheet are rewritten as clips arrive."""
    first, stride = map(int, args.shard.split("/"))
    cases = list(enumerate(held_out_scenes(args.prompts, args.seed, args.objects)))[first::stride]
    rows, clips = [], []
    for at in tqdm(range(0, len(cases), args.batch), unit="batch", mininterval=5):
        made = generate(pipe, part := cases[at : at + args.batch], args)
        for (index, scene), clip in zip(part, made, strict=True):
            verdict = judge(clip, scene.pan)
            rows.append({"prompt": scene.caption(index), "verdict": verdict, "hits": hits(verdict, scene)})
        settings = {name: getattr(args, name) for name in ("objects", "frames", "side", "steps")}
        accuracy = average([row["hits"] for row in rows])
        report = {"accuracy": accuracy, "chance": CHANCE, "prompts": len(rows), **settings}
        if args.sheet and len(clips) < 24:
            contact_sheet(clips := [*clips, *made][:24], args.sheet)
        if args.json:
            args.json.write_text(json.dumps(report | {"clips": rows}, indent=1) + "\n")
    return report


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--prompts", type=int, default=100)
    add("--objects", type=int, default=1, choices=(1, 2), help="objects to a scene")
    add("--steps", type=int, default=10)
    add("--frames", type=int, default=33, help="65: the same scenes, twice as many frames")
    add("--side", type=int, default=128, help="pixels; 192: 5,184 tokens")
    add("--batch", type=int, default=1, help="prompts to a call of the pipeline")
    add("--dtype", default="float32", help="of the transformer: float32 or bfloat16")
    add("--lora", type=Path, help="the folder of a LoRA")
    add("--sparse", type=Path, help="the folder of a diffattn_config.json; default: dense")
    add("--seed", type=int, default=0)
    add("--shard", default="0/1", help="i/n: every n-th prompt from the i-th on")
    add("--device", default="cpu")
    add("--json", type=Path)
    add("--sheet", type=Path, help="write a contact sheet of the first 24 clips")
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> WanPipeline:
    """The pipeline, with the LoRA and the sparse method asked for."""
    dtypes = {"transformer": getattr(torch, args.dtype), "default": torch.float32}
    pipe = WanPipeline.from_pretrained(args.folder, dtype=dtypes).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    if args.device == "cpu":
        prefer_fast_convolutions(pipe.vae)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    if args.sparse:
        # tiles run even where dense attention would be faster: the weights were trained with them
        diffattn.enable(pipe, args.sparse, impl=choose_impl(torch.device(args.device))[0])
    return pipe


def main(argv: list[str] | None = None) -> None:
    """Generate, judge, and print the accuracies as JSON."""
    args = parse_args(argv)
    print(json.dumps(evaluate(load(args), args), indent=2))


if __name__ == "__main__":
    main()
